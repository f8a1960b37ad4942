"""What the online reader would have given at past moments: the point-in-time join.

Knows events and labels. Does not know stores. Values are those of the kernel and of
`finish`; laws in the tests hold the three together.

An event counts at a label when it had *arrived* before the label's time (strictly: a
label never sees itself, nor what came in its own millisecond), and in the windows that
its *event time* falls into. So a late event is missing at the labels between its time
and its arrival, exactly as it was online.

No row is folded: an event counts in one run of its entity's labels per window
(`features.label_runs`), and a last-n list is a range of the entity's events
(`features.label_lists`).
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from features.definitions import DEFINITIONS, EntityDefinition
from features.finish import uncollected
from features.fold import READER_SLACK_MS, event_hashes
from features.label_lists import lists_at
from features.label_runs import Asked, History, counts_at, newest_at
from features.replay_join import replayed
from features.store import EntityName, FeatureFrame, Status
from streams.events import KIND_CODE
from streams.schema import EVENT_SCHEMA


def features_as_of(events: pl.DataFrame, labels: pl.DataFrame, entity: EntityName) -> FeatureFrame:
    """Features of `labels[id]` at `labels["time_ms"]`, one row per label, in their order.

    Args:
        events: `EVENT_SCHEMA`'s columns (absent ones are null); `kind` as a code or as a
            string. Rows marked duplicate are not counted.
        labels: the entity's id column (`user_id`, `video_id`, `author_id` or `query`) and
            `time_ms`, int64.
    """
    definition = DEFINITIONS[entity]
    ids = labels[definition.id_column]
    times = labels["time_ms"].to_numpy().astype(np.int64)
    codes = ids.unique().drop_nulls().sort()
    mine = _labelled(definition, events, codes)
    if _needs_replay(mine):
        return replayed(definition, events, ids.to_list(), times)
    with uncollected():
        return _joined(definition, mine, ids, codes, times)


def _joined(
    definition: EntityDefinition,
    mine: pl.DataFrame,
    ids: pl.Series,
    codes: pl.Series,
    times: np.ndarray,
) -> FeatureFrame:
    asked, order = _asked(ids, codes, times)
    history = _history(mine)
    columns = counts_at(definition, history, asked) | lists_at(definition, history, asked)
    last = newest_at(history, asked)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    ordered = {name: columns[name][back] for name in definition.columns}
    status = _status(definition, last, asked.time)[back]
    return FeatureFrame(definition.name, tuple(ids.to_list()), status, last[back], ordered)


def _status(definition: EntityDefinition, last: np.ndarray, now: np.ndarray) -> np.ndarray:
    status = np.where(last == 0, Status.ABSENT, Status.PRESENT).astype(np.uint8)
    status[(last > 0) & (now - last > definition.ttl_ms)] = Status.EXPIRED
    return status


def _labelled(definition: EntityDefinition, events: pl.DataFrame, codes: pl.Series) -> pl.DataFrame:
    """The events of labelled entities, with `row` as the place of their id in `codes`."""
    wanted = {definition.id_column, "user_id", "event_id", "kind", "event_time_ms"}
    wanted |= {"ingested_at_ms", *(f.source for f in definition.lists)}
    wanted |= {s for c in definition.counters if (s := getattr(c, "source", None))}
    have = events.select(*sorted(wanted & set(events.columns)), _kept(events))
    absent = [pl.lit(None, _dtype(name)).alias(name) for name in sorted(wanted - set(have.columns))]
    if have.schema["kind"] in (pl.String, pl.Categorical, pl.Enum):
        named = pl.col("kind").cast(pl.String)
        have = have.with_columns(named.replace_strict(KIND_CODE, return_dtype=pl.UInt8))
    known = pl.DataFrame({definition.id_column: codes}).with_row_index("row")
    return (
        have.filter("kept", pl.col("event_time_ms") > 0)
        .with_columns(*absent)
        .join(known, on=definition.id_column, how="inner", maintain_order="none")
    )


def _kept(events: pl.DataFrame) -> pl.Expr:
    marked = pl.col("duplicate") if "duplicate" in events.columns else pl.lit(False)
    return (~marked).alias("kept")


def _dtype(name: str) -> pl.DataType:
    empty = pa.table({name: pa.array([], EVENT_SCHEMA.field(name).type)})
    return pl.DataFrame(empty).schema[name]


def _needs_replay(events: pl.DataFrame) -> bool:
    """Whether an event comes twice unmarked, or one is dated far ahead of its arrival."""
    ahead = (events["event_time_ms"] - events["ingested_at_ms"]).max()
    if isinstance(ahead, int) and ahead > READER_SLACK_MS:
        return True
    # A collision of these 64 bits costs time and never a wrong value.
    mixed = pl.col("user_id").hash(1) ^ pl.col("event_id").hash(2)
    return bool(events.select(mixed.n_unique()).item() != len(events))


def _asked(ids: pl.Series, codes: pl.Series, times: np.ndarray) -> tuple[Asked, np.ndarray]:
    """The labels by entity and time, and the order that brought them there."""
    known = pl.DataFrame({"id": codes}).with_row_index("row")
    found = pl.DataFrame({"id": ids}).join(known, on="id", how="left", maintain_order="left")
    row = found["row"].fill_null(len(codes)).to_numpy().astype(np.int64)
    order = np.lexsort((times, row))
    return Asked(row[order], times[order]), order


def _history(events: pl.DataFrame) -> History:
    """The events by entity, event time and hash, oldest first."""
    row = events["row"].to_numpy().astype(np.int64)
    time = events["event_time_ms"].to_numpy().astype(np.int64)
    order = _by_row_and_time(row, time)
    row, time = row[order], time[order]
    tied = np.zeros(len(row), bool)
    tied[1:] = (row[1:] == row[:-1]) & (time[1:] == time[:-1])
    tied[:-1] |= tied[1:]
    at = np.flatnonzero(tied)
    if len(at):
        hashes = event_hashes(events[["user_id", "event_id"]][order[at]].to_arrow())
        order[at] = order[at][np.lexsort((hashes, time[at], row[at]))]
    arrival = events["ingested_at_ms"].to_numpy()[order].astype(np.int64)
    return History(row, time, arrival, events["kind"].to_numpy()[order], order, events)


def _by_row_and_time(row: np.ndarray, time: np.ndarray) -> np.ndarray:
    if len(row) == 0:
        return np.zeros(0, np.int64)
    since = time - time.min()
    bits = int(since.max()).bit_length()
    if int(row.max()).bit_length() + bits > 63:
        return np.lexsort((time, row))
    return np.argsort((row << bits) + since)
