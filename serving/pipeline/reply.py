"""A slate as the caller reads it: plain JSON, each item with its signed impression.

Knows the reply's form, the same over HTTP and Kafka. Does not know how a slate is made.
"""

from __future__ import annotations

import math
from typing import Any

from serving.pipeline.query import Candidate, Removal, Slate
from serving.state.catalogue import LiveCatalogue
from streams.contract.impression import Impression, sign

_REPEATED = "duplicate"  # offered twice is still offered: told last, and not counted as left out
_MAX_REMOVED = 200  # a reply explains; it is not the place for a whole catalogue


def to_reply(slate: Slate, key: bytes, catalogue: LiveCatalogue) -> dict[str, Any]:
    """The envelope of every surface. `key` signs the impressions."""
    query = slate.query
    reply: dict[str, Any] = {
        "request_id": query.request_id,
        "surface": query.surface,
        "user_id": query.user_id,
        "seed": query.seed,
        "served_at_ms": query.now_ms,
        "release": query.release.release_id,
        "models": dict(query.release.models),
        "cold_start": query.cold_start,
        "stale": query.stale,
        "weights": _finite(slate.weights),
        "weights_drawn": slate.log_density is not None,
        "rates": _finite(slate.rates),
        "fallbacks": [{"stage": f.stage, "reason": f.reason} for f in slate.fallbacks],
        "items": [_item(slate, slot, c, key) for slot, c in enumerate(slate.items)],
        "removed": [
            {"video_id": r.video_id, "stage": r.stage, "reason": r.reason}
            | ({"query": r.query} if r.query is not None else {})
            for r in _telling(slate.removals)[:_MAX_REMOVED]
        ],
        "removed_total": sum(r.stage != _REPEATED for r in slate.removals),
        "candidates": slate.candidates_seen,
        "stage_ms": dict(slate.stage_ms),
    }
    if query.surface == "reactivation":
        reply["goal"] = _goal(slate, catalogue)
    if query.video_id is not None:
        reply["video_id"] = query.video_id
    return reply


def _telling(removals: tuple[Removal, ...]) -> list[Removal]:
    """Removals that took a video from the user first, repetitions after them."""
    return sorted(removals, key=lambda removal: removal.stage == _REPEATED)


def _item(slate: Slate, slot: int, candidate: Candidate, key: bytes) -> dict[str, Any]:
    about = candidate.item
    item: dict[str, Any] = {
        "video_id": candidate.video_id,
        "title": about.title if about else candidate.video_id,
        "genres": list(about.genres) if about else [],
        "author_id": about.author_id if about else None,
        "slot": slot,
        "score": candidate.score if math.isfinite(candidate.score) else None,
        "p": _finite(candidate.p),
        "propensity": candidate.propensity,
        "explored": candidate.explored,
        "source": candidate.source,
        "impression": sign(_impression(slate, slot, candidate), key),
    }
    optional = {
        "query": candidate.query,
        "role": candidate.role,
        "p_convert": candidate.p_convert,
    }
    return item | {name: value for name, value in optional.items() if value is not None}


def _impression(slate: Slate, slot: int, candidate: Candidate) -> Impression:
    query = slate.query
    return Impression(
        request_id=query.request_id,
        surface=query.surface,
        user_id=query.user_id,
        video_id=candidate.video_id,
        query=candidate.query,
        slot=slot,
        propensity=candidate.propensity,
        explored=candidate.explored,
        release=query.release.release_id,
        served_at_ms=query.now_ms,
        **_drawn(slate),
    )


def _drawn(slate: Slate) -> dict[str, Any]:
    """What feedback needs to learn from weights that were drawn, in few digits: it is in
    every item's token."""
    if slate.log_density is None:
        return {}
    weights = tuple(round(weight, 6) for weight in slate.weights.values())
    return {"weights": weights, "log_density": round(slate.log_density, 4)}


def _goal(slate: Slate, catalogue: LiveCatalogue) -> dict[str, str] | None:
    goal = next((c.goal for c in slate.items if c.goal), None)
    if goal is None:
        return None
    item = catalogue.get(goal)
    return {"video_id": goal, "title": item.title if item else goal}


def _finite(values: Any) -> dict[str, float | None]:
    return {name: v if math.isfinite(v) else None for name, v in values.items()}
