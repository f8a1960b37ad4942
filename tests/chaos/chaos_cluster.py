"""A cluster for fault injection: real Kafka, Valkey and processes.

Knows how they are started, killed, frozen and restarted, and how far the work has come. Does not
know what must be true of the outcome (`chaos_verdict`). Everything runs in the test's thread, in
the order of the test's seed: waiting restarts ended processes, as the stack's supervisor does,
but without its pauses.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import redis
import xxhash
from chaos_servers import Servers, delete_topics
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from deploy import state
from deploy.processes import kind_and_instance
from deploy.services.process import Child, Command
from deploy.settings import Settings
from features.live.worker import consumer_group
from features.online.redis_store import FeastFeatureStore
from features.rows.decode import decode
from features.store import StoreDown
from streams.bus.contract import BusError, Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import (
    ADMITTED,
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
    topic_specs,
)
from streams.event_log import EventLog
from streams.ingest.dead_letters import DeadLetter, scan_dead_letters
from streams.workers.topic_ids import TopicIds

PROGRAM = Path(__file__).with_name("chaos_process.py")
ROOT = Path(__file__).parents[2]
_INPUT = {
    "batcher": BEHAVIOUR,
    "sequencer": ADMITTED,
    "fanout": EVENTS_BY_USER,
}  # loop -> its input
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


@dataclass
class Cluster:
    """One test's cluster. `hits` counts faults that were proved to interrupt work."""

    servers: Servers
    home: Path
    rng: random.Random
    partitions: int = 2
    replicas: int = 1  # of the ingest service
    processes: dict[str, ManagedProcess] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    sent: int = 0
    detached: list[ManagedProcess] = field(default_factory=list)  # not restarted
    background: list[Callable[[], None]] = field(default_factory=list)  # called while waiting
    old_dead_letters: list[DeadLetter] = field(default_factory=list)
    held: list[bytes | None] = field(default_factory=list)  # sent around the faults

    def __post_init__(self) -> None:
        self.bus = KafkaBus(self.servers.kafka.bootstrap_servers)
        self.store = FeastFeatureStore(self.servers.valkey.address, 0)
        self.log = EventLog(self.settings().log_dir)
        self.admin = AdminClient({"bootstrap.servers": self.servers.kafka.bootstrap_servers})
        self._watch = _watch(self.bus.bootstrap_servers, "read_uncommitted")
        self._committed_watch = _watch(self.bus.bootstrap_servers, "read_committed")
        self.began = time.monotonic()
        self.open_topics(self.partitions)

    # ---- setting up

    def settings(self) -> Settings:
        broker = {"kind": "external", "partitions": self.partitions,
                  "bootstrap_servers": self.servers.kafka.bootstrap_servers}  # fmt: skip
        ingest = {"replicas": self.replicas}
        store = {"kind": "external", "address": self.servers.valkey.address}
        key = {"impression_key": bytes(range(32)).hex()}
        return Settings(home=self.home, broker=broker, ingest=ingest, store=store,
                        security=key)  # fmt: skip

    def open_topics(self, partitions: int) -> None:
        self.partitions = partitions
        state.write_settings(self.settings())
        self.bus.ensure_topics(topic_specs(partitions))
        self._producer = self.bus.producer()
        self._topic_id = self.bus.topic_id(EVENTS_BY_USER)
        self._logged: tuple[dict[int, int], int] = ({}, 0)

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
        self._watch.close()
        self._committed_watch.close()

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

    # ---- how far the work has come

    def committed_records(self) -> int:
        """Records that the batcher's group has committed."""
        return sum(self._committed("batcher", BEHAVIOUR).values())

    def written_messages(self) -> int:
        """Messages that the batcher wrote, admitted and dead, committed or not."""
        first = EVENTS_BY_USER if self.replicas == 1 else ADMITTED
        return sum(self._ends(first)) + self._ends(BEHAVIOUR_DEAD)[0]

    def logged_rows(self) -> int:
        """Rows in the event log, duplicates included; read only when its offsets moved."""
        offsets = self._logged_offsets()
        if offsets != self._logged[0]:
            self._logged = (offsets, self.log.read(duplicates=True).height)
        return self._logged[1]

    def folded_events(self) -> int:
        """Events in the users' counts (only kinds that are counted)."""
        ids = [f"u{n}" for n in range(200)]
        columns = self.store.read("user", ids, 0).columns
        return int(sum(v.sum() for name, v in columns.items() if name.endswith("_count_all")))

    def _ends(self, topic: str, watch: Consumer | None = None) -> list[int]:
        count = 1 if topic == BEHAVIOUR_DEAD else self.partitions
        partitions = [TopicPartition(topic, p) for p in range(count)]
        return [(watch or self._watch).get_watermark_offsets(p, timeout=10)[1] for p in partitions]

    def dead(self) -> list[DeadLetter]:
        """Every dead letter; those of deleted topics first."""
        return [*self.old_dead_letters, *scan_dead_letters(self.bus)]

    def accounted_for(self) -> int:
        """Messages in the log or among the dead letters."""
        return self.logged_rows() + len(self.dead())

    # ---- proofs that a fault interrupted work

    def has_uncommitted_effect(self, role: str) -> bool:
        """Whether a batch with an effect is not committed, so that it is delivered again."""
        done = self._folded_offsets() if role == "features" else self._logged_offsets()
        committed = self._committed(role, EVENTS_BY_USER)
        return any(offset >= committed.get(p, 0) for p, offset in done.items() if offset >= 0)

    def _logged_offsets(self) -> dict[int, int]:
        return {p: self.log.last_offset(self._topic_id, p) for p in range(self.partitions)}

    def _folded_offsets(self) -> dict[int, int]:
        """Partition -> the last offset folded into any user's row."""
        rows = decode(self.store.stored_rows("user", [f"u{n}" for n in range(200)]))
        ours = rows.source_offset[
            rows.source_offset["topic_id"] == xxhash.xxh3_64_intdigest(self._topic_id.encode())
        ]
        return {int(p): int(ours["offset"][ours["partition"] == p].max())
                for p in np.unique(ours["partition"])}  # fmt: skip

    def _committed(self, role: str, topic: str) -> dict[int, int]:
        asked = ConsumerGroupTopicPartitions(self.group(role))
        future = self.admin.list_consumer_group_offsets([asked])[asked.group_id]
        commits = future.result(timeout=10).topic_partitions
        return {p.partition: p.offset for p in commits if p.topic == topic}

    def group(self, role: str) -> str:
        """The consumer group of an ingest loop, the log writer or the folds."""
        if role in _INPUT:
            return f"tidemill-{role}.{self.bus._group_suffix([_INPUT[role]])}"
        if role == "log-writer":
            return TopicIds(self.bus, [EVENTS_BY_USER]).consumer_group("facts")
        name = consumer_group("features", self.store.stored_rebuild_id() or 0)
        return TopicIds(self.bus, list(ENTITY_TOPIC.values())).consumer_group(name)

    def in_transaction(self) -> bool:
        """Whether the topics hold messages of no committed transaction."""
        topics = (ADMITTED, EVENTS_BY_USER)
        return any(self._ends(t) != self._ends(t, self._committed_watch) for t in topics)


def _watch(servers: str, isolation: str) -> Consumer:
    """A consumer for the ends of partitions."""
    return Consumer(
        {"bootstrap.servers": servers, "group.id": "chaos-watch", "isolation.level": isolation}
    )


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
