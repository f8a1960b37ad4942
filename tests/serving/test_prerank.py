"""Laws of the pre-rank: it cuts to its limit, each cut has a reason, nothing else changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from serving.pipeline.query import Candidate, Pool, Query, Slate
from serving.pipeline.runner import Deadlines, Pipeline, Runner
from serving.pipeline.surfaces import Parts
from serving.stages.prerank import EXPLORED, TasteTowers
from serving.stages.scorers import AsGiven
from serving.stages.selectors import InOrder
from serving.stages.sources import Fresh
from streams.catalogue import Catalogue
from streams.contract.events import CatalogueItem, ItemAdded

Make = Callable[..., Any]
MANY = 5_000


@dataclass
class Gives:
    ids: list[str]
    name: str = "gives"

    def fetch(self, query: Query) -> list[Candidate]:
        del query
        return [Candidate(i, self.name) for i in self.ids]


@dataclass
class Worth:
    values: list[float]
    keep: int = 3
    name: str = "prerank"

    def worth(self, query: Query, pool: Pool) -> np.ndarray:
        del query
        return np.array(self.values[: len(pool)])


@dataclass
class Broken(Worth):
    def worth(self, query: Query, pool: Pool) -> np.ndarray:
        del query, pool
        raise RuntimeError("it broke")


def answer(prerank: Any, ids: list[str], k: int = 3) -> Slate:
    stages: dict[str, Any] = {
        "query_hydrators": [],
        "sources": [Gives(ids)],
        "hydrators": [],
        "filters": [],
        "scorer": AsGiven(),
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
    return {candidate.video_id for candidate in slate.items}


def test_the_worthiest_go_on_and_each_cut_says_its_place() -> None:
    slate = answer(Worth([0.1, 0.9, float("nan"), 0.5, 0.7]), list("abcde"))
    assert kept(slate) == set("bde")
    assert [(r.video_id, r.stage, r.reason) for r in slate.removals] == [
        ("a", "prerank", "place 4 of 5: 3 are ranked"),
        ("c", "prerank", "place 5 of 5: 3 are ranked"),
    ]


def test_no_more_than_the_limit_are_not_judged_at_all() -> None:
    slate = answer(Broken([]), list("abc"))
    assert kept(slate) == set("abc")
    assert not slate.fallbacks
    assert not slate.removals


def test_a_slate_longer_than_the_limit_is_filled() -> None:
    assert len(answer(Worth([0.0] * 5, keep=1), list("abcde"), k=4).items) == 4


@pytest.mark.parametrize("stage", [Broken([]), Worth([1.0, 2.0])], ids=["breaks", "too short"])
def test_a_failed_pre_rank_keeps_the_sources_order_and_says_so(stage: Worth) -> None:
    slate = answer(stage, list("abcde"))
    assert kept(slate) == set("abc")
    assert [fallback.stage for fallback in slate.fallbacks] == ["prerank"]
    assert {removal.video_id for removal in slate.removals} == set("de")


def test_what_explores_is_never_cut(parts: Parts) -> None:
    assert Fresh(parts.catalogue, parts.snapshot).name == EXPLORED
    towers = TasteTowers(parts.catalogue, parts.snapshot, parts.activity, keep=10)
    pool = Pool(tuple(Candidate(f"v{n}", EXPLORED if n > 55 else "popular") for n in range(60)))
    best = np.argsort(-towers.worth(Query("r", "feed", "u", 5, 1, 1), pool), kind="stable")[:10]
    assert {56, 57, 58, 59} <= set(best.tolist())


def large_catalogue() -> Catalogue:
    catalogue = Catalogue()
    for n in range(MANY):
        item = CatalogueItem(video_id=f"v{n}", title=f"{n}", genres=(f"g{n % 17}",))
        catalogue.apply(ItemAdded(event_id=f"v{n}", event_time_ms=1, item=item))
    return catalogue


def test_five_thousand_candidates_are_answered_within_the_deadlines(make_mill: Make) -> None:
    mill = make_mill(catalogue=large_catalogue(), streams=False)
    ids = [f"v{n}" for n in range(MANY)]
    mill.feed(candidates=ids)  # the index of genres is built once
    limits = Deadlines()
    bound = limits.query_hydrators + limits.sources + limits.hydrators + limits.scorer
    started = time.perf_counter()
    reply = mill.feed(candidates=ids)
    assert (time.perf_counter() - started) * 1e3 < bound
    assert len(reply["items"]) == 8
    assert reply["fallbacks"] == []
    assert reply["candidates"] == MANY
    assert reply["removed_total"] == MANY - 200
    assert all("are ranked" in each["reason"] for each in reply["removed"])


def test_duplicates_among_many_are_told_once_and_leave_room(make_mill: Make) -> None:
    mill = make_mill(streams=False)
    reply = mill.feed(candidates=["v1", "v2", "v1"] * 100)
    assert sorted(item["video_id"] for item in reply["items"]) == ["v1", "v2"]
    assert reply["removed_total"] == 0, "what was offered twice was offered"


def test_an_unknown_user_and_unknown_candidates_get_an_answer(make_mill: Make) -> None:
    mill = make_mill(streams=False)
    reply = mill.feed("nobody-ever", candidates=["v1", "no-such-video"])
    assert [item["video_id"] for item in reply["items"]] == ["v1"]
    assert reply["removed"][0]["reason"] == "not in the catalogue"
    assert reply["cold_start"]


def test_too_many_candidates_are_refused_by_name(make_mill: Make) -> None:
    mill = make_mill(streams=False)
    body = {"user_id": "u1", "candidates": ["v1"] * (MANY + 1)}
    refused = mill.client.post("/v1/feed", json=body)
    assert refused.status_code == 422
    assert "candidates" in refused.text
