"""Filters: which candidates are removed from the slate, and why.

Knows user rows, the catalogue and recent engagements. Does not know scores or selection.
A filter only reads: it returns a mask and a reason for each removed row, or a reason or None per
candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.pipeline.frames import list_column
from serving.pipeline.pool import Pool
from serving.pipeline.query import Query
from serving.pipeline.stage import Removed
from serving.state.activity import Activity
from serving.state.blocked_queries import BlockedQueries
from serving.state.catalogue import LiveCatalogue


@dataclass(frozen=True)
class Duplicate:
    """Removes an item (or item and query text) that an earlier source already offered."""

    name: str = "duplicate"
    soft: bool = False

    def removed(self, query: Query, pool: Pool) -> Removed:
        del query
        first = _first_by_row(pool) if pool.given is None else _first_by_text(pool)
        return Removed(
            first != np.arange(len(pool)),
            lambda row: f"already offered by {pool.sources[int(pool.source[first[row]])]}",
        )


def _first_by_row(pool: Pool) -> np.ndarray:
    """int64 [C]: the first candidate that is the same item."""
    _, first, place = np.unique(pool.rows, return_index=True, return_inverse=True)
    return np.asarray(first[place])


def _first_by_text(pool: Pool) -> np.ndarray:
    """int64 [C]: the first candidate of the same item and query text."""
    first: dict[tuple[str, str], int] = {}
    keys = [
        (item_id, " ".join((text or "").casefold().split()))
        for item_id, text in zip(pool.item_ids, pool.queries, strict=True)
    ]
    return np.array([first.setdefault(key, at) for at, key in enumerate(keys)], np.int64)


@dataclass(frozen=True)
class Unavailable:
    """Removes items that are taken down or not in the catalogue."""

    catalogue: LiveCatalogue
    name: str = "unavailable"
    soft: bool = False

    def removed(self, query: Query, pool: Pool) -> Removed:
        del query
        index = self.catalogue.index()
        places = index.places_of(pool.rows_in(self.catalogue.table))
        return Removed(places < 0, lambda row: self._reason(pool.item_ids[row]))

    def _reason(self, item_id: str) -> str:
        known = self.catalogue.get(item_id) is not None
        return "taken down" if known else "not in the catalogue"


@dataclass(frozen=True)
class AlreadyEngaged:
    """Removes items that the user has engaged with: played, liked, bought, or done to them what an
    owner declared as an engagement or a conversion (`Signals.engaged`).

    The store's row lists the last engagements. `Activity` adds only engagements older than
    that list: a new engagement must reach the store before it changes a slate.
    """

    activity: Activity
    name: str = "already_engaged"
    soft: bool = False

    def removed(self, query: Query, pool: Pool) -> Removed:
        items = list_column(query.user, "engaged_video_id")
        kinds = list_column(query.user, "engaged_kind")
        earlier = self.activity.engaged_with(query.user_id, _oldest_engagement_ms(query))
        engaged = dict.fromkeys(earlier, "earlier")
        engaged |= dict(reversed([*zip(items, kinds, strict=False)]))  # the newest one counts
        return _removed_ids(pool, engaged, "already engaged: {}")


def _removed_ids(pool: Pool, why: dict[str, str] | dict[str, int], reason: str) -> Removed:
    """Removes the items of `why`, each with the reason in which its value stands."""
    ids = pool.item_ids
    if pool.given is None and pool.table is not None:
        numbers = pool.table.numbers
        mask = numbers.among(pool.rows, numbers.rows_of(why))
    else:
        mask = np.array([item_id in why for item_id in ids], bool)
    return Removed(mask, lambda row: reason.format(why[ids[row]]))


def _oldest_engagement_ms(query: Query) -> int:
    """Event time (ms) of the oldest engagement in the user's row; 0 without any."""
    times: Sequence[int] = (
        [] if query.user is None else query.user.columns.get("engaged_time_ms", [[]])[0]
    )
    return int(times[-1]) if len(times) else 0


@dataclass(frozen=True)
class RecentlyShown:
    """Removes items shown `times` times or more without an engagement. Soft."""

    times: int = 3
    name: str = "recently_shown"
    soft: bool = True

    def removed(self, query: Query, pool: Pool) -> Removed:
        shown = Counter(list_column(query.user, "shown_video_id"))
        often = {item_id: times for item_id, times in shown.items() if times >= self.times}
        return _removed_ids(pool, often, "shown {} times recently")


@dataclass(frozen=True)
class EmptyQuery:
    """Removes recommended queries without text."""

    name: str = "empty_query"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return [None if (text or "").strip() else "no text" for text in pool.queries]


@dataclass(frozen=True)
class TakenDownQuery:
    """Removes recommended queries that are blocked, also where a source still offers them."""

    blocked: BlockedQueries
    name: str = "taken_down_query"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        blocked = self.blocked.blocks
        return ["taken down" if blocked(text or "") else None for text in pool.queries]
