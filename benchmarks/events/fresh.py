"""How soon an event is readable: probes amid a steady flow, seen through the reader.

Knows producing at a rate and reading rows. A probe is one like of a user of its own; it is
fresh when the store's read counts it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import orjson
from confluent_kafka import Producer

from benchmarks.events.source import Lines, Source, send
from features.online.redis_store import FeastFeatureStore
from features.store import StoreDown
from streams.contract.topics import BEHAVIOUR

TICK_S, PROBE_EVERY_S, LOOK_EVERY_S = 0.01, 0.04, 0.008
LOOKED_FOR = 16  # probes at once, the oldest; to read many more would take CPU from the path
MEANWHILE_S, AFTER_S = 120.0, 3.0


@dataclass
class Probes:
    """Sent and seen times (monotonic s) by probe user."""

    sent: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Probes that nobody has seen."""
        return len(self.sent) - len(self.seen)

    def percentiles_ms(self) -> tuple[float, float]:
        """p50 and p99; a probe that was never seen counts as infinitely late."""
        late = [self.seen.get(user, np.inf) - at for user, at in self.sent.items()]
        p50, p99 = np.percentile(np.array(late) * 1000, [50, 99], method="higher")
        return float(p50), float(p99)

    def fresh_after(self, moment: float, within_s: float) -> float:
        """Seconds from `moment` until a probe sent after it was seen within `within_s`."""
        good = [
            seen
            for user, seen in list(self.seen.items())
            if self.sent[user] > moment and seen - self.sent[user] <= within_s
        ]
        return min(good) - moment if good else float("inf")

    def latest_s(self, since: float, until: float) -> float:
        """The longest time that a probe sent between these moments took; inf for one not seen."""
        sent = {user: at for user, at in list(self.sent.items()) if since <= at <= until}
        return max((self.seen.get(user, np.inf) - at for user, at in sent.items()), default=0.0)

    def usual_s(self) -> float:
        """p99 of the probes that have been seen so far; 0 before the first."""
        took = [seen - self.sent[user] for user, seen in list(self.seen.items())]
        return float(np.percentile(took, 99, method="higher")) if took else 0.0


@dataclass(frozen=True)
class Flow:
    probes: Probes
    events: int
    seconds: float


def flow(
    servers: str,
    store: FeastFeatureStore,
    source: Source,
    per_s: int,
    seconds: float,
    meanwhile: Callable[[Probes], None] = lambda _: None,
    settle_s: float = 3.0,
) -> Flow:
    """Sends `per_s` events a second with probes among them, and looks for the probes.

    `meanwhile` runs in this thread once the flow has begun; the flow goes on until `AFTER_S`
    after its end, at least.
    """
    lines = source.lines(min(int(per_s * seconds), 600_000))
    probes, stop = Probes(), threading.Event()
    looking = threading.Thread(target=_look, args=(store, probes, stop))
    sent, began = [0], time.monotonic()
    until = [began + MEANWHILE_S]
    sending = threading.Thread(target=_send, args=(servers, lines, probes, per_s, until, sent))
    looking.start()
    sending.start()
    try:
        meanwhile(probes)
    finally:
        until[0] = max(began + seconds, time.monotonic() + AFTER_S)
    sending.join()
    took = time.monotonic() - began
    _wait_for_all(probes, settle_s)
    stop.set()
    looking.join()
    return Flow(probes, sent[0], took)


def _wait_for_all(probes: Probes, settle_s: float) -> None:
    deadline = time.monotonic() + settle_s
    while len(probes.seen) < len(probes.sent) and time.monotonic() < deadline:
        time.sleep(0.02)


def _send(
    servers: str, lines: Lines, probes: Probes, per_s: int, until: list[float], sent: list[int]
) -> None:
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 1})
    began = time.monotonic()
    next_probe, name = began, f"probe-{time.time_ns()}"
    while (now := time.monotonic()) < until[0]:
        due = int((now - began) * per_s) - sent[0]
        at = sent[0] % max(1, len(lines.values) - due)
        send(producer, lines.keys[at : at + due], lines.values[at : at + due])
        sent[0] += due
        if now >= next_probe:
            user = f"{name}-{len(probes.sent)}"
            probes.sent[user] = time.monotonic()
            producer.produce(BEHAVIOUR, _like(user), user.encode())
            next_probe += PROBE_EVERY_S
        producer.poll(0)
        time.sleep(max(0.0, TICK_S - (time.monotonic() - now)))
    producer.flush(30)


def _like(user: str) -> bytes:
    now_ms = int(time.time() * 1000)
    return orjson.dumps({"event_id": user, "user_id": user, "kind": "like", "video_id": "video 0",
                         "event_time_ms": now_ms})  # fmt: skip


def _look(store: FeastFeatureStore, probes: Probes, stop: threading.Event) -> None:
    while not stop.is_set():
        open_ = [user for user in list(probes.sent) if user not in probes.seen]
        open_ = open_[:LOOKED_FOR]
        if open_:
            _note_seen(store, probes, open_)
        stop.wait(LOOK_EVERY_S)


def _note_seen(store: FeastFeatureStore, probes: Probes, users: list[str]) -> None:
    try:
        counted = store.read("user", users, int(time.time() * 1000)).columns["like_count_all"]
    except StoreDown:
        return
    now = time.monotonic()
    probes.seen |= {user: now for user, n in zip(users, counted.tolist(), strict=True) if n}
