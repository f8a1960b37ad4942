"""A stream platform that can be hurt: real Kafka, Valkey and processes, and a hand on each.

Knows how parts are started, killed, frozen and kept alive, and how far the work has come.
Everything is done by the test's own thread, in the order of the test's seed: whoever waits
here also starts again what has ended, as the stack's supervisor does, but without its pauses.
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
from deploy.services.process import Child, Command
from deploy.settings import Settings
from features.kernels.layout import decode
from features.live.worker import consumer_group
from features.online.redis_store import FeastFeatureStore
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
from streams.ingest.dead_letters import DeadLetter, letters
from streams.workers.worker import Epochs

LIFE = Path(__file__).with_name("life.py")
ROOT = Path(__file__).parents[2]
_DOOR = {"batcher": BEHAVIOUR, "sequencer": ADMITTED, "fanout": EVENTS_BY_USER}  # loop -> its input
OPEN_S = 1.5  # how long a kill waits for a transaction to be open
SOME = 5  # events sent meanwhile at a time, so that there are transactions
STACKS_S = 0.5  # how long processes have to write where they are
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ARROW_NUM_THREADS"), "1")


@dataclass
class Life:
    """A process that is wanted: its role and instance, and the run of it that lives now."""

    role: str
    instance: str
    env: Mapping[str, str]
    child: Child
    runs: int = 1


@dataclass
class World:
    """One test's platform. `hits` counts what was proved to have been hurt in the middle."""

    servers: Servers
    home: Path
    rng: random.Random
    partitions: int = 2
    doors: int = 1  # processes that the door may be
    lives: dict[str, Life] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    sent: int = 0
    retired: list[Life] = field(default_factory=list)  # not started again; ended at the end
    beside: list[Callable[[], None]] = field(default_factory=list)  # done while waiting
    old_letters: list[DeadLetter] = field(default_factory=list)
    held: list[bytes | None] = field(default_factory=list)  # for the door to work on as it is hurt

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
        broker = {"kind": "external", "partitions": self.partitions, "doors": self.doors,
                  "bootstrap_servers": self.servers.kafka.bootstrap_servers}  # fmt: skip
        store = {"kind": "external", "address": self.servers.valkey.address}
        key = {"impression_key": bytes(range(32)).hex()}
        return Settings(home=self.home, broker=broker, store=store, security=key)

    def open_topics(self, partitions: int) -> None:
        self.partitions = partitions
        state.write_settings(self.settings())
        self.bus.ensure_topics(topic_specs(partitions))
        self._producer = self.bus.producer()
        self._epoch = self.bus.epoch(EVENTS_BY_USER)
        self._logged: tuple[dict[int, int], int] = ({}, 0)

    def keep(self, name: str, door: str = "0", **env: str) -> None:
        """Keeps a process of the role `name` (up to a dash) running. `door`: a batcher's instance,
        which its successor shares, so as to fence it; any other is a member of its own."""
        role = name.partition("-")[0]
        instance = door if role == "batcher" else name.replace("-", "_")
        self.lives[name] = Life(role, instance, env, self._spawn(name, role, instance, env))

    def _spawn(self, name: str, role: str, instance: str, env: Mapping[str, str]) -> Child:
        argv = [sys.executable, str(LIFE), role, "--home", str(self.home), "--instance", instance]
        own = {"PYTHONPATH": str(ROOT), **THREADS, **env}
        return Child(name, Command(argv, self.home / "logs" / f"{name}.log", own, ROOT))

    # ---- hurting

    def each_in_its_work(
        self,
        values: Sequence[bytes | None],
        act: Callable[[str], None],
        most: Mapping[str, int],
        within_s: float = 90.0,
    ) -> None:
        """Sends `values`, and calls `act` with each name once its work has gone on a little.

        By at most so much: the door's work is counted in messages, the others' in events.
        """
        measures = {"batcher": self.written, "facts": self.logged, "features": self.folded}
        goals = {}
        for name, span in most.items():
            measure = measures[self.lives[name].role]
            goals[name] = (measure, _number(measure) + self.rng.randint(1, span))
        first = len(values) // 2 if "batcher" in {self.lives[name].role for name in most} else None
        self.send(values[:first])
        self.held = list(values[first:]) if first else []

        def reached() -> bool:
            for name, (measure, goal) in list(goals.items()):
                if _number(measure) >= goal:
                    del goals[name]
                    act(name)
                    self._send_held(len(self.held))
            return not goals

        self.until(reached, f"work in {', '.join(most)}", within_s)

    def kill(self, name: str) -> None:
        """kill -9; counts a hit when what it leaves behind is unfinished."""
        role = self.lives[name].role
        if role == "batcher":
            self._await_transaction()
        self.tell(f"kill -9 {name}")
        self.lives[name].child.kill()
        self.hits[role] += self.in_transaction() if role == "batcher" else self.repeats(role)

    def _await_transaction(self) -> bool:
        def caught() -> bool:
            self._send_held(SOME)
            return self.in_transaction()

        return self.wait(caught, OPEN_S)

    def _send_held(self, count: int) -> None:
        if some := self.held[:count]:
            del self.held[:count]
            self.send(some)

    def freeze(self, name: str) -> None:
        self.tell(f"freeze {name}")
        os.kill(self.lives[name].child.pid, signal.SIGSTOP)

    def thaw(self, life: Life) -> None:
        self.tell(f"thaw {life.child.name}")
        os.kill(life.child.pid, signal.SIGCONT)

    def retire(self, name: str) -> Life:
        """From now on it is not started again when it ends."""
        self.retired.append(self.lives.pop(name))
        return self.retired[-1]

    def let_go(self, name: str, *, gently: bool = False) -> None:
        """It ends and stays away."""
        self.tell(f"{name} is let go")
        life = self.lives.pop(name)
        life.child.stop() if gently else life.child.kill()

    def end(self) -> None:
        for life in (*self.lives.values(), *self.retired):
            life.child.kill()
        self._watch.close()
        self._committed_watch.close()

    def break_broker(self) -> None:
        """kill -9 in a transaction, if one comes; it comes back with what lies on its disk."""
        self.hits["broker"] += self._await_transaction()
        self.tell("kill -9 broker")
        self.servers.kill_broker()
        self.servers.start_broker()
        self.tell("the broker answers again")

    def break_store(self) -> None:
        """kill -9; an empty one comes in its place."""
        self._rows_lost("kill -9 store")
        self.servers.kill_store()

    def flush_store(self) -> None:
        self._rows_lost("flush the store")
        with redis.Redis(port=self.servers.valkey.port) as client:
            client.flushall()

    def _rows_lost(self, how: str) -> None:
        with redis.Redis(port=self.servers.valkey.port) as client:
            rows = client.dbsize()
        self.tell(f"{how}, {rows} keys lost")
        self.hits["rows lost"] += rows

    def partitions_become(self, count: int) -> None:
        """As an operator does it: the new number into the settings, the topics deleted."""
        self.tell(f"topics made anew with {count} partitions")
        self.old_letters = self.dead()
        self.partitions = count
        state.write_settings(self.settings())  # before a process can make them by the old ones
        delete_topics(self.admin)
        self.open_topics(count)

    # ---- waiting

    def tend(self) -> None:
        """Starts again what has ended."""
        for work in self.beside:
            work()
        for name, life in self.lives.items():
            if not life.child.alive():
                self.tell(f"{name} ended with {life.child.exit_code()} and starts again")
                life.child = self._spawn(name, life.role, life.instance, life.env)
                life.runs += 1

    def until(self, condition: Callable[[], object], what: str, within_s: float = 60.0) -> None:
        """Waits, tending, and fails with the whole story."""
        assert self.wait(condition, within_s), f"not within {within_s:g} s: {what}\n{self.told()}"

    def wait(self, condition: Callable[[], object], within_s: float) -> bool:
        """Waits, tending; whether the condition came true.

        It rests as long as it looks, so as to leave the machine to those it waits for.
        """
        looked = time.monotonic()
        deadline = looked + within_s
        while not (came := _true(condition)) and time.monotonic() < deadline:
            self.tend()
            time.sleep(max(0.002, time.monotonic() - looked))
            looked = time.monotonic()
        return came

    def tell(self, what: str) -> None:
        self.story.append(f"{time.monotonic() - self.began:6.2f} s  {what}")

    def told(self) -> str:
        """What was done, and of each process its last words and where it is just now."""
        children = [life.child for life in (*self.lives.values(), *self.retired)]
        for child in children:
            if child.alive():
                os.kill(child.pid, signal.SIGUSR1)  # see `life`
        time.sleep(STACKS_S)
        tails = [f"--- {child.name}\n{child.tail(40)}" for child in children]
        return "\n".join([*self.story, *tails])

    # ---- the stream

    def send(self, values: Sequence[bytes | None]) -> None:
        """To `behaviour`, over the partitions in turn; returns when all are acknowledged."""
        messages = [
            Outgoing(BEHAVIOUR, value, partition=number % self.partitions)
            for number, value in enumerate(values, self.sent)
        ]
        self._producer.send(messages)
        self.sent += len(values)
        self.tell(f"sent {len(values)}, {self.sent} in all")

    # ---- how far the work has come

    def taken(self) -> int:
        """Messages that the door has answered for, by what its group has committed."""
        return sum(self._committed("batcher", BEHAVIOUR).values())

    def written(self) -> int:
        """Messages that the door wrote, admitted and dead, committed or not."""
        first = EVENTS_BY_USER if self.doors == 1 else ADMITTED
        return sum(self._ends(first)) + self._ends(BEHAVIOUR_DEAD)[0]

    def logged(self) -> int:
        """Rows in the event log, marked duplicates included; read only when files have come."""
        filed = self._filed()
        if filed != self._logged[0]:
            self._logged = (filed, self.log.read(duplicates=True).height)
        return self._logged[1]

    def folded(self) -> int:
        """Events that the users' rows count (of kinds that are counted)."""
        ids = [f"u{n}" for n in range(200)]
        columns = self.store.read("user", ids, 0).columns
        return int(sum(v.sum() for name, v in columns.items() if name.endswith("_count_all")))

    def _ends(self, topic: str, watch: Consumer | None = None) -> list[int]:
        count = 1 if topic == BEHAVIOUR_DEAD else self.partitions
        places = [TopicPartition(topic, p) for p in range(count)]
        return [(watch or self._watch).get_watermark_offsets(p, timeout=10)[1] for p in places]

    def dead(self) -> list[DeadLetter]:
        """Every dead letter, those of deleted topics first."""
        return [*self.old_letters, *letters(self.bus)]

    def judged(self) -> int:
        """Messages that lie in the log or among the dead letters."""
        return self.logged() + len(self.dead())

    # ---- proofs that something was hurt

    def repeats(self, role: str) -> bool:
        """Whether batches whose effect is there are not committed, so that they come again."""
        done = self._handled() if role == "features" else self._filed()
        committed = self._committed(role, EVENTS_BY_USER)
        return any(offset >= committed.get(p, 0) for p, offset in done.items() if offset >= 0)

    def _filed(self) -> dict[int, int]:
        return {p: self.log.last_offset(self._epoch, p) for p in range(self.partitions)}

    def _handled(self) -> dict[int, int]:
        """Partition -> the last offset that any user's row has seen."""
        rows = decode(self.store.blobs("user", [f"u{n}" for n in range(200)]))
        ours = rows.lane[rows.lane["epoch"] == xxhash.xxh3_64_intdigest(self._epoch.encode())]
        return {int(p): int(ours["offset"][ours["partition"] == p].max())
                for p in np.unique(ours["partition"])}  # fmt: skip

    def _committed(self, role: str, topic: str) -> dict[int, int]:
        asked = ConsumerGroupTopicPartitions(self.group(role))
        future = self.admin.list_consumer_group_offsets([asked])[asked.group_id]
        places = future.result(timeout=10).topic_partitions
        return {p.partition: p.offset for p in places if p.topic == topic}

    def group(self, role: str) -> str:
        """The consumer group of a loop: one of the door's, facts or features."""
        if role in _DOOR:
            return f"tidemill-{role}.{self.bus._epochs([_DOOR[role]])}"
        if role == "facts":
            return Epochs(self.bus, [EVENTS_BY_USER]).group("facts")
        name = consumer_group("features", self.store.stored_generation() or 0)
        return Epochs(self.bus, list(ENTITY_TOPIC.values())).group(name)

    def in_transaction(self) -> bool:
        """Whether messages lie there that belong to no committed transaction."""
        topics = (ADMITTED, EVENTS_BY_USER)
        return any(self._ends(t) != self._ends(t, self._committed_watch) for t in topics)


def _watch(servers: str, isolation: str) -> Consumer:
    """A consumer that only asks where partitions end."""
    return Consumer(
        {"bootstrap.servers": servers, "group.id": "chaos-watch", "isolation.level": isolation}
    )


def _number(measure: Callable[[], int]) -> int:
    """0 where nobody answers."""
    try:
        return measure()
    except _AWAY:
        return 0


_AWAY = (BusError, StoreDown, KafkaException, OSError, redis.RedisError, pl.exceptions.PolarsError)


def _true(condition: Callable[[], object]) -> bool:
    """A part that is down, or a file that is being merged, is no answer yet."""
    try:
        return bool(condition())
    except _AWAY:
        return False
