"""Real servers for the tests, one of each a session, on loopback ports of their own.

A test asks for a server by fixture. Where the machine cannot have it, the test
is skipped with the reason that `PartUnavailable` gives.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from deploy.services import process, triton
from deploy.services.kafka import Kafka
from deploy.services.process import Part, PartUnavailable
from deploy.services.tansu import Tansu
from deploy.services.valkey import Valkey

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
_SESSION = pytest.StashKey[pytest.Session]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends here, when all is told: after Python's own atexit functions, before C's.

    Of the hundreds of Kafka clients that the tests open some still run threads, with which
    OpenSSL's cleanup races (openssl 6214): all had passed, and the process died of it.
    """
    session = config.stash.get(_SESSION, None)
    if session and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        config.get_terminal_writer().flush()
        atexit._run_exitfuncs()
        os._exit(session.exitstatus)


@pytest.fixture
def free_port() -> int:
    """A loopback port that nobody listens on."""
    return process.free_port()


def _start(part: Part, timeout_s: float = 60.0) -> process.Child:
    try:
        return process.start(part, timeout_s)
    except PartUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def server_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's servers keep their logs and data."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def embedded_broker(server_dir: Path) -> Iterator[str]:
    """Bootstrap servers of an embedded broker (Tansu), shared by the session."""
    broker = Tansu(server_dir, name="embedded")
    child = _start(broker)
    yield broker.bootstrap_servers
    child.stop()


@pytest.fixture(scope="session")
def kafka_broker(server_dir: Path) -> Iterator[str]:
    """Bootstrap servers of an Apache Kafka 4.4, shared by the session."""
    broker = Kafka(server_dir, server_dir / "kafka-data", name="kafka")
    child = _start(broker, 120.0)
    yield broker.bootstrap_servers
    child.stop()


@pytest.fixture(scope="session")
def valkey(server_dir: Path) -> Iterator[str]:
    """host:port of a Valkey, shared by the session: use databases or key prefixes of your own."""
    store = Valkey(server_dir, name="valkey")
    child = _start(store)
    yield store.address
    child.stop()


@pytest.fixture(scope="session")
def triton_overlay() -> Path:
    """The python of the model backend's own environment (numpy 1.26)."""
    try:
        triton.server_dir()
        return triton.overlay_python()
    except PartUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def triton_server(server_dir: Path, triton_overlay: Path) -> Iterator[triton.Triton]:
    """A Triton with an empty repository; write into `.repository`, then load_model by name.

    It has `.grpc_address`, `.http_address`, `.metrics_address`. Use model names of your own.
    """
    assert triton_overlay.exists()
    server = triton.Triton(server_dir, server_dir / "repository")
    child = _start(server, 120.0)
    yield server
    child.stop()
    server.sweep()


@pytest.fixture(scope="session")
def container_broker() -> Iterator[str]:
    """Bootstrap servers of a Kafka in a container; skipped where no Docker engine answers."""
    import docker
    from testcontainers.community.kafka import KafkaContainer

    try:
        docker.from_env().ping()
    except docker.errors.DockerException as reason:
        pytest.skip(f"no Docker engine answers: {reason}")
    with KafkaContainer().with_kraft() as kafka:
        yield kafka.get_bootstrap_server()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A real browser. No longer than a module: while it runs, asyncio cannot in this thread."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()
