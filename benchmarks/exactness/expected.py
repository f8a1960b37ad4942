"""The expected rows and feedback, counted by polars from the events sent.

Knows the declarations (names, kinds, windows). Uses none of the code that folds or joins.
"""

from __future__ import annotations

from typing import Any

import orjson
import polars as pl

from features.definitions import DEFINITIONS, EntityDefinition, LastN, Sum, Window
from features.store import EntityName, FeatureStore
from streams.contract.declaration import contract
from streams.feedback.outcomes import FEEDBACK_TASKS

READ_ROWS = 2_000
_COLUMNS = {
    "event_id": pl.String, "user_id": pl.String, "kind": pl.String, "event_time_ms": pl.Int64,
    "video_id": pl.String, "author_id": pl.String, "query": pl.String, "dwell_ms": pl.Int64,
    "amount_cents": pl.Int64, "impression": pl.String, "origin": pl.String,
}  # fmt: skip


def frame(good: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(good, schema=_COLUMNS)


def expected_rows(events: pl.DataFrame, entity: EntityName, now_ms: int) -> pl.DataFrame:
    """The id column and every column of a read, for every id in the events."""
    definition = DEFINITIONS[entity]
    named = events.filter(pl.col(definition.id_column).is_not_null())
    table = named.select(pl.col(definition.id_column).unique().sort())
    for part in (*_counts(definition, named, now_ms), *_lists(definition, named)):
        table = table.join(part, on=definition.id_column, how="left", maintain_order="left")
    table = table.with_columns(pl.col(definition.count_columns).fill_null(0))
    lists = (*definition.text_list_columns, *definition.time_list_columns)
    return table.with_columns([pl.col(name).fill_null([]) for name in lists])


def _counts(definition: EntityDefinition, events: pl.DataFrame, now_ms: int) -> list[pl.DataFrame]:
    found = []
    for counter in definition.counters:
        what = pl.col(counter.source).fill_null(0).sum() if isinstance(counter, Sum) else pl.len()
        for window in counter.windows:
            inside = events.filter(pl.col("kind").is_in(counter.kinds), _inside(window, now_ms))
            grouped = inside.group_by(definition.id_column)
            found.append(grouped.agg(what.cast(pl.Int64).alias(counter.column(window))))
    return found


def _inside(window: Window, now_ms: int) -> pl.Expr:
    if not window.span_ms:
        return pl.lit(True)
    tile = window.tile_ms
    first, end = (now_ms - window.span_ms) // tile * tile, (now_ms // tile + 1) * tile
    return (pl.col("event_time_ms") >= first) & (pl.col("event_time_ms") < end)


def _lists(definition: EntityDefinition, events: pl.DataFrame) -> list[pl.DataFrame]:
    return [_list(definition, feature, events) for feature in definition.lists]


def _list(definition: EntityDefinition, feature: LastN, events: pl.DataFrame) -> pl.DataFrame:
    listed = events.filter(
        pl.col("kind").is_in(feature.kinds) & pl.col(feature.source).is_not_null()
    )
    newest = listed.sort("event_time_ms", descending=True)
    columns = {feature.column: feature.source}
    columns |= {feature.kind_column: "kind"} if feature.kind_column else {}
    columns |= {feature.time_column: "event_time_ms"} if feature.time_column else {}
    return newest.group_by(definition.id_column, maintain_order=True).agg(
        [pl.col(source).head(feature.n).alias(name) for name, source in columns.items()]
    )


def row_differences(
    store: FeatureStore, entity: EntityName, expected: pl.DataFrame, now_ms: int
) -> list[str]:
    """Every stored value that is not the expected one, as text."""
    wrong, id_column = list[str](), DEFINITIONS[entity].id_column
    for part in expected.iter_slices(READ_ROWS):
        ids = part[id_column].to_list()
        for name, values in store.read(entity, ids, now_ms).columns.items():
            stored, sent = values.tolist(), part[name].to_list()
            if stored != sent:
                wrong += [
                    f"{entity} {entity_id} {name}: stored {a}, sent {b}"
                    for entity_id, a, b in zip(ids, stored, sent, strict=True)
                    if a != b
                ]
    return wrong


def expected_feedback(events: pl.DataFrame, windows_ms: dict[str, int]) -> dict[str, Any]:
    """Impression id -> its outcome, from the first time of each kind."""
    signals = contract().signals
    tasks, windows_ms = (*FEEDBACK_TASKS, *signals.added_tasks), windows_ms | signals.windows_ms
    tokened = events.filter(pl.col("impression").is_not_null())
    grouped = tokened.group_by("impression").agg(
        pl.col("event_time_ms").filter(kind="shown").min().alias("shown_at_ms"),
        *[pl.col("event_time_ms").filter(kind=t).min().alias(f"{t}_at_ms") for t in tasks],
        pl.col("dwell_ms").fill_null(0).max(),
        pl.col("kind").is_in(["shown", *tasks]).any().alias("has_outcome"),
        pl.col("amount_cents").filter(kind="order").sort_by(
            pl.col("event_time_ms").filter(kind="order")).first().fill_null(0)
        .alias("order_amount_cents"),
    )  # fmt: skip
    longest = max(windows_ms.values())
    found = {}
    for row in grouped.filter("has_outcome").drop("has_outcome").to_dicts():
        shown = row["shown_at_ms"]
        for task in tasks:
            at = row[f"{task}_at_ms"]
            within = windows_ms.get(task, longest)
            row[task] = at is not None and shown is not None and at <= shown + within
        row["matured_at_ms"] = None if shown is None else shown + longest
        found[_impression_id(row.pop("impression"))] = row
    return found


def _impression_id(token: str) -> str:
    import base64

    body = token.split(".")[1]  # version 2: "2.<body>.<signature>"
    claims = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return f"{claims['i']}:{claims['s']}"


def feedback_differences(stored: list[dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """Every impression whose stored outcome is not the expected one, as text."""
    by_id = {row["impression_id"]: row for row in stored}
    wrong = [f"impression {i}: not sent" for i in by_id.keys() - expected.keys()]
    for impression_id, wanted in expected.items():
        row = by_id.get(impression_id)
        got = row and {name: row[name] for name in wanted}
        if got != wanted:
            wrong.append(f"impression {impression_id}: stored {got}, sent {wanted}")
    return wrong
