"""Filters: which candidates may not stand in this slate, and why.

Each is pure: the pool in, a reason or None per candidate out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from serving.pipeline.query import Pool, Query, texts
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue


@dataclass(frozen=True)
class Duplicate:
    """The same video, or the same query text, was already offered by an earlier source."""

    name: str = "duplicate"
    soft: bool = False

    def judge(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        first: dict[tuple[str, str], str] = {}
        reasons: list[str | None] = []
        for candidate in pool.candidates:
            text = " ".join((candidate.query or "").casefold().split())
            owner = first.get((candidate.video_id, text))
            first.setdefault((candidate.video_id, text), candidate.source)
            reasons.append(None if owner is None else f"already offered by {owner}")
        return reasons


@dataclass(frozen=True)
class Unavailable:
    """The catalogue has taken the video down, or never had it."""

    catalogue: LiveCatalogue
    name: str = "unavailable"
    soft: bool = False

    def judge(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return [self._reason(candidate.video_id) for candidate in pool.candidates]

    def _reason(self, video_id: str) -> str | None:
        if self.catalogue.available(video_id):
            return None
        known = self.catalogue.get(video_id) is not None
        return "taken down" if known else "not in the catalogue"


@dataclass(frozen=True)
class AlreadyEngaged:
    """The user has played, liked, followed or bought it.

    The store's row says so of the last engagements; what has fallen off the end of its
    list is known from this process's own fold, and only that: news come by the store.
    """

    activity: Activity
    name: str = "already_engaged"
    soft: bool = False

    def judge(self, query: Query, pool: Pool) -> list[str | None]:
        videos, kinds = texts(query.user, "engaged_video_id"), texts(query.user, "engaged_kind")
        done: dict[str, str] = {}
        for video_id, kind in zip(videos, kinds, strict=False):
            done.setdefault(video_id, kind)
        oldest = _oldest_kept(query)
        for video_id, at_ms in self.activity.engaged(query.user_id).items():
            if at_ms < oldest:
                done.setdefault(video_id, "earlier")
        return [
            f"already engaged: {done[c.video_id]}" if c.video_id in done else None
            for c in pool.candidates
        ]


def _oldest_kept(query: Query) -> int:
    """Event time (ms) of the oldest engagement in the user's row; 0 without any."""
    times: Sequence[int] = (
        [] if query.user is None else query.user.columns.get("engaged_time_ms", [[]])[0]
    )
    return int(times[-1]) if len(times) else 0


@dataclass(frozen=True)
class RecentlyShown:
    """Shown several times lately without effect. Soft: it gives way when too few are left."""

    times: int = 3
    name: str = "recently_shown"
    soft: bool = True

    def judge(self, query: Query, pool: Pool) -> list[str | None]:
        shown = Counter(texts(query.user, "shown_video_id"))
        return [
            f"shown {shown[c.video_id]} times lately" if shown[c.video_id] >= self.times else None
            for c in pool.candidates
        ]


@dataclass(frozen=True)
class EmptyQuery:
    """A recommended query without a word in it."""

    name: str = "empty_query"
    soft: bool = False

    def judge(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return [None if (c.query or "").strip() else "no text" for c in pool.candidates]
