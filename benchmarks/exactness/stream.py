"""The events sent: some late, some twice, some malformed.

Knows the generator of `benchmarks.events` and the forms of malformed events. Event times are
distinct, so that no list of the newest depends on ties. Does not know what is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import polars as pl

from benchmarks.events.cluster import KEY
from benchmarks.events.source import CHUNK, Source, json_lines, sending_order
from benchmarks.features.events import WITH_DWELL, Stream

MALFORMED, WITH_AMOUNT = 0.001, ("cart", "order", "goods_returned")
SPAN_MS_AN_EVENT, AT_LEAST_MS = 2, 60_000


@dataclass(frozen=True)
class Sent:
    """`events` (each counts once) and `order`: rows of `events` as they are sent, with copies.

    `broken`: row of `events` -> the malformed value sent instead. `now_ms`: the newest time.
    """

    events: pl.DataFrame
    order: np.ndarray
    broken: dict[int, bytes]
    now_ms: int

    @property
    def copies(self) -> np.ndarray:
        """int64 [events]: how often each is sent."""
        return np.bincount(self.order, minlength=len(self.events))

    def messages(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Keys and values in the order of sending, in chunks."""
        for start in range(0, len(self.order), CHUNK):
            rows = self.order[start : start + CHUNK]
            part = self.events[rows]
            values = [
                self.broken.get(row, line)
                for row, line in zip(rows.tolist(), json_lines(part), strict=True)
            ]
            yield [user.encode() for user in part["user_id"].to_list()], values

    def repairs(self) -> dict[bytes, bytes]:
        """Malformed value -> the correct one."""
        rows = list(self.broken)
        lines = json_lines(self.events[rows])
        return {self.broken[row]: line for row, line in zip(rows, lines, strict=True)}


def stream(n: int, seed: int, *, declared: bool = False) -> Sent:
    """`n` events: 5 % up to five hours late, 1 % sent twice, 0.1 % malformed.

    declared: some of them of the signals of `benchmarks.events.declared`.
    """
    span_ms = max(AT_LEAST_MS, SPAN_MS_AN_EVENT * n)
    frame, rng = Source(Stream(span_ms=span_ms), KEY, seed, declared=declared).frame(n)
    times = _distinct(frame["event_time_ms"].to_numpy())
    spent = pl.Series(rng.integers(0, 10_000, n))
    events = frame.with_columns(
        _of("dwell_ms", pl.col("dwell_ms"), WITH_DWELL),
        _of("amount_cents", spent, WITH_AMOUNT),
        pl.Series("event_time_ms", times), origin=pl.lit("live"),
    )  # fmt: skip
    order = sending_order(n, rng)
    once = np.flatnonzero(np.bincount(order, minlength=n) == 1)
    rows = np.sort(rng.choice(once, max(len(FORMS), int(n * MALFORMED)), replace=False))
    lines = json_lines(events[rows])
    broken = {row: FORMS[i % len(FORMS)](lines[i]) for i, row in enumerate(rows.tolist())}
    return Sent(events, order, broken, int(times.max()))


def _of(name: str, value: pl.Expr | pl.Series, kinds: tuple[str, ...]) -> pl.Expr:
    return pl.when(pl.col("kind").is_in(kinds)).then(value).alias(name)


def _distinct(times: np.ndarray) -> np.ndarray:
    """int64 [N]: close to `times`, in their order, distinct and none newer."""
    order, steps = np.argsort(times, kind="stable"), np.arange(len(times))
    rising = np.maximum.accumulate(times[order] - steps) + steps
    found = np.empty_like(times)
    found[order] = rising - max(0, int(rising[-1] - times.max()))
    return found


def _edited(**change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def edit(line: bytes) -> bytes:
        event = orjson.loads(line)
        return orjson.dumps(event | {name: new(event[name]) for name, new in change.items()})

    return edit


FORMS: tuple[Callable[[bytes], bytes], ...] = (
    lambda line: line[:-1],
    lambda line: b"\xff" + line,
    _edited(kind=lambda _: "unknown"),
    _edited(event_time_ms=lambda ms: ms // 1_000),
    _edited(event_time_ms=lambda ms: ms * 1_000),
    _edited(event_time_ms=str),
    _edited(user_id=lambda _: ""),
)
