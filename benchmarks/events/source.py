"""JSON events for the path: a seeded stream, written to `behaviour` before the clock starts.

Knows columns, shares and the producer. 5 % of the events are late, 1 % come twice (up to
50,000 events apart, so also in different batches), and 5 % carry the signed token of an
impression. Messages are keyed by user, as some baselines require. Does not know the path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from confluent_kafka import Producer

from benchmarks.events.declared import with_declared
from benchmarks.features.events import Stream, make_events
from streams.contract.clock import DAY_MS
from streams.contract.events import KINDS
from streams.contract.impression import Impression, sign
from streams.contract.topics import (
    BEHAVIOUR,
    EVENTS_BY_AUTHOR,
    EVENTS_BY_ITEM,
    EVENTS_BY_QUERY,
    EVENTS_BY_USER,
)

CHUNK = 100_000
DUPLICATE_SHARE, TOKEN_SHARE, MAX_DISTANCE = 0.01, 0.05, 50_000
TOKENS = 10_000
_COLUMN = {
    EVENTS_BY_ITEM: "video_id",
    EVENTS_BY_AUTHOR: "author_id",
    EVENTS_BY_QUERY: "query",
}


@dataclass(frozen=True)
class Written:
    """What was written to `behaviour`: messages, duplicates among them, and bytes."""

    messages: int = 0
    duplicates: int = 0
    bytes: int = 0
    by_topic: tuple[tuple[str, int], ...] = ()
    shown: int = 0

    def plus(self, other: Written) -> Written:
        mine, theirs = dict(self.by_topic), dict(other.by_topic)
        topics = tuple((t, mine.get(t, 0) + n) for t, n in theirs.items())
        return Written(
            self.messages + other.messages,
            self.duplicates + other.duplicates,
            self.bytes + other.bytes,
            topics,
            self.shown + other.shown,
        )

    def expected(self, topic: str) -> int:
        """Events that the consumers of one topic receive."""
        return dict(self.by_topic).get(topic, 0)


@dataclass(frozen=True)
class Messages:
    """Messages in the order of sending."""

    keys: list[bytes]
    values: list[bytes]
    written: Written


class Source:
    """Chunks of events whose times end now (wall clock), each with new ids.

    declared: with the signals of `benchmarks.events.declared`.
    """

    def __init__(
        self, stream: Stream, key: bytes, seed: int = 0, *, declared: bool = False
    ) -> None:
        self.stream, self.declared = stream, declared
        self._seed = seed
        self._tokens = _tokens(stream, key)

    def messages(self, n: int) -> Messages:
        frame, rng = self.frame(n)
        sent = frame[sending_order(n, rng)]
        values = json_lines(sent)
        keys = [user.encode() for user in sent["user_id"].to_list()]
        return Messages(keys, values, _written(frame, len(sent), sum(map(len, values))))

    def frame(self, n: int) -> tuple[pl.DataFrame, np.random.Generator]:
        """`n` events in the order of arrival, and the generator for further draws."""
        self._seed += 1
        rng = np.random.default_rng(self._seed)
        shift = int(time.time() * 1000) - self.stream.end_ms
        frame = pl.DataFrame(make_events(self.stream, n, self._seed)).select(
            "event_id", "user_id", "video_id", "author_id", "query", "dwell_ms",
            pl.col("kind").replace_strict(dict(enumerate(KINDS)), return_dtype=pl.String),
            event_time_ms=pl.col("event_time_ms") + shift, amount_cents=pl.lit(None, pl.Int64),
        )  # fmt: skip
        frame = _with_tokens(frame, self._tokens, rng)
        return (with_declared(frame, rng) if self.declared else frame), rng


def sending_order(n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `n` events, some a second time up to `MAX_DISTANCE` events later."""
    again = rng.choice(n, int(n * DUPLICATE_SHARE), replace=False)
    at = np.concatenate([np.arange(n), again + rng.integers(1, MAX_DISTANCE, len(again))])
    return np.concatenate([np.arange(n), again])[np.argsort(at, kind="stable")]


def json_lines(frame: pl.DataFrame) -> list[bytes]:
    return [line.encode() for line in frame.select(_json(frame.columns))["line"].to_list()]


