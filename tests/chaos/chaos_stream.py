"""A seeded stream of events as producers send it: with late, duplicate and malformed ones.

Knows what was sent and what must become of it. Does not know the platform, except what a producer
must know: the event contract and the impression token.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from streams.contract.impression import Impression, sign

KEY = bytes(range(32))  # signs the impressions; the stack under test has the same
USERS, VIDEOS, AUTHORS, QUERIES = 120, 50, 12, 20
LATE, DOUBLED, MALFORMED, FUTURE = 0.05, 0.03, 0.01, 0.005
HOUR_MS = 3_600_000
# Event times are distinct, so that no list depends on how ties are broken.
STEP_MS = 11

WATCHED = ("shown", "play", "long_view", "like", "skip")
OTHERS = ("share", "follow", "cart", "order", "query_shown", "query_click", "search")


@dataclass
class Stream:
    """`values` in the order of sending.

    `good`: one dictionary per event that must count once; `copies`: event id -> how often it was
    sent; `bad`: values that must become dead letters, each as often as it was sent; `now_ms`: no
    good event is newer.
    """

    now_ms: int
    values: list[bytes | None] = field(default_factory=list)
    good: list[dict[str, Any]] = field(default_factory=list)
    bad: list[bytes | None] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows the log must hold, duplicates included."""
        return sum(self.copies.values())


def stream(rng: random.Random, events: int) -> Stream:
    """About `events` messages. The same `rng` state gives the same stream, up to its `now`."""
    made = Stream(now_ms=time.time_ns() // 1_000_000 - 1_000)
    times = _times(rng, made.now_ms, events)
    while len(made.good) < events:
        for event in _visit(rng, times, len(made.good)):
            made.good.append(event)
            made.values.append(orjson.dumps(event))
    _disorder(rng, made.values)
    _double(rng, made)
    made.bad = [_malformed(rng, made.now_ms, n) for n in range(int(events * MALFORMED))]
    made.bad += [_future(rng, made.now_ms, n) for n in range(int(events * FUTURE))]
    for value in made.bad:
        made.values.insert(rng.randrange(len(made.values) + 1), value)
    return made


def halves(made: Stream) -> tuple[list[bytes | None], list[bytes | None]]:
    """Both halves of the values, without duplicates of the first in the second."""
    middle = len(made.values) // 2
    before, after = made.values[:middle], made.values[middle:]
    known, bad = {*before}, {*made.bad}
    crossing = [value for value in after if value in known and value not in bad]
    for value in crossing:
        made.copies[orjson.loads(value or b"")["event_id"]] -= 1
    return before, [value for value in after if value not in known or value in bad]


def _times(rng: random.Random, now_ms: int, events: int) -> list[int]:
    """Distinct times, a twentieth of them hours or days late, in order of use."""
    count = events + 10
    fresh = [now_ms - STEP_MS * (count - n) for n in range(count)]
    return [t - rng.randrange(2, 72) * HOUR_MS if rng.random() < LATE else t for t in fresh]


def _visit(rng: random.Random, times: list[int], start: int) -> list[dict[str, Any]]:
    """What one user does with one video, in part after an impression."""
    user, video = f"u{rng.randrange(USERS)}", int(VIDEOS * rng.random() ** 2)
    base: dict[str, Any] = {"user_id": user, "origin": "live", "surface": "feed"}
    on_video = {"video_id": f"v{video}", "author_id": f"a{video % AUTHORS}"}
    kinds = rng.sample(WATCHED, rng.randint(1, 4)) + rng.sample(OTHERS, rng.randint(0, 1))
    if rng.random() < 0.3:
        served = min(times[start : start + len(kinds)]) - 1
        base["impression"] = _token(start, user, f"v{video}", served)
    events = []
    for number, kind in enumerate(kinds, start):
        event = base | {"event_id": f"e{number:06d}", "kind": kind, "event_time_ms": times[number]}
        if kind != "search":
            event |= on_video
        if kind in ("query_shown", "query_click", "search"):
            event["query"] = f"q{rng.randrange(QUERIES)}"
        if kind in ("play", "long_view", "skip"):
            event["dwell_ms"] = rng.randrange(60_000)
        if kind in ("cart", "order"):
            event["amount_cents"] = rng.randrange(10_000)
        events.append(event)
    return events


def _token(number: int, user: str, video: str, served_at_ms: int) -> str:
    impression = Impression(
        request_id=f"r{number}", surface="feed", user_id=user, video_id=video, slot=number % 10,
        propensity=0.25, release="chaos-1", served_at_ms=served_at_ms,
    )  # fmt: skip
    return sign(impression, KEY)


def _disorder(rng: random.Random, values: list[bytes | None]) -> None:
    """Shuffles within windows, so that a part of the stream still differs from the whole."""
    order = sorted(range(len(values)), key=lambda at: at + rng.randrange(400))
    values[:] = [values[at] for at in order]


def _double(rng: random.Random, made: Stream) -> None:
    """Sends some events again: at once, or long after, when a process has been killed since."""
    made.copies = {event["event_id"]: 1 for event in made.good}
    for _ in range(int(len(made.good) * DOUBLED)):
        at = rng.randrange(len(made.values))
        value = made.values[at]
        again = at + 1 + int((len(made.values) - at) * rng.random() ** 2)
        made.values.insert(again, value)
        made.copies[orjson.loads(value or b"")["event_id"]] += 1


def _malformed(rng: random.Random, now_ms: int, number: int) -> bytes | None:
    plain = {"event_id": f"bad{number}", "user_id": "u1", "kind": "play", "video_id": "v1",
             "event_time_ms": now_ms}  # fmt: skip
    return rng.choice(
        [
            f"no json {number}".encode(),
            b"\xff\xfe" + bytes([number % 256]),
            None,
            orjson.dumps(plain | {"kind": "stare"}),
            orjson.dumps(plain | {"event_time_ms": now_ms // 1_000}),
            orjson.dumps(plain | {"event_time_ms": now_ms * 1_000}),
            orjson.dumps(plain | {"user_id": ""}),
            orjson.dumps({name: v for name, v in plain.items() if name != "video_id"}),
        ]
    )


def _future(rng: random.Random, now_ms: int, number: int) -> bytes:
    ahead = now_ms + rng.randrange(24, 48) * HOUR_MS
    return orjson.dumps({"event_id": f"future{number}", "user_id": "u2", "kind": "play",
                         "video_id": "v2", "event_time_ms": ahead})  # fmt: skip
