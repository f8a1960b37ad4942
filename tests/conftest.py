"""Real servers for the tests, one of each a session, on loopback ports of their own.

A test asks for a server by fixture. Where the machine cannot run it, the test
is skipped with the reason that `ServiceUnavailable` gives.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from deploy.services import process, triton
from deploy.services.kafka import Kafka
from deploy.services.process import Service, ServiceUnavailable
from deploy.services.tansu import Tansu
from deploy.services.valkey import Valkey

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
# Fixtures that start real servers.
SERVERS = {
    "embedded_broker",
    "kafka_broker",
    "valkey",
    "triton_server",
    "chromium",
    "servers",
    "loop",
}
SHARED_FOLDERS = {"tests/e2e", "tests/chaos"}
LONGEST_FIRST = [
    "tests/e2e",
    "tests/chaos",
    "tests/models/generation/test_onebar.py",
    "tests/streams/test_worker.py",
    "tests/streams/test_batcher.py",
]
_SESSION = pytest.StashKey[pytest.Session]()
# A busy machine is slow: no example fails for the time it takes.
settings.register_profile("tidemill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tidemill")


class RoomScheduling(LoadScopeScheduling):
    """One process of xdist runs one group of tests, so that a group's servers start once."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> RoomScheduling:
    return RoomScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups that take longest come first; real servers may fail once.

    A test that starts real servers is run once more when it fails, and the closing summary
    lists it as RERUN.
    """
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("servers"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=lambda item: _place(_group(item.nodeid)))


def _group(nodeid: str) -> str:
    """A file, whose tests share fixtures, or a folder whose tests share a started stack."""
    file = nodeid.partition("::")[0]
    folder = file.rpartition("/")[0]
    return folder if folder in SHARED_FOLDERS else file


def _place(group: str) -> int:
    """Where a group stands in the run: the known long ones first, the others as collected."""
    return LONGEST_FIRST.index(group) if group in LONGEST_FIRST else len(LONGEST_FIRST)


class FailuresAtOnce:
    """Prints what failed as soon as it did: the whole run takes minutes more."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome in ("failed", "rerun"):
            terminal = self._config.get_terminal_writer()
            cause = report.longreprtext.strip().rsplit("\n", 1)[-1]
            terminal.line(f"\n{report.outcome}: {report.nodeid} ({report.when}) {cause}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(config))


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process after Python's atexit functions and before C's.

    Kafka clients that tests leave behind still run threads, and OpenSSL's cleanup at exit
    races with them (openssl issue 6214): the process crashed after every test had passed.
    A worker of xdist has sent its results by then, so how it ends does not matter.
    """
    session = config.stash.get(_SESSION, None)
    if hasattr(config, "workerinput") or session is None:
        return
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        config.get_terminal_writer().flush()
        atexit._run_exitfuncs()
        os._exit(session.exitstatus)


@pytest.fixture
def free_port() -> int:
    """A free loopback port."""
    return process.free_port()


def _start(service: Service, timeout_s: float = 60.0) -> process.Child:
    try:
        return process.start(service, timeout_s)
    except ServiceUnavailable as reason:
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
    except ServiceUnavailable as reason:
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
