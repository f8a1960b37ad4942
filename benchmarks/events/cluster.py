"""The event path's processes and servers: events handled and CPU used by each.

Knows the stack's processes and `/proc`. Does not know what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from benchmarks.events.declared import ATTRIBUTES, SIGNALS
from deploy import state, wiring
from deploy.processes.own import OwnProcess
from deploy.services import process
from deploy.services.kafka import Kafka
from deploy.services.process import Child, Command, free_port
from deploy.services.valkey import Valkey
from deploy.settings import (
    AdmissionSettings,
    BrokerSettings,
    SecuritySettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
)
from streams.contract.declaration import contract
from streams.contract.declaration import declared as in_force

KEY = bytes(range(32))
WHOLE_PATH = ("log-writer", "features", "batcher")
# `benchmarks.events.bench_process`: each is named as an instance of the kind that it is part of.
USER_PATH = ("log-writer-user", "features-user", "batcher-user")
INGEST = ("batcher", "batcher-user")
STAGES = {
    "batcher",
    "sequencer",
    "fanout",
    "librdkafka",
    "by_user",
    "by_video",
    "by_author",
    "by_query",
}
SINGLE = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
_COUNTER = 'tidemill_events_handled_total{topic="'

Cpu = dict[str, float]  # process or stage -> seconds of CPU so far


@dataclass(frozen=True)
class BenchProcess(OwnProcess):
    """One of the benchmark's own processes, started like the stack's."""

    def command(self) -> Command:
        command = super().command()
        argv = [
            sys.executable,
            "-m",
            "benchmarks.events.bench_process",
            self.name,
            "--home",
            str(self.home),
        ]
        return Command(argv, command.log_path, command.env, command.cwd)


@dataclass
class Cluster:
    """A broker, a store and the event path's processes by name."""

    settings: Settings
    kafka: Kafka
    valkey: Valkey
    broker: Child
    store: Child
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def servers(self) -> str:
        return self.settings.broker.bootstrap_servers

    def start(self, name: str) -> Child:
        """Returns when the process is ready."""
        self.children[name] = process.start(self._process(name), 60)
        return self.children[name]

    def start_soon(self, name: str) -> None:
        """Does not wait until the process is ready."""
        own = self._process(name)
        self.children[name] = Child(own.name, own.command())

    def _process(self, name: str) -> OwnProcess:
        made = BenchProcess if name in USER_PATH else OwnProcess
        return made(name, self.settings.home, env=SINGLE)

    def stop_all(self) -> None:
        for name in list(self.children):
            self.stop(name)
        self.store.stop()
        self.broker.stop()

    def kill_broker(self) -> None:
        """SIGKILL and restart; data on disk is kept."""
        self.broker.kill()
        self.broker = process.start(self.kafka, 120)

    def kill_store(self) -> None:
        """SIGKILL and restart; the store is then empty."""
        self.store.kill()
        self.store = process.start(self.valkey, 30)

    def stop(self, name: str) -> None:
        self.children.pop(name).stop()

    def handled(self, name: str) -> dict[str, int]:
        """Topic -> events handled since the process started."""
        port = self.settings.telemetry.metrics_ports[name]
        with suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/metrics", None, 2) as r:
            lines = r.read().decode().splitlines()
            found = [line.removeprefix(_COUNTER) for line in lines if line.startswith(_COUNTER)]
            return {line.split('"')[0]: int(float(line.split()[-1])) for line in found}
        return {}

    def cpu(self) -> Cpu:
        """Seconds of CPU of servers and processes; processes by the names of their threads."""
        used = {"broker": _cpu_s(self.broker.pid), "store": _cpu_s(self.store.pid)}
        for name, child in self.children.items():
            used |= _by_thread(name, child.pid)
        return used


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _by_thread(process: str, pid: int) -> Cpu:
    """ "process: thread" -> seconds. Threads that are no loop, handler or librdkafka are "rest"."""
    used: Cpu = {}
    for thread in psutil.Process(pid).threads():
        with suppress(OSError):
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text().strip()
            stage = "librdkafka" if name.startswith("rdk") else name
            name = f"{process}: {stage if stage in STAGES else 'rest'}"
            used[name] = used.get(name, 0.0) + thread.user_time + thread.system_time
    return used


@contextmanager
def running_cluster(
    folder: Path, partitions: int, *, declared: bool = False, caps: bool = True
) -> Iterator[Cluster]:
    """Kafka and Valkey with an empty home; processes are started by name.

    declared: with the signals and attributes of `benchmarks.events.declared`, here too.
    caps: on what one user may contribute; without them every event counts.
    """
    kafka = Kafka(folder / "logs", folder / "kafka")
    valkey = Valkey(folder / "logs")
    settings = Settings(
        home=folder / "home",
        broker=BrokerSettings(
            kind="kafka", bootstrap_servers=kafka.bootstrap_servers, partitions=partitions
        ),
        store=StoreSettings(address=valkey.address),
        security=SecuritySettings(impression_key=KEY.hex()),
        admission=AdmissionSettings()
        if caps
        else AdmissionSettings(idempotent=(), actions_a_minute=None),
        items={"attributes": ATTRIBUTES if declared else {}},  # type: ignore[arg-type]
        signals=SIGNALS if declared else {},  # type: ignore[arg-type]
        telemetry=TelemetrySettings(
            metrics_ports={name: free_port() for name in (*WHOLE_PATH, *USER_PATH)}
        ),
    )
    state.write_settings(settings)
    broker = process.start(kafka, 120)
    try:
        store = process.start(valkey, 30)
    except BaseException:
        broker.stop()
        raise
    made = Cluster(settings, kafka, valkey, broker, store)
    with in_force(contract()):
        if declared:
            wiring.declare(settings)
        try:
            yield made
        finally:
            made.stop_all()


def await_handled(
    cluster: Cluster,
    wanted: Mapping[str, Mapping[str, int]],
    timeout_s: float,
    every_s: float = 0.1,
) -> float:
    """Seconds until every process has handled so many events of each topic.

    Raises:
        TimeoutError: not within `timeout_s`; the message has the counts.
    """
    began = time.perf_counter()
    while not all(_reached(cluster.handled(name), topics) for name, topics in wanted.items()):
        if time.perf_counter() - began > timeout_s:
            counts = {name: cluster.handled(name) for name in wanted}
            raise TimeoutError(f"not done after {timeout_s:.0f} s: {counts}, wanted {wanted}")
        dead = [n for n, child in cluster.children.items() if not child.alive()]
        if dead:
            raise RuntimeError(f"{dead[0]} ended:\n{cluster.children[dead[0]].tail()}")
        time.sleep(every_s)
    return time.perf_counter() - began


def _reached(handled: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return all(handled.get(topic, 0) >= count for topic, count in wanted.items())
