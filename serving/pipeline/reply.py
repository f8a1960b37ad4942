"""A slate as plain JSON, each item with its signed impression token.

Knows the fields that every reply has, the same over HTTP and Kafka: `Reply` describes them, and
`to_reply` makes them without pydantic, which would take half of a reply's time. Does not know how
a slate is made, nor the fields that a surface adds (`serving.surfaces`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, get_args

from pydantic import BaseModel, ConfigDict

from serving.pipeline.query import RULES, Candidate, Removal, Slate
from streams.contract.impression import Impression, sign
from streams.contract.items import CatalogueItem

_DUPLICATE = "duplicate"  # the item is still offered: listed last and not counted as removed
_MAX_REMOVED = 200  # bounds a reply to thousands of candidates


class ItemLookup(Protocol):
    """The part of `serving.state.catalogue.LiveCatalogue` that this module needs."""

    def get(self, item_id: str, /) -> CatalogueItem | None: ...


class Item(BaseModel):
    """One item of a reply. `p`: P(action) by task; `impression`: its signed token; `placed`: the
    rule that chose its slot's item or restricted the choice.

    `video_id` and `genres` repeat `item_id` and `categories` under their names of version 1.
    """

    model_config = ConfigDict(extra="forbid")

    item_id: str
    video_id: str
    title: str
    categories: list[str]
    genres: list[str]
    author_id: str | None
    slot: int
    score: float | None
    p: dict[str, float | None]
    propensity: float
    explored: bool
    source: str
    impression: str
    placed: str | None = None
    team: str | None = None


class Removed(BaseModel):
    """A candidate that a stage removed, and why."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    video_id: str
    stage: str
    reason: str
    query: str | None = None


class BoostedItem(BaseModel):
    """An item whose score a rule changed. strength: in standard deviations of the scores."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    rule: str
    strength: float


class UnmetRule(BaseModel):
    """A rule that could not be kept on this slate, and why."""

    model_config = ConfigDict(extra="forbid")

    rule: str
    reason: str


class StageFallback(BaseModel):
    """A stage that failed, or which fallback answered in its place."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    reason: str


class Reply(BaseModel):
    """The fields of every surface's reply. A surface's own reply adds fields to it or to `items`.

    weights: task -> the user's fusion weight; rates: task -> population rate, which divides
    P(action) in the score. candidates: how many the sources returned. stage_ms: milliseconds by
    stage. arm: of the `experiment` that the user is in; an interleaved slate's items have a `team`.
    reason: why there are no items. item_id: the item that the request was about; video_id: the
    same, as version 1 named it. boosted, unmet: what rules did to the items; absent where they
    did nothing.
    """

    model_config = ConfigDict(extra="forbid")

    request_id: str
    slate_id: str
    surface: str
    user_id: str
    seed: int
    served_at_ms: int
    release: str
    models: dict[str, int]
    cold_start: bool
    stale: bool
    arm: str | None = None
    experiment: str | None = None
    weights: dict[str, float | None]
    weights_drawn: bool
    rates: dict[str, float | None]
    fallbacks: list[StageFallback]
    items: Sequence[Item]
    removed: list[Removed]
    removed_total: int
    candidates: int
    stage_ms: dict[str, float]
    item_id: str | None = None
    video_id: str | None = None
    reason: str | None = None
    boosted: list[BoostedItem] | None = None
    unmet: list[UnmetRule] | None = None


@lru_cache
def own_item_fields(reply: type[Reply]) -> tuple[str, ...]:
    """The fields that a surface's items have beside those of `Item`."""
    (item,) = get_args(reply.model_fields["items"].annotation)
    return tuple(name for name in item.model_fields if name not in Item.model_fields)


