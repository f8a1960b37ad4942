"""Freshness: how soon an event can be read, measured with probes in a steady flow.

Knows producing at a rate and reading rows. A probe is a like of a new user; it is seen when
the store's read counts it. Does not know the path's processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import orjson
from confluent_kafka import Producer

from benchmarks.events.source import Messages, Source, send
from features.online.redis_store import FeastFeatureStore
from features.store import StoreDown
from streams.contract.topics import BEHAVIOUR

TICK_S, PROBE_EVERY_S, READ_EVERY_S = 0.01, 0.04, 0.008
READ_PROBES = 16  # at once, the oldest; reading more would take CPU from the path
LONGEST_FLOW_S, AFTER_S = 120.0, 3.0


@dataclass
class Probes:
    """Sent and seen times (monotonic s) by probe user."""

    sent: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """How many probes were never seen."""
        return len(self.sent) - len(self.seen)

    def percentiles_ms(self) -> tuple[float, float]:
        """p50 and p99; a probe that was never seen counts as infinite."""
        delays = [self.seen.get(user, np.inf) - at for user, at in self.sent.items()]
        p50, p99 = np.percentile(np.array(delays) * 1000, [50, 99], method="higher")
        return float(p50), float(p99)

    def fresh_after(self, moment: float, within_s: float) -> float:
        """Seconds from `moment` until a probe sent after it was seen within `within_s`."""
        fresh = [
            seen
            for user, seen in list(self.seen.items())
            if self.sent[user] > moment and seen - self.sent[user] <= within_s
        ]
        return min(fresh) - moment if fresh else float("inf")

    def longest_s(self, since: float, until: float) -> float:
        """The longest delay of probes sent between these moments; inf if one was not seen."""
        sent = {user: at for user, at in list(self.sent.items()) if since <= at <= until}
        return max((self.seen.get(user, np.inf) - at for user, at in sent.items()), default=0.0)

    def p99_s(self) -> float:
        """p99 of the probes seen so far; 0 before the first."""
        delays = [seen - self.sent[user] for user, seen in list(self.seen.items())]
        return float(np.percentile(delays, 99, method="higher")) if delays else 0.0


@dataclass(frozen=True)
class FlowResult:
    """The probes of a flow, the events sent and their time."""

    probes: Probes
    events: int
    seconds: float


def run_flow(
    servers: str,
    store: FeastFeatureStore,
    source: Source,
    per_s: int,
    seconds: float,
    meanwhile: Callable[[Probes], None] = lambda _: None,
    last_wait_s: float = 3.0,
) -> FlowResult:
    """Sends `per_s` events a second with probes among them, and reads the probes.

    `meanwhile` runs in this thread during the flow, which continues for at least `AFTER_S`
    after it.
    """
    messages = source.messages(min(int(per_s * seconds), 600_000))
    probes, stop = Probes(), threading.Event()
    reading = threading.Thread(target=_read_probes, args=(store, probes, stop))
    sent, began = [0], time.monotonic()
    until = [began + LONGEST_FLOW_S]
    sending = threading.Thread(target=_send, args=(servers, messages, probes, per_s, until, sent))
    reading.start()
    sending.start()
    try:
        meanwhile(probes)
    finally:
        until[0] = max(began + seconds, time.monotonic() + AFTER_S)
    sending.join()
    took = time.monotonic() - began
    _wait_for_all(probes, last_wait_s)
    stop.set()
    reading.join()
    return FlowResult(probes, sent[0], took)


def _wait_for_all(probes: Probes, last_wait_s: float) -> None:
    deadline = time.monotonic() + last_wait_s
    while len(probes.seen) < len(probes.sent) and time.monotonic() < deadline:
        time.sleep(0.02)


def _send(
    servers: str,
    messages: Messages,
    probes: Probes,
    per_s: int,
    until: list[float],
    sent: list[int],
) -> None:
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 1})
    began = time.monotonic()
    next_probe, name = began, f"probe-{time.time_ns()}"
    while (now := time.monotonic()) < until[0]:
        due = int((now - began) * per_s) - sent[0]
        at = sent[0] % max(1, len(messages.values) - due)
        send(producer, messages.keys[at : at + due], messages.values[at : at + due])
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


def _read_probes(store: FeastFeatureStore, probes: Probes, stop: threading.Event) -> None:
    while not stop.is_set():
        unseen = [user for user in list(probes.sent) if user not in probes.seen]
        if unseen:
            _record_seen(store, probes, unseen[:READ_PROBES])
        stop.wait(READ_EVERY_S)


def _record_seen(store: FeastFeatureStore, probes: Probes, users: list[str]) -> None:
    try:
        counted = store.read("user", users, int(time.time() * 1000)).columns["like_count_all"]
    except StoreDown:
        return
    now = time.monotonic()
    probes.seen |= {user: now for user, n in zip(users, counted.tolist(), strict=True) if n}
