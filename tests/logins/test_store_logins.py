"""The online store with a password, behind TLS, and three nodes that Sentinel watches."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pytest
import redis

from deploy.services import process
from deploy.services.process import LOOPBACK, ServiceUnavailable, free_port
from deploy.services.valkey import Valkey, binary
from features.feast.registry import RegisteredFeatureStore, open_store
from features.online.connection import Connection, StoreLogin, StoreRefused
from features.store import StoreDown
from streams.bus.delivery import Stamp

Build = Callable[[list[dict[str, object]]], pa.Table]
PASSWORD = 'p,a=s"s 1'
NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def locked_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store whose users must log in: `shop` may do everything, `guest` may only read."""
    service = Valkey(tmp_path_factory.mktemp("locked"), name="locked")
    try:
        child = process.start(service, 30.0)
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))
    with redis.Redis(port=service.port) as admin:
        admin.execute_command("ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        admin.execute_command(
            "ACL", "SETUSER", "guest", "on", f">{PASSWORD}", "~*", "+get", "+select"
        )
        admin.execute_command("ACL", "SETUSER", "default", "off")
    yield service.address
    child.stop()


@pytest.fixture(scope="module")
def tls_store(locked_store: str, certificates: Path) -> Iterator[str]:
    """The same store behind a server that ends TLS and asks for a client's certificate."""
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem")
    )
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server((LOOPBACK, 0))
    host, _, port = locked_store.rpartition(":")

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, target):
                each.close()

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                client = context.wrap_socket(raw, server_side=True)
            except OSError:
                continue
            server = socket.create_connection((host, int(port)))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"{LOOPBACK}:{listener.getsockname()[1]}"
    listener.close()


def fold_and_read(store: RegisteredFeatureStore, events: pa.Table, users: int) -> None:
    store.rebuild_id()
    store.fold("user", events, Stamp("topic", 0, 1))
    names = [f"u{number}" for number in range(users)]
    rows = store.stored_rows("user", names)
    assert all(row is not None for row in rows)


def many(event_table: Build, users: int) -> pa.Table:
    """Rows of several hundred kB together, so that replies come in several pieces."""
    return event_table(
        [{"user_id": f"u{number}", "event_time_ms": NOW_MS + number} for number in range(users)]
    )


def tls_login(certificates: Path) -> StoreLogin:
    return StoreLogin(
        "shop",
        PASSWORD,
        tls=True,
        ca_file=str(certificates / "ca.pem"),
        certificate_file=str(certificates / "client.pem"),
        key_file=str(certificates / "client.key"),
    )


@pytest.mark.parametrize("encrypted", [False, True])
def test_rows_are_folded_and_read_after_a_login(
    encrypted: bool,
    request: pytest.FixtureRequest,
    locked_store: str,
    certificates: Path,
    event_table: Build,
    tmp_path: Path,
) -> None:
    address = request.getfixturevalue("tls_store") if encrypted else locked_store
    login = tls_login(certificates) if encrypted else StoreLogin("shop", PASSWORD)
    for cached in (0, 10_000):  # leases watch over kept connections
        store = open_store(
            registry_path=tmp_path / "registry.db",
            address=address,
            db=int(encrypted),
            project=f"p{cached}",
            timeout_s=10.0,
            cached_rows=cached,
            login=login,
        )
        for _ in range(2):
            fold_and_read(store, many(event_table, 2_000), 2_000)
    store.apply()
    service = store.feast_client().get_feature_service("user")
    answer = store.feast_client().get_online_features(
        features=service, entity_rows=[{"user_id": "u7", "now_ms": NOW_MS + 10_000}]
    )
    assert answer.to_dict()["user_row_status"] == ["present"]


@pytest.mark.parametrize(
    ("login", "says"),
    [
        (StoreLogin("shop", "wrong"), "username, password"),
        (StoreLogin(), "username, password"),
        (StoreLogin("guest", PASSWORD), "allow it"),
    ],
)
def test_a_refused_login_says_what_to_correct(
    login: StoreLogin, says: str, locked_store: str
) -> None:
    connection = Connection(locked_store, 0, 5.0, login)
    with pytest.raises(StoreRefused, match=says) as refused, connection.errors_as_store_down():
        connection.client.ping()
    assert PASSWORD not in str(refused.value) + repr(login)


def test_an_unknown_authority_is_named(tls_store: str) -> None:
    connection = Connection(tls_store, 0, 5.0, StoreLogin("shop", PASSWORD, tls=True))
    with pytest.raises(StoreDown, match="certificate"), connection.errors_as_store_down():
        connection.client.ping()


def _run(stack: ExitStack, folder: Path, name: str, *arguments: str) -> None:
    log = stack.enter_context((folder / f"{name}.log").open("w"))
    child = subprocess.Popen([str(binary()), *arguments], cwd=folder, stdout=log, stderr=log)

    def end() -> None:
        child.kill()
        child.wait()

    stack.callback(end)


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[str]:
    """Three nodes and three sentinels, which choose another primary after two seconds."""
    ports = [free_port() for _ in range(6)]
    nodes, watchers = ports[:3], ports[3:]
    with ExitStack() as stack:
        for port in nodes:
            follows = () if port == nodes[0] else ("--replicaof", LOOPBACK, str(nodes[0]))
            common = ("--bind", LOOPBACK, "--save", "", "--repl-diskless-sync-delay", "0")
            _run(stack, tmp_path, f"node-{port}", "--port", str(port), *common, *follows)
        for port in watchers:
            config = tmp_path / f"sentinel-{port}.conf"
            config.write_text(
                f"port {port}\nbind {LOOPBACK}\nsentinel monitor shop {LOOPBACK} {nodes[0]} 2\n"
                "sentinel down-after-milliseconds shop 2000\nsentinel failover-timeout shop 4000\n"
            )
            _run(stack, tmp_path, f"sentinel-{port}", str(config), "--sentinel")
        _await_watched(watchers)
        yield ",".join(f"{LOOPBACK}:{port}" for port in watchers)


def _await_watched(ports: list[int]) -> None:
    """Until each sentinel knows both replicas and both other sentinels."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            states = []
            for port in ports:
                with redis.Redis(port=port, decode_responses=True) as client:
                    states.append(client.sentinel_master("shop"))
            if all(s["num-slaves"] == 2 and s["num-other-sentinels"] == 2 for s in states):
                return
        except redis.exceptions.RedisError:
            pass
        time.sleep(0.1)
    raise AssertionError("the sentinels do not know each other")


def test_the_store_follows_sentinels_to_another_node(
    sentinels: str, event_table: Build, tmp_path: Path
) -> None:
    login = StoreLogin(sentinels=sentinels, sentinel_service="shop")
    store = open_store(
        registry_path=tmp_path / "r.db", address="", db=0, cached_rows=1_000, login=login
    )
    fold_and_read(store, many(event_table, 50), 50)
    client = store.connection.client
    assert client.wait(2, 10_000) == 2  # both replicas have the rows
    port = client.connection_pool.get_master_address()[1]
    with redis.Redis(port=port) as primary:
        primary.shutdown(nosave=True, now=True, force=True)
    deadline = time.monotonic() + 60
    while True:
        try:
            fold_and_read(store, many(event_table, 60), 60)
            break
        except StoreDown:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert client.connection_pool.get_master_address()[1] != port
