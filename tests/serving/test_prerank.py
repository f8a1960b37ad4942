"""Laws of the pre-rank: it keeps at most its limit, and each cut has a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Slate
from serving.pipeline.runner import Deadlines, Pipeline, Runner
from serving.stages.prerank import EXPLORED, TasteDotProduct
from serving.stages.scorers import SourceScore
from serving.stages.selectors import InOrder
from serving.stages.sources import Fresh
from serving.surfaces import StageDependencies
from streams.catalogue import Catalogue
from streams.contract.events import CatalogueItem, ItemAdded

Make = Callable[..., Any]
MANY = 5_000


@dataclass
class FixedSource:
    ids: list[str]
    name: str = "fixed"

    def fetch(self, query: Query) -> list[Candidate]:
        del query
        return [Candidate(i, self.name) for i in self.ids]


@dataclass
class FixedPrerank:
    values: list[float]
    keep: int = 3
    name: str = "prerank"

    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        del query
        return np.array(self.values[: len(pool)])


@dataclass
class FailingPrerank(FixedPrerank):
    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        del query, pool
        raise RuntimeError("broken")


def answer(prerank: Any, ids: list[str], k: int = 3) -> Slate:
    stages: dict[str, Any] = {
        "query_hydrators": [],
        "sources": [FixedSource(ids)],
        "hydrators": [],
        "filters": [],
        "scorer": SourceScore(),
        "selector": InOrder(),
        "deadlines": Deadlines(500, 500, 500, 500),
    }
    runner = Runner(4)
    try:
        return runner.run(
            Pipeline(name="test", prerank=prerank, **stages), Query("r", "feed", "u", k, 1, 7)
        )
    finally:
        runner.close()


def kept(slate: Slate) -> set[str]:
    return {candidate.item_id for candidate in slate.items}


def test_the_best_are_kept_and_each_cut_reports_its_rank() -> None:
    slate = answer(FixedPrerank([0.1, 0.9, float("nan"), 0.5, 0.7]), list("abcde"))
    assert kept(slate) == set("bde")
    assert [(r.item_id, r.stage, r.reason) for r in slate.removals] == [
        ("a", "prerank", "place 4 of 5: 3 are ranked"),
        ("c", "prerank", "place 5 of 5: 3 are ranked"),
    ]


def test_a_pool_within_the_limit_is_not_preranked() -> None:
    slate = answer(FailingPrerank([]), list("abc"))
    assert kept(slate) == set("abc")
    assert not slate.fallbacks
    assert not slate.removals


def test_a_k_above_the_limit_is_filled() -> None:
    assert len(answer(FixedPrerank([0.0] * 5, keep=1), list("abcde"), k=4).items) == 4


@pytest.mark.parametrize(
    "stage", [FailingPrerank([]), FixedPrerank([1.0, 2.0])], ids=["breaks", "too short"]
)
def test_a_failed_pre_rank_keeps_the_sources_order_and_is_reported(stage: FixedPrerank) -> None:
    slate = answer(stage, list("abcde"))
    assert kept(slate) == set("abc")
    assert [fallback.stage for fallback in slate.fallbacks] == ["prerank"]
    assert {removal.item_id for removal in slate.removals} == set("de")


def test_fresh_candidates_are_never_cut(stage_deps: StageDependencies) -> None:
    assert Fresh(stage_deps.catalogue, stage_deps.popularity).name == EXPLORED
    prerank = TasteDotProduct(
        stage_deps.catalogue, stage_deps.popularity, stage_deps.activity, keep=10
    )
    pool = Pool.of(tuple(Candidate(f"v{n}", EXPLORED if n > 55 else "popular") for n in range(60)))
    best = np.argsort(
        -prerank.prerank_scores(Query("r", "feed", "u", 5, 1, 1), pool), kind="stable"
    )[:10]
    assert {56, 57, 58, 59} <= set(best.tolist())


def large_catalogue() -> Catalogue:
    catalogue = Catalogue()
    for n in range(MANY):
        item = CatalogueItem(video_id=f"v{n}", title=f"{n}", genres=(f"g{n % 17}",))
        catalogue.apply(ItemAdded(event_id=f"v{n}", event_time_ms=1_700_000_000_000, item=item))
    return catalogue


def test_five_thousand_candidates_are_answered_within_the_deadlines(make_harness: Make) -> None:
    harness = make_harness(catalogue=large_catalogue(), streams=False)
    ids = [f"v{n}" for n in range(MANY)]
    harness.feed(candidates=ids)  # builds the genre index
    limits = Deadlines()
    bound = limits.query_hydrators + limits.sources + limits.hydrators + limits.scorer
    started = time.perf_counter()
    reply = harness.feed(candidates=ids)
    assert (time.perf_counter() - started) * 1e3 < bound
    assert len(reply["items"]) == 8
    assert reply["fallbacks"] == []
    assert reply["candidates"] == MANY
    assert reply["removed_total"] == MANY - 200
    assert all("are ranked" in each["reason"] for each in reply["removed"])


def test_duplicates_are_not_counted_as_removed(make_harness: Make) -> None:
    harness = make_harness(streams=False)
    reply = harness.feed(candidates=["v1", "v2", "v1"] * 100)
    assert sorted(item["video_id"] for item in reply["items"]) == ["v1", "v2"]
    assert reply["removed_total"] == 0, "a duplicate is still offered once"


def test_an_unknown_user_with_unknown_candidates_gets_a_reply(make_harness: Make) -> None:
    harness = make_harness(streams=False)
    reply = harness.feed("unknown-user", candidates=["v1", "no-such-video"])
    assert [item["video_id"] for item in reply["items"]] == ["v1"]
    assert reply["removed"][0]["reason"] == "not in the catalogue"
    assert reply["cold_start"]


def test_too_many_candidates_are_rejected_naming_the_field(make_harness: Make) -> None:
    harness = make_harness(streams=False)
    body = {"user_id": "u1", "candidates": ["v1"] * (MANY + 1)}
    refused = harness.client.post("/v1/feed", json=body)
    assert refused.status_code == 422
    assert "candidates" in refused.text
