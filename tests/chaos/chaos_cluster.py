"""A cluster for fault injection: real Kafka, Valkey and processes.

Knows how they are started, killed, frozen and restarted. How far the work has come is
`chaos_progress`'s, what must be true of the outcome `chaos_verdict`'s. Everything runs in the test's thread, in
the order of the test's seed: waiting restarts ended processes, as the stack's supervisor does,
but without its pauses.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import redis
from chaos_progress import Progress
from chaos_servers import Servers, delete_topics
from confluent_kafka import KafkaException

from deploy import state
from deploy.processes import kind_and_instance
from deploy.services.process import Child, Command
from deploy.settings import AdmissionSettings, Settings
from features.online.redis_store import FeastFeatureStore
from features.store import StoreDown
from streams.bus.contract import BusError, Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER, topic_specs
from streams.event_log import EventLog

PROGRAM = Path(__file__).with_name("chaos_process.py")
ROOT = Path(__file__).parents[2]
OPEN_TRANSACTION_S = 1.5  # how long a kill waits for an open transaction
TRICKLE = 5  # events sent at a time meanwhile, so that there are transactions
STACK_DUMP_S = 0.5  # for processes to write their stacks
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ARROW_NUM_THREADS"), "1")


@dataclass
class ManagedProcess:
    """A process that is restarted when it ends: its role, instance and current run."""

    role: str
    instance: str
    env: Mapping[str, str]
    child: Child
    runs: int = 1


@dataclass(kw_only=True)
class Cluster(Progress):
    """One test's cluster. `hits` counts faults that were proved to interrupt work."""

    servers: Servers
    home: Path
    rng: random.Random
    processes: dict[str, ManagedProcess] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    sent: int = 0
    detached: list[ManagedProcess] = field(default_factory=list)  # not restarted
    background: list[Callable[[], None]] = field(default_factory=list)  # called while waiting
    held: list[bytes | None] = field(default_factory=list)  # sent around the faults

    def __post_init__(self) -> None:
        self.attach(
            KafkaBus(self.servers.kafka.bootstrap_servers),
            FeastFeatureStore(self.servers.valkey.address, 0),
            EventLog(self.settings().log_dir),
        )
        self.began = time.monotonic()
        self.open_topics(self.partitions)

    # ---- setting up

    def settings(self) -> Settings:
        broker = {"kind": "external", "partitions": self.partitions,
                  "bootstrap_servers": self.servers.kafka.bootstrap_servers}  # fmt: skip
        ingest = {"replicas": self.replicas}
        store = {"kind": "external", "address": self.servers.valkey.address}
        key = {"impression_key": bytes(range(32)).hex()}
        # Every event counts: what a user may contribute is capped elsewhere (`test_user_caps`).
        admission = AdmissionSettings(idempotent=(), actions_a_minute=None)
        return Settings(home=self.home, broker=broker, ingest=ingest, store=store,
                        security=key, admission=admission)  # fmt: skip

    def open_topics(self, partitions: int) -> None:
        self.partitions = partitions
        state.write_settings(self.settings())
        self.bus.ensure_topics(topic_specs(partitions))
        self._producer = self.bus.producer()
        self.topics_created()

    def start(self, name: str, instance: str = "0", **env: str) -> None:
        """Starts a process of the role `name` (up to a dash) and restarts it when it ends.

        `instance`: a batcher's; a successor with the same one fences it. Processes of other roles
        are members of their own.
        """
        role, _ = kind_and_instance(name)
        instance = instance if role == "batcher" else name.replace("-", "_")
        self.processes[name] = ManagedProcess(
            role, instance, env, self._spawn(name, role, instance, env)
        )

    def _spawn(self, name: str, role: str, instance: str, env: Mapping[str, str]) -> Child:
        argv = [
            sys.executable,
            str(PROGRAM),
            role,
            "--home",
            str(self.home),
            "--instance",
            instance,
        ]
        own = {"PYTHONPATH": str(ROOT), **THREADS, **env}
        return Child(name, Command(argv, self.home / "logs" / f"{name}.log", own, ROOT))

    # ---- faults

    def act_during_work(
        self,
        values: Sequence[bytes | None],
        act: Callable[[str], None],
        most: Mapping[str, int],
        within_s: float = 90.0,
    ) -> None:
        """Sends `values`, and calls `act` with each name once its process has done some work.

        `most`: name -> at most how much, in messages for a batcher, in events for the others.
        """
        measures = {
            "batcher": self.written_messages,
            "log-writer": self.logged_rows,
            "features": self.folded_events,
        }
        goals = {}
        for name, span in most.items():
            measure = measures[self.processes[name].role]
            goals[name] = (measure, _measured(measure) + self.rng.randint(1, span))
        first = (
            len(values) // 2 if "batcher" in {self.processes[name].role for name in most} else None
        )
        self.send(values[:first])
        self.held = list(values[first:]) if first else []

        def reached() -> bool:
            for name, (measure, goal) in list(goals.items()):
                if _measured(measure) >= goal:
                    del goals[name]
                    act(name)
                    self._send_held(len(self.held))
            return not goals

        self.await_condition(reached, f"work in {', '.join(most)}", within_s)

    def kill(self, name: str) -> None:
        """kill -9; counts a hit if it leaves unfinished work behind."""
        role = self.processes[name].role
        if role == "batcher":
            self._await_transaction()
        self.note(f"kill -9 {name}")
        self.processes[name].child.kill()
        self.hits[role] += (
            self.in_transaction() if role == "batcher" else self.has_uncommitted_effect(role)
        )

    def _await_transaction(self) -> bool:
        def caught() -> bool:
            self._send_held(TRICKLE)
            return self.in_transaction()

        return self.wait_for(caught, OPEN_TRANSACTION_S)

    def _send_held(self, count: int) -> None:
        if some := self.held[:count]:
            del self.held[:count]
            self.send(some)

    def freeze(self, name: str) -> None:
        self.note(f"freeze {name}")
        os.kill(self.processes[name].child.pid, signal.SIGSTOP)

    def thaw(self, process: ManagedProcess) -> None:
        self.note(f"thaw {process.child.name}")
        os.kill(process.child.pid, signal.SIGCONT)

    def detach(self, name: str) -> ManagedProcess:
        """The process is no longer restarted when it ends."""
        self.detached.append(self.processes.pop(name))
        return self.detached[-1]

    def remove(self, name: str, *, gently: bool = False) -> None:
        """Ends the process for good."""
        self.note(f"{name} is removed")
        process = self.processes.pop(name)
        process.child.stop() if gently else process.child.kill()

    def end(self) -> None:
        for process in (*self.processes.values(), *self.detached):
            process.child.kill()
        self.detach_clients()

    def break_broker(self) -> None:
        """kill -9, in a transaction if possible, and a restart on the same disk."""
        self.hits["broker"] += self._await_transaction()
        self.note("kill -9 broker")
        self.servers.kill_broker()
        self.servers.start_broker()
        self.note("the broker is back")

    def break_store(self) -> None:
        """kill -9, and an empty one in its place."""
        self._rows_lost("kill -9 store")
        self.servers.kill_store()

    def flush_store(self) -> None:
        self._rows_lost("flush the store")
        with redis.Redis(port=self.servers.valkey.port) as client:
            client.flushall()

    def freeze_store(self) -> None:
        self.note("freeze the store")
        self._fold_group = self.group("features")
        self.servers.freeze_store()

    def thaw_store(self) -> None:
        """Counts a hit if events were waiting for the store."""
        committed = self._committed("features", EVENTS_BY_USER, self._fold_group)
        folded = sum(committed.values())
        self.hits["waiting for the store"] += sum(self._ends(EVENTS_BY_USER)) - folded
        self.note("thaw the store")
        self.servers.thaw_store()

    def fill_disk(self, name: str, left: int) -> None:
        """No file of the process may grow beyond `left` bytes, as on a full disk."""
        self.note(f"{name} can write no file beyond {left} bytes")
        self._limit_files(name, left)

    def free_disk(self, name: str) -> None:
        self.note(f"{name} has space again")
        self._limit_files(name, resource.RLIM_INFINITY)

    def _limit_files(self, name: str, size: int) -> None:
        limits = (size, resource.RLIM_INFINITY)
        resource.prlimit(self.processes[name].child.pid, resource.RLIMIT_FSIZE, limits)

    def _rows_lost(self, how: str) -> None:
        with redis.Redis(port=self.servers.valkey.port) as client:
            rows = client.dbsize()
        self.note(f"{how}, {rows} keys lost")
        self.hits["rows lost"] += rows

    def recreate_topics(self, count: int) -> None:
        """As an operator does it: change the settings, delete the topics."""
        self.note(f"topics recreated with {count} partitions")
        self.old_dead_letters = self.dead()
        self.partitions = count
        state.write_settings(self.settings())  # before a process recreates them with the old
        delete_topics(self.admin)
        self.open_topics(count)

    # ---- waiting

    def restart_ended(self) -> None:
        """Restarts every process that has ended."""
        for work in self.background:
            work()
        for name, process in self.processes.items():
            if not process.child.alive():
                self.note(f"{name} ended with {process.child.exit_code()} and restarts")
                process.child = self._spawn(name, process.role, process.instance, process.env)
                process.runs += 1

    def await_condition(
        self, condition: Callable[[], object], what: str, within_s: float = 60.0
    ) -> None:
        """Waits for `condition`; fails with a report."""
        assert self.wait_for(condition, within_s), (
            f"not within {within_s:g} s: {what}\n{self.report()}"
        )

    def wait_for(self, condition: Callable[[], object], within_s: float) -> bool:
        """Waits, restarting ended processes; returns whether `condition` came true.

        Pauses as long as a check takes, to leave the CPU to the processes.
        """
        checked = time.monotonic()
        deadline = checked + within_s
        while not (holds := _holds(condition)) and time.monotonic() < deadline:
            self.restart_ended()
            time.sleep(max(0.002, time.monotonic() - checked))
            checked = time.monotonic()
        return holds

    def note(self, what: str) -> None:
        self.notes.append(f"{time.monotonic() - self.began:6.2f} s  {what}")

    def report(self) -> str:
        """The notes, and each process's last log lines and stacks."""
        children = [process.child for process in (*self.processes.values(), *self.detached)]
        for child in children:
            if child.alive():
                os.kill(child.pid, signal.SIGUSR1)  # see `chaos_process`
        time.sleep(STACK_DUMP_S)
        tails = [f"--- {child.name}\n{child.tail(40)}" for child in children]
        return "\n".join([*self.notes, *tails])

    # ---- the stream

    def send(self, values: Sequence[bytes | None]) -> None:
        """To `behaviour`, round-robin over partitions; returns when all are acknowledged."""
        messages = [
            Outgoing(BEHAVIOUR, value, partition=number % self.partitions)
            for number, value in enumerate(values, self.sent)
        ]
        self._producer.send(messages)
        self.sent += len(values)
        self.note(f"sent {len(values)}, {self.sent} in all")


def _measured(measure: Callable[[], int]) -> int:
    """0 while a server is down."""
    try:
        return measure()
    except _UNAVAILABLE:
        return 0


_UNAVAILABLE = (
    BusError,
    StoreDown,
    KafkaException,
    OSError,
    redis.RedisError,
    pl.exceptions.PolarsError,
)


def _holds(condition: Callable[[], object]) -> bool:
    """False while a server is down or a file is being merged."""
    try:
        return bool(condition())
    except _UNAVAILABLE:
        return False
