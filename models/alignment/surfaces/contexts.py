"""What the query recommender would have known at given moments, from the training log.

Knows events and moments. Reads only events before each moment, as the online features did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from models.generation.data import USER_QUERY_KINDS, ItemText, context_of
from models.generation.prompt import QueryContext
from models.recipe import TrainingLog
from streams.contract.declaration import contract


def contexts_at(
    log: TrainingLog, items: Mapping[str, ItemText], asked: Sequence[tuple[str, str, int]]
) -> list[QueryContext]:
    """A context for each (user_id, item_id, time_ms), in the order given."""
    kinds = (*contract().signals.engaged, *USER_QUERY_KINDS)
    columns = ("user_id", "kind", "video_id", "query", "event_time_ms")
    events = log.events.filter(pl.col("kind").is_in(kinds)).select(columns).sort("event_time_ms")
    rows = events.rows()
    engaged: dict[str, list[str]] = defaultdict(list)
    queries: dict[str, list[str]] = defaultdict(list)
    clicked: dict[str, list[str]] = defaultdict(list)
    found: list[QueryContext | None] = [None] * len(asked)
    at = 0
    for n in np.argsort([time_ms for _, _, time_ms in asked], kind="stable"):
        user, item_id, time_ms = asked[n]
        while at < len(rows) and rows[at][4] < time_ms:
            _fold(rows[at], engaged, queries, clicked)
            at += 1
        found[n] = context_of(item_id, items, engaged[user], queries[user], clicked[item_id])
    return [each for each in found if each is not None]


def _fold(
    row: tuple[str, str, str | None, str | None, int],
    engaged: dict[str, list[str]],
    queries: dict[str, list[str]],
    clicked: dict[str, list[str]],
) -> None:
    user, kind, item_id, query, _ = row
    if kind in USER_QUERY_KINDS and query is not None:
        queries[user].append(query)
        if kind == "query_click" and item_id is not None:
            clicked[item_id].append(query)
    elif item_id is not None and kind in contract().signals.engaged:
        engaged[user].append(item_id)
