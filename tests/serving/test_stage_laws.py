"""The laws that the runner enforces on every stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.memory_store import MemoryFeatureStore
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Scored, Slate
from serving.pipeline.runner import Deadlines, Hydration, Pipeline, Runner
from serving.pipeline.stage import removed_by
from serving.stages.filters import AlreadyEngaged
from serving.stages.scorers import SourceScore
from serving.stages.selectors import InOrder, PlackettLuce
from serving.state.activity import Activity
from streams.bus.contract import Stamp
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA


def query(**fields: Any) -> Query:
    defaults = {
        "request_id": "r",
        "surface": "feed",
        "user_id": "u",
        "k": 3,
        "now_ms": 1,
        "seed": 7,
    }
    return Query(**(defaults | fields))


@dataclass
class FixedSource:
    ids: Sequence[str]
    name: str = "fixed"
    scores: Sequence[float] = ()
    in_memory: bool = True

    def fetch(self, query: Query) -> list[Candidate]:
        del query
        scores = self.scores or [float(-n) for n in range(len(self.ids))]
        return [Candidate(i, self.name, score=s) for i, s in zip(self.ids, scores, strict=True)]


@dataclass
class FailingStage:
    name: str = "failing"
    fields: tuple[str, ...] = ("user",)
    soft: bool = False

    def _fail(self, *_: Any) -> Any:
        raise RuntimeError("broken")

    fetch = hydrate = removal_reasons = score = select = _fail


@dataclass
class SlowSource:
    name: str = "slow"

    def fetch(self, query: Query) -> list[Candidate]:
        del query
        time.sleep(0.6)
        return [Candidate("late", self.name)]


@dataclass
class RejectingFilter:
    rejected: set[str] = field(default_factory=set)
    soft: bool = False
    name: str = "rejecting"

    def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return ["unwanted" if c.item_id in self.rejected else None for c in pool.candidates]


@dataclass
class DroppingHydrator:
    name: str = "dropping"

    def hydrate(self, query: Query, pool: Pool) -> Hydration:
        del query
        return Hydration(catalogue_items=[None] * (len(pool) - 1))


@dataclass
class OversteppingHydrator:
    name: str = "overstepping"
    fields: tuple[str, ...] = ("stale",)

    def hydrate(self, query: Query) -> Query:
        return replace(query, stale=True, k=99, user_id="another user")


@pytest.fixture(scope="module")
def runner() -> Any:
    runner = Runner(8)
    yield runner
    runner.close()


def answer(runner: Runner, asked: Query | None = None, **stages: Any) -> Slate:
    defaults: dict[str, Any] = {
        "name": "test",
        "query_hydrators": [],
        "sources": [FixedSource("abcde")],
        "hydrators": [],
        "filters": [],
        "scorer": SourceScore(),
        "selector": InOrder(),
        "deadlines": Deadlines(100, 100, 100, 100),
    }
    return runner.run(Pipeline(**(defaults | stages)), asked or query())


def ids(slate: Slate) -> str:
    return "".join(candidate.item_id for candidate in slate.items)


def fallback_reasons(slate: Slate) -> dict[str, str]:
    return {fallback.stage: fallback.reason for fallback in slate.fallbacks}


def test_a_hydrator_may_not_drop_candidates(runner: Runner) -> None:
    slate = answer(runner, hydrators=[DroppingHydrator()])
    assert ids(slate) == "abc"
    assert "another number of candidates" in fallback_reasons(slate)["dropping"]
    assert slate.query.stale is False


def test_a_query_hydrator_writes_only_the_fields_that_it_declares(runner: Runner) -> None:
    slate = answer(runner, query_hydrators=[OversteppingHydrator()])
    assert (slate.query.stale, slate.query.k, slate.query.user_id) == (True, 3, "u")


def test_a_failed_source_means_fewer_candidates_not_a_failed_reply(runner: Runner) -> None:
    slate = answer(runner, sources=[FailingStage(), FixedSource("ab")])
    assert ids(slate) == "ab"
    assert fallback_reasons(slate) == {"failing": "RuntimeError: broken"}


def test_a_source_that_overruns_is_skipped_and_reported(runner: Runner) -> None:
    slate = answer(runner, sources=[SlowSource(), FixedSource("ab")])
    assert ids(slate) == "ab"
    assert fallback_reasons(slate) == {"slow": "no answer within 100 ms"}


def test_fallback_sources_are_asked_only_without_candidates(runner: Runner) -> None:
    fallback = FixedSource("xyz", name="fallback")
    assert ids(answer(runner, fallback_sources=[fallback])) == "abc"
    slate = answer(runner, sources=[FixedSource("")], fallback_sources=[FailingStage(), fallback])
    assert ids(slate) == "xyz"
    assert fallback_reasons(slate)["sources"] == "answered by fallback"


def test_fallback_candidates_refill_an_empty_pool_and_are_filtered(runner: Runner) -> None:
    wanted = RejectingFilter(rejected=set("abcdex"))
    slate = answer(runner, filters=[wanted], fallback_sources=[FixedSource("xyz", name="fallback")])
    assert ids(slate) == "yz"


def test_every_removal_has_a_reason(runner: Runner) -> None:
    slate = answer(runner, filters=[RejectingFilter(rejected={"a", "c"})])
    assert ids(slate) == "bde"
    assert [(r.item_id, r.stage, r.reason) for r in slate.removals] == [
        ("a", "rejecting", "unwanted"),
        ("c", "rejecting", "unwanted"),
    ]


def test_a_soft_filter_never_leaves_fewer_than_k(runner: Runner) -> None:
    hard, soft = (
        RejectingFilter(rejected=set("abcd")),
        RejectingFilter(rejected=set("abcd"), soft=True),
    )
    assert ids(answer(runner, filters=[hard])) == "e"
    assert ids(answer(runner, filters=[soft])) == "abe"


def test_a_failed_filter_keeps_all_and_is_reported(runner: Runner) -> None:
    slate = answer(runner, filters=[FailingStage()])
    assert ids(slate) == "abc"
    assert "failing" in fallback_reasons(slate)


def test_a_failed_scorer_is_replaced_and_reported(runner: Runner) -> None:
    slate = answer(runner, scorer=FailingStage(), fallback_scorer=SourceScore())
    assert ids(slate) == "abc"
    assert "failing" in fallback_reasons(slate)


@dataclass
class ShortScorer:
    name: str = "few"

    def score(self, query: Query, pool: Pool) -> Scored:
        del query, pool
        return Scored(np.zeros(1, np.float32), np.zeros((1, 0), np.float32))


def test_a_scorer_result_of_the_wrong_length_is_discarded(runner: Runner) -> None:
    slate = answer(runner, scorer=ShortScorer(), fallback_scorer=SourceScore())
    assert "5 candidates" in fallback_reasons(slate)["few"]


def test_with_every_stage_failing_there_is_still_a_slate(runner: Runner) -> None:
    broken = FailingStage()
    slate = answer(
        runner,
        query_hydrators=[broken],
        hydrators=[broken],
        filters=[broken],
        scorer=broken,
        selector=broken,
    )
    assert ids(slate) == "abc"


def test_nan_ranks_below_finite_scores(runner: Runner) -> None:
    nan = float("nan")
    scores = [nan, 0.1, float("inf"), 0.2, nan]
    for seed in range(50):
        slate = answer(
            runner,
            query(seed=seed, k=5),
            sources=[FixedSource("abcde", scores=scores)],
            selector=PlackettLuce(temperature=5.0),
        )
        assert set(ids(slate)[:2]) == {"b", "d"}


def test_the_same_request_and_seed_give_the_same_slate(runner: Runner) -> None:
    stages: dict[str, Any] = {"sources": [FixedSource("abcdefgh")]}
    stages["selector"] = PlackettLuce(temperature=3.0)
    slates = {seed: ids(answer(runner, query(seed=seed), **stages)) for seed in range(20)}
    assert slates == {seed: ids(answer(runner, query(seed=seed), **stages)) for seed in range(20)}
    assert len(set(slates.values())) > 5


def _likes(count: int, first_ms: int) -> pa.Table:
    common = {
        "user_id": "u", "kind": KIND_CODE["like"], "ingested_at_ms": 1, "surface": "feed",
        "origin": "live", "late": False, "duplicate": False, "source_partition": 0,
        "source_offset": 0,
    }  # fmt: skip
    rows = [
        common | {"event_id": f"e{at}", "video_id": f"v{at}", "event_time_ms": at}
        for at in range(first_ms, first_ms + count)
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def test_engagements_beyond_the_stores_list_stay_filtered_and_new_ones_wait_for_the_store() -> None:
    store, activity = MemoryFeatureStore(), Activity()
    store.fold("user", _likes(60, 1), Stamp("e", 0, 0))
    activity.fold(_likes(60, 1))
    activity.fold(_likes(1, 61))  # not yet in the store
    asked = query(user=store.read("user", ["u"], 100))
    pool = Pool.of(tuple(Candidate(f"v{at}", "given") for at in (1, 60, 61)))
    removed = removed_by(AlreadyEngaged(activity), asked, pool)
    assert removed.mask.tolist() == [True, True, False]
    assert removed.reason(0) == "already engaged: earlier"
    assert removed.reason(1) == "already engaged: like"