def to_reply(slate: Slate, key: bytes, own_fields: Sequence[str] = ()) -> dict[str, Any]:
    """The reply of every surface.

    key: signs the impression tokens. own_fields: the notes of a candidate that its item shows.
    """
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
        "experiment": query.experiment,
        "weights": _finite(slate.weights),
        "weights_drawn": slate.log_density is not None,
        "rates": _finite(slate.rates),
        "fallbacks": [{"stage": f.stage, "reason": f.reason} for f in slate.fallbacks],
        "items": items_of(slate, key, own_fields),
        "removed": [_removed(r) for r in slate.removals.first(_MAX_REMOVED, last=_DUPLICATE)],
        "removed_total": slate.removals.count_without(_DUPLICATE),
        "candidates": slate.candidate_count,
        "stage_ms": dict(slate.stage_ms),
    }
    if query.item_id is not None:
        reply |= named(query.item_id)
    if (notes := query.rule_notes).boosted:
        reply["boosted"] = [each._asdict() for each in notes.boosted]
    if notes.unmet:
        reply["unmet"] = [{"rule": rule, "reason": why} for rule, why in notes.unmet.items()]
    if not slate.items:
        reply["reason"] = _why_empty(slate)
    return reply


def items_of(
    slate: Slate, key: bytes, own_fields: Sequence[str] = (), first: int = 0
) -> list[dict[str, Any]]:
    """The reply's items from slot `first` on. key, own_fields: as in `to_reply`."""
    chosen = enumerate(slate.items[first:], first)
    return [_item(slate, slot, candidate, key, own_fields) for slot, candidate in chosen]


def named(item_id: str) -> dict[str, str]:
    """An item's id under its name and its name of version 1."""
    return {"item_id": item_id, "video_id": item_id}


def _why_empty(slate: Slate) -> str:
    if slate.query.candidates == ():
        return "the request lists no candidates: leave `candidates` out to let the feed choose"
    if not slate.candidate_count:
        return "no source returned a candidate: see `fallbacks`"
    by_rules = slate.removals.count_of(RULES)
    how_many = f", {by_rules} of them by rules or the request's filter" if by_rules else ""
    return f"every candidate was removed{how_many}: see `removed`"


def _removed(removal: Removal) -> dict[str, str]:
    fields = named(removal.item_id) | {"stage": removal.stage, "reason": removal.reason}
    return fields if removal.query is None else fields | {"query": removal.query}


def _item(
    slate: Slate, slot: int, candidate: Candidate, key: bytes, own_fields: Sequence[str]
) -> dict[str, Any]:
    about = candidate.item
    categories = list(about.categories) if about else []
    item: dict[str, Any] = {
        "item_id": candidate.item_id,
        "video_id": candidate.item_id,
        "title": about.title if about else candidate.item_id,
        "categories": categories,
        "genres": categories,
        "author_id": about.author_id if about else None,
        "slot": slot,
        "score": candidate.score if math.isfinite(candidate.score) else None,
        "p": _finite(candidate.p),
        "propensity": candidate.propensity,
        "explored": candidate.explored,
        "source": candidate.source,
        "impression": sign(_impression(slate, slot, candidate), key),
    }
    if candidate.placed is not None:
        item["placed"] = candidate.placed
    if candidate.team is not None:
        item["team"] = candidate.team
    own = {"query": candidate.query, **candidate.notes}
    return item | {name: own[name] for name in own_fields if own.get(name) is not None}


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
        release=candidate.release or query.release.release_id,
        served_at_ms=query.now_ms,
        arm=query.arm,
        placed=candidate.placed is not None,
        experiment=query.experiment,
        team=candidate.team,
        **_drawn_weights(slate),
    )


def _drawn_weights(slate: Slate) -> dict[str, Any]:
    """The drawn weights and their log density, rounded because every token repeats them."""
    if slate.log_density is None:
        return {}
    weights = tuple(round(weight, 6) for weight in slate.weights.values())
    return {"weights": weights, "log_density": round(slate.log_density, 4)}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: v if math.isfinite(v) else None for name, v in values.items()}