def preload(servers: str, source: Source, n: int, report: Callable[[str], None]) -> Written:
    """Writes `n` events and their duplicates; returns when the broker has acknowledged them."""
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 20, "batch.size": 1_000_000,
         "queue.buffering.max.messages": 1_000_000, "queue.buffering.max.kbytes": 400_000}
    )  # fmt: skip
    written = Written()
    for size in _sizes(n):
        messages = source.messages(size)
        send(producer, messages.keys, messages.values)
        producer.flush()
        written = written.plus(messages.written)
        if written.messages % 1_000_000 < CHUNK:
            report(f"{written.messages:,} of {n:,} events written ({written.messages / n:.0%})")
    return written


def send(producer: Producer, keys: list[bytes], values: list[bytes]) -> None:
    messages = [{"key": k, "value": v} for k, v in zip(keys, values, strict=True)]
    if producer.produce_batch(BEHAVIOUR, messages) != len(messages):
        raise RuntimeError("the producer's queue did not take the events")


def _sizes(n: int) -> Iterator[int]:
    for start in range(0, n, CHUNK):
        yield min(CHUNK, n - start)


def _tokens(stream: Stream, key: bytes) -> pl.DataFrame:
    """Of impressions served a day before the first event, late ones included: no event is taken to
    precede what it answers, and none comes after a token's life."""
    served_at_ms = int(time.time() * 1000) - stream.span_ms - DAY_MS
    rng = np.random.default_rng(1)
    rows = []
    for i in range(TOKENS):
        user, item = f"user {rng.integers(stream.users)}", int(rng.integers(stream.items))
        impression = Impression(
            request_id=f"request {i}", surface="feed", user_id=user, video_id=f"video {item}",
            slot=0, propensity=0.5, release="r1", served_at_ms=served_at_ms,
        )  # fmt: skip
        author = f"author {item % stream.authors}"
        rows.append((user, f"video {item}", author, sign(impression, key)))
    names = ["user_id", "video_id", "author_id", "impression"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _with_tokens(
    frame: pl.DataFrame, tokens: pl.DataFrame, rng: np.random.Generator
) -> pl.DataFrame:
    """5 % of the events become a `shown`, a play or a like of an impression."""
    n = len(frame)
    picked = pl.Series(rng.random(n) < TOKEN_SHARE)
    token = tokens[rng.integers(0, len(tokens), n)]
    kind = pl.Series(rng.choice(["shown", "play", "like"], n))
    own = [
        pl.when(picked).then(token[name]).otherwise(pl.col(name)).alias(name)
        for name in ("user_id", "video_id", "author_id")
    ]
    return frame.with_columns(
        *own,
        kind=pl.when(picked).then(kind).otherwise(pl.col("kind")),
        query=pl.when(picked).then(None).otherwise(pl.col("query")),
        dwell_ms=pl.when(picked & (kind != "play")).then(0).otherwise(pl.col("dwell_ms")),
        impression=pl.when(picked).then(token["impression"]).otherwise(None),
    )


def _json(columns: Sequence[str]) -> pl.Expr:
    """One JSON object a row, without the fields that an event does not have."""
    lit = pl.lit
    parts = [
        *(lit('{"event_id":"'), pl.col("event_id"), lit('","user_id":"'), pl.col("user_id")),
        *(lit('","kind":"'), pl.col("kind"), lit('","event_time_ms":')),
        *(pl.col("event_time_ms").cast(pl.String), lit(',"surface":"feed"')),
    ]
    for name in ("video_id", "author_id", "query", "impression"):
        parts.append(_optional(f',"{name}":"', pl.col(name), '"'))
    dwell = pl.when(pl.col("dwell_ms") > 0).then(pl.col("dwell_ms").cast(pl.String))
    parts.append(_optional(',"dwell_ms":', dwell, ""))
    parts.append(_optional(',"amount_cents":', pl.col("amount_cents").cast(pl.String), ""))
    if "value" in columns:
        parts.append(_optional(',"value":', pl.col("value").cast(pl.String), ""))
    return pl.concat_str([*parts, lit("}")]).alias("line")


def _optional(before: str, value: pl.Expr, after: str) -> pl.Expr:
    whole = pl.concat_str([pl.lit(before), value, pl.lit(after)])
    return pl.when(value.is_not_null()).then(whole).otherwise(pl.lit(""))


def _written(frame: pl.DataFrame, sent: int, size: int) -> Written:
    named = frame.select(pl.col(c).count() for c in _COLUMN.values()).row(0)
    by_topic = ((EVENTS_BY_USER, sent), *zip(_COLUMN, named, strict=True))
    shown = int((frame["kind"] == "shown").sum())
    return Written(sent, sent - len(frame), size, by_topic, shown)
