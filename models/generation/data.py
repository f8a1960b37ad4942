"""The training log as requests: for every query click, what was known just before it.

Knows TrainingLog's columns. Reads only events before the click, so that an example equals
what the online features would have said. Does not know words' numbers or the network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from models.generation.prompt import ANCHOR_HISTORY, USER_HISTORY, USER_QUERY_HISTORY, Context
from models.recipe import TrainingLog

ENGAGED_KINDS = ("play", "long_view", "like", "share", "follow", "cart", "order")
USER_QUERY_KINDS = ("query_click", "search")


@dataclass(frozen=True)
class Item:
    title: str
    genres: tuple[str, ...]


@dataclass(frozen=True)
class Click:
    """One query click. `context` is what was known before it; `earlier` all that had been
    clicked under the video until then, oldest first."""

    user_id: str
    time_ms: int
    query: str
    context: Context
    earlier: Sequence[str]


def items_of(log: TrainingLog) -> dict[str, Item]:
    """Every catalogue item, taken down or not: histories still hold it."""
    rows = log.items.select("video_id", "title", "genres").iter_rows()
    return {video: Item(title or "", tuple(genres or ())) for video, title, genres in rows}


def query_clicks(log: TrainingLog, items: Mapping[str, Item]) -> list[Click]:
    """Every query click in the log's order, each with the histories that preceded it."""
    wanted = (*ENGAGED_KINDS, *USER_QUERY_KINDS)
    events = log.events.filter(pl.col("kind").is_in(wanted))
    engaged: dict[str, list[str]] = defaultdict(list)
    asked: dict[str, list[str]] = defaultdict(list)
    clicked: dict[str, list[str]] = defaultdict(list)
    found: list[Click] = []
    columns = ("user_id", "kind", "video_id", "query", "event_time_ms")
    for user, kind, video, query, time_ms in events.select(columns).iter_rows():
        if kind == "query_click":
            context = _context(video, items, engaged[user], asked[user], clicked[video])
            earlier = _Prefix(clicked[video], len(clicked[video]))
            found.append(Click(user, time_ms, query, context, earlier))
            clicked[video].append(query)
        if kind in USER_QUERY_KINDS:
            asked[user].append(query)
        elif video is not None:
            engaged[user].append(video)
    return found


def _context(
    video: str,
    items: Mapping[str, Item],
    engaged: list[str],
    asked: list[str],
    clicked: list[str],
) -> Context:
    item = items.get(video, Item("", ()))
    return Context(
        video_id=video,
        title=item.title,
        genres=item.genres,
        user_history=_newest(engaged, USER_HISTORY),
        user_query=_newest(asked, USER_QUERY_HISTORY),
        video_query=_newest(clicked, ANCHOR_HISTORY),
    )


def _newest(texts: list[str], n: int) -> tuple[str, ...]:
    return tuple(texts[: -n - 1 : -1])


class _Prefix(Sequence[str]):
    """The first `length` entries of a list that goes on growing, without a copy."""

    def __init__(self, whole: list[str], length: int) -> None:
        self._whole = whole
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        return self._whole[: self._length][at]
