"""Events for the feature benchmarks: a seeded stream with late arrivals, in batches.

Knows columns and distributions. 5 % arrive up to five hours late; items are drawn by Zipf's
law with exponent one. Does not know what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.events import KIND_CODE, KINDS
from streams.contract.schema import EVENT_SCHEMA

T0_MS = 1_700_000_000_000
SHARES = {
    "shown": 0.40,
    "skip": 0.12,
    "play": 0.18,
    "long_view": 0.08,
    "like": 0.07,
    "share": 0.01,
    "follow": 0.01,
    "query_shown": 0.05,
    "query_click": 0.03,
    "search": 0.02,
    "cart": 0.02,
    "order": 0.01,
}
WITH_QUERY = ("query_shown", "query_click", "search")
WITH_DWELL = ("skip", "play", "long_view")


@dataclass(frozen=True)
class Stream:
    """How many entities act, over how long. 20,000 items of 2,000 authors, 5,000 queries."""

    users: int = 50_000
    items: int = 20_000
    authors: int = 2_000
    queries: int = 5_000
    span_ms: int = 6 * DAY_MS

    @property
    def end_ms(self) -> int:
        return T0_MS + self.span_ms


def make_events(stream: Stream, n: int, seed: int) -> pa.Table:
    """`n` events of `EVENT_SCHEMA`, in the order of arrival."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(KINDS), n, p=[SHARES[k] for k in KINDS]).astype(np.uint8)
    arrival = T0_MS + np.sort(rng.integers(0, stream.span_ms, n))
    late = rng.random(n) < 0.05
    delay = np.where(late, rng.integers(0, 5 * HOUR_MS, n), rng.integers(0, 2000, n))
    item = np.minimum((stream.items ** rng.random(n)).astype(np.int64), stream.items - 1)
    query = np.minimum((stream.queries ** rng.random(n)).astype(np.int64), stream.queries - 1)
    has_item, has_query = ~_of(kind, "search"), _of(kind, *WITH_QUERY)
    dwell = np.where(_of(kind, *WITH_DWELL), rng.integers(0, 60_000, n), 0)
    columns = {
        "event_id": pc.binary_join_element_wise(
            pa.array(np.arange(n)).cast(pa.string()), pa.scalar(f"{seed:08x}"), "-"
        ),
        "user_id": _names("user", rng.integers(0, stream.users, n)),
        "kind": pa.array(kind),
        "event_time_ms": pa.array(arrival - delay),
        "ingested_at_ms": pa.array(arrival),
        "surface": _names("feed", np.zeros(n, np.int64)),
        "origin": _names("live", np.zeros(n, np.int64)),
        "video_id": _names("video", item, has_item),
        "author_id": _names("author", item % stream.authors, has_item),
        "query": _names("some query", query, has_query),
        "dwell_ms": pa.array(dwell.astype(np.int32)),
        "late": pa.array(late),
        "duplicate": pa.array(np.zeros(n, bool)),
        "source_partition": pa.array(np.zeros(n, np.int32)),
        "source_offset": pa.array(np.arange(n)),
    }
    filled = [columns.get(f.name, pa.nulls(n, f.type)) for f in EVENT_SCHEMA]
    return pa.table(filled, schema=EVENT_SCHEMA)


def _of(kind: np.ndarray, *kinds: str) -> np.ndarray:
    return np.isin(kind, [KIND_CODE[k] for k in kinds])


def _names(prefix: str, number: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    words = pa.array([f"{prefix} {i}" for i in range(int(number.max()) + 1)])
    mask = None if valid is None else ~valid
    places = pa.array(number.astype(np.int32), mask=mask)
    return pa.DictionaryArray.from_arrays(places, words).cast(pa.string())
