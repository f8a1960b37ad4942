"""A slate as plain JSON, each item with its signed impression token.

Knows the reply's fields, the same over HTTP and Kafka. Does not know how a slate is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serving.pipeline.query import Candidate, Removal, Slate
from streams.contract.events import CatalogueItem
from streams.contract.impression import Impression, sign

_DUPLICATE = "duplicate"  # the item is still offered: listed last and not counted as removed
_MAX_REMOVED = 200  # bounds a reply to thousands of candidates


class ItemLookup(Protocol):
    """The part of `serving.state.catalogue.LiveCatalogue` that this module needs."""

    def get(self, item_id: str, /) -> CatalogueItem | None: ...


def to_reply(slate: Slate, key: bytes, catalogue: ItemLookup) -> dict[str, Any]:
    """The reply of every surface. `key` signs the impression tokens."""
    query = slate.query
    reply: dict[str, Any] = {
        "request_id": query.request_id,
        "slate_id": query.slate_id,
        "surface": query.surface,
        "user_id": query.user_id,
        "seed": query.seed,
        "served_at_ms": query.now_ms,
        "release": query.release.release_id,
        "models": dict(query.release.models),
        "cold_start": query.cold_start,
        "stale": query.stale,
        "arm": query.arm,
        "weights": _finite(slate.weights),
        "weights_drawn": slate.log_density is not None,
        "rates": _finite(slate.rates),
        "fallbacks": [{"stage": f.stage, "reason": f.reason} for f in slate.fallbacks],
        "items": [_item(slate, slot, c, key) for slot, c in enumerate(slate.items)],
        "removed": [_removed(r) for r in _duplicates_last(slate.removals)[:_MAX_REMOVED]],
        "removed_total": sum(r.stage != _DUPLICATE for r in slate.removals),
        "candidates": slate.candidate_count,
        "stage_ms": dict(slate.stage_ms),
    }
    if query.surface == "reactivation":
        reply["goal"] = _goal(slate, catalogue)
        reply["other_goals"] = _other_goals(slate, catalogue)
    if query.item_id is not None:
        reply["video_id"] = query.item_id
    if not slate.items:
        reply["reason"] = _why_empty(slate)
    return reply


def _why_empty(slate: Slate) -> str:
    if slate.query.candidates == ():
        return "the request lists no candidates: leave `candidates` out to let the feed choose"
    if not slate.candidate_count:
        return "no source returned a candidate: see `fallbacks`"
    return "every candidate was removed: see `removed`"


def _duplicates_last(removals: Sequence[Removal]) -> list[Removal]:
    return sorted(removals, key=lambda removal: removal.stage == _DUPLICATE)


def _removed(removal: Removal) -> dict[str, str]:
    fields = {"video_id": removal.item_id, "stage": removal.stage, "reason": removal.reason}
    return fields if removal.query is None else fields | {"query": removal.query}


def _item(slate: Slate, slot: int, candidate: Candidate, key: bytes) -> dict[str, Any]:
    about = candidate.item
    item: dict[str, Any] = {
        "video_id": candidate.item_id,
        "title": about.title if about else candidate.item_id,
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
        "anchor": candidate.anchor,
    }
    return item | {name: value for name, value in optional.items() if value is not None}


def _impression(slate: Slate, slot: int, candidate: Candidate) -> Impression:
    query = slate.query
    return Impression(
        request_id=query.slate_id,
        surface=query.surface,
        user_id=query.user_id,
        video_id=candidate.item_id,
        query=candidate.query,
        slot=slot,
        propensity=candidate.propensity,
        explored=candidate.explored,
        release=query.release.release_id,
        served_at_ms=query.now_ms,
        arm=query.arm,
        **_drawn_weights(slate),
    )


def _drawn_weights(slate: Slate) -> dict[str, Any]:
    """The drawn weights and their log density, rounded because every token repeats them."""
    if slate.log_density is None:
        return {}
    weights = tuple(round(weight, 6) for weight in slate.weights.values())
    return {"weights": weights, "log_density": round(slate.log_density, 4)}


def _goal(slate: Slate, catalogue: ItemLookup) -> dict[str, Any] | None:
    """The trajectory's goal. `shown` is false where a stage removed it from the slate."""
    goal = next((c.goal for c in slate.items if c.goal), None)
    if goal is None:
        return None
    shown = any(candidate.item_id == goal for candidate in slate.items)
    return {"video_id": goal, "title": _title(goal, catalogue), "shown": shown}


def _other_goals(slate: Slate, catalogue: ItemLookup) -> list[dict[str, Any]]:
    """Goals that the model compared and did not take, best first."""
    others = slate.items[0].other_goals if slate.items else ()
    return [
        {"video_id": goal, "title": _title(goal, catalogue), "p_convert": p} for goal, p in others
    ]


def _title(item_id: str, catalogue: ItemLookup) -> str:
    item = catalogue.get(item_id)
    return item.title if item else item_id


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: v if math.isfinite(v) else None for name, v in values.items()}
