"""Filters: which candidates are removed from the slate, and why.

Knows user rows, the catalogue and recent engagements. Does not know scores or selection.
A filter only reads: it returns a reason or None per candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from serving.pipeline.frames import list_column
from serving.pipeline.query import Pool, Query
from serving.state.activity import Activity
from serving.state.blocked_queries import BlockedQueries
from serving.state.catalogue import LiveCatalogue


@dataclass(frozen=True)
class Duplicate:
    """Removes an item (or item and query text) that an earlier source already offered."""

    name: str = "duplicate"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        first_source: dict[tuple[str, str], str] = {}
        reasons: list[str | None] = []
        for candidate in pool.candidates:
            key = (candidate.item_id, " ".join((candidate.query or "").casefold().split()))
            earlier = first_source.get(key)
            first_source.setdefault(key, candidate.source)
            reasons.append(None if earlier is None else f"already offered by {earlier}")
        return reasons


@dataclass(frozen=True)
class Unavailable:
    """Removes items that are taken down or not in the catalogue."""

    catalogue: LiveCatalogue
    name: str = "unavailable"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return [self._reason(candidate.item_id) for candidate in pool.candidates]

    def _reason(self, item_id: str) -> str | None:
        if self.catalogue.available(item_id):
            return None
        known = self.catalogue.get(item_id) is not None
        return "taken down" if known else "not in the catalogue"


@dataclass(frozen=True)
class AlreadyEngaged:
    """Removes items that the user has played, liked, shared, followed, carted or bought.

    The store's row lists the last engagements. `Activity` adds only engagements older than
    that list: a new engagement must reach the store before it changes a slate.
    """

    activity: Activity
    name: str = "already_engaged"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        items = list_column(query.user, "engaged_video_id")
        kinds = list_column(query.user, "engaged_kind")
        engaged: dict[str, str] = {}
        for item_id, kind in zip(items, kinds, strict=False):
            engaged.setdefault(item_id, kind)
        oldest_ms = _oldest_engagement_ms(query)
        for item_id, at_ms in self.activity.engaged(query.user_id).items():
            if at_ms < oldest_ms:
                engaged.setdefault(item_id, "earlier")
        return [
            f"already engaged: {engaged[c.item_id]}" if c.item_id in engaged else None
            for c in pool.candidates
        ]


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

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        shown = Counter(list_column(query.user, "shown_video_id"))
        return [
            f"shown {shown[c.item_id]} times recently" if shown[c.item_id] >= self.times else None
            for c in pool.candidates
        ]


@dataclass(frozen=True)
class EmptyQuery:
    """Removes recommended queries without text."""

    name: str = "empty_query"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return [None if (c.query or "").strip() else "no text" for c in pool.candidates]


@dataclass(frozen=True)
class TakenDownQuery:
    """Removes recommended queries that are blocked, also where a source still offers them."""

    blocked: BlockedQueries
    name: str = "taken_down_query"
    soft: bool = False

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return [
            "taken down" if self.blocked.blocks(c.query or "") else None for c in pool.candidates
        ]
