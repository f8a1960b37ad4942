"""Laws that every stage is held to, whatever it does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.memory_store import MemoryFeatureStore
from serving.pipeline.query import Candidate, Pool, Query, Scored, Slate
from serving.pipeline.runner import Deadlines, Hydration, Pipeline, Runner
from serving.stages.filters import AlreadyEngaged
from serving.stages.scorers import AsGiven
from serving.stages.selectors import InOrder, PlackettLuce
from serving.state.activity import Activity
from streams.bus.contract import Stamp
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA


def query(**fields: Any) -> Query:
    given = {"request_id": "r", "surface": "feed", "user_id": "u", "k": 3, "now_ms": 1, "seed": 7}
    return Query(**(given | fields))


@dataclass
class Gives:
    ids: Sequence[str]
    name: str = "gives"
    scores: Sequence[float] = ()

    def fetch(self, query: Query) -> list[Candidate]:
        del query
        scores = self.scores or [float(-n) for n in range(len(self.ids))]
        return [Candidate(i, self.name, score=s) for i, s in zip(self.ids, scores, strict=True)]


@dataclass
class Breaks:
    name: str = "breaks"
    fields: tuple[str, ...] = ("user",)
    soft: bool = False

    def _break(self, *_: Any) -> Any:
        raise RuntimeError("it broke")

    fetch = hydrate = judge = score = select = _break


@dataclass
class Hangs:
    name: str = "hangs"

    def fetch(self, query: Query) -> list[Candidate]:
        del query
        time.sleep(0.6)
        return [Candidate("late", self.name)]


@dataclass
class Refuses:
    which: set[str] = field(default_factory=set)
    soft: bool = False
    name: str = "refuses"

    def judge(self, query: Query, pool: Pool) -> list[str | None]:
        del query
        return ["unwanted" if c.video_id in self.which else None for c in pool.candidates]


@dataclass
class Drops:
    name: str = "drops"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        del query
        return Hydration(items=[None] * (len(candidates) - 1))


@dataclass
class Oversteps:
    name: str = "oversteps"
    fields: tuple[str, ...] = ("stale",)

    def hydrate(self, query: Query) -> Query:
        return replace(query, stale=True, k=99, user_id="somebody else")


@pytest.fixture(scope="module")
def runner() -> Any:
    runner = Runner(8)
    yield runner
    runner.close()


def answer(runner: Runner, asked: Query | None = None, **stages: Any) -> Slate:
    given: dict[str, Any] = {
        "name": "test",
        "query_hydrators": [],
        "sources": [Gives("abcde")],
        "hydrators": [],
        "filters": [],
        "scorer": AsGiven(),
        "selector": InOrder(),
        "deadlines": Deadlines(100, 100, 100, 100),
    }
    return runner.run(Pipeline(**(given | stages)), asked or query())


def ids(slate: Slate) -> str:
    return "".join(candidate.video_id for candidate in slate.items)


def said(slate: Slate) -> dict[str, str]:
    return {fallback.stage: fallback.reason for fallback in slate.fallbacks}


def test_a_hydrator_may_not_drop_candidates(runner: Runner) -> None:
    slate = answer(runner, hydrators=[Drops()])
    assert ids(slate) == "abc"
    assert "another number of candidates" in said(slate)["drops"]
    assert slate.query.stale is False


def test_a_query_hydrator_writes_only_the_fields_that_it_declares(runner: Runner) -> None:
    slate = answer(runner, query_hydrators=[Oversteps()])
    assert (slate.query.stale, slate.query.k, slate.query.user_id) == (True, 3, "u")


def test_a_lost_source_means_fewer_candidates_never_a_lost_answer(runner: Runner) -> None:
    slate = answer(runner, sources=[Breaks(), Gives("ab")])
    assert ids(slate) == "ab"
    assert said(slate) == {"breaks": "RuntimeError: it broke"}


def test_a_source_that_overruns_is_left_behind_and_named(runner: Runner) -> None:
    slate = answer(runner, sources=[Hangs(), Gives("ab")])
    assert ids(slate) == "ab"
    assert said(slate) == {"hangs": "no answer within 100 ms"}


def test_a_fallback_source_is_asked_only_while_there_is_nothing(runner: Runner) -> None:
    spare = Gives("xyz", name="spare")
    assert ids(answer(runner, fallback_sources=[spare])) == "abc"
    slate = answer(runner, sources=[Gives("")], fallback_sources=[Breaks(), spare])
    assert ids(slate) == "xyz"
    assert said(slate)["sources"] == "answered by spare"


def test_what_filters_empty_is_filled_again_and_filtered_again(runner: Runner) -> None:
    wanted = Refuses(which=set("abcdex"))
    slate = answer(runner, filters=[wanted], fallback_sources=[Gives("xyz", name="spare")])
    assert ids(slate) == "yz"


def test_every_removal_has_a_reason(runner: Runner) -> None:
    slate = answer(runner, filters=[Refuses(which={"a", "c"})])
    assert ids(slate) == "bde"
    assert [(r.video_id, r.stage, r.reason) for r in slate.removals] == [
        ("a", "refuses", "unwanted"),
        ("c", "refuses", "unwanted"),
    ]


def test_a_soft_filter_never_leaves_fewer_than_asked_for(runner: Runner) -> None:
    hard, soft = Refuses(which=set("abcd")), Refuses(which=set("abcd"), soft=True)
    assert ids(answer(runner, filters=[hard])) == "e"
    assert ids(answer(runner, filters=[soft])) == "abe"


def test_a_broken_filter_keeps_all_and_says_so(runner: Runner) -> None:
    slate = answer(runner, filters=[Breaks()])
    assert ids(slate) == "abc"
    assert "breaks" in said(slate)


def test_a_scorer_that_fails_is_replaced_and_the_reply_says_so(runner: Runner) -> None:
    slate = answer(runner, scorer=Breaks(), fallback_scorer=AsGiven())
    assert ids(slate) == "abc"
    assert "breaks" in said(slate)


@dataclass
class ScoresTooFew:
    name: str = "few"

    def score(self, query: Query, pool: Pool) -> Scored:
        del query, pool
        return Scored(np.zeros(1, np.float32), np.zeros((1, 0), np.float32))


def test_a_scorer_of_the_wrong_length_is_not_believed(runner: Runner) -> None:
    slate = answer(runner, scorer=ScoresTooFew(), fallback_scorer=AsGiven())
    assert "5 candidates" in said(slate)["few"]


def test_with_every_stage_broken_there_is_still_an_answer(runner: Runner) -> None:
    broken = Breaks()
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
            sources=[Gives("abcde", scores=scores)],
            selector=PlackettLuce(temperature=5.0),
        )
        assert set(ids(slate)[:2]) == {"b", "d"}


def test_the_same_request_and_seed_give_the_same_slate(runner: Runner) -> None:
    stages: dict[str, Any] = {"sources": [Gives("abcdefgh")]}
    stages["selector"] = PlackettLuce(temperature=3.0)
    slates = {seed: ids(answer(runner, query(seed=seed), **stages)) for seed in range(20)}
    assert slates == {seed: ids(answer(runner, query(seed=seed), **stages)) for seed in range(20)}
    assert len(set(slates.values())) > 5


def _likes(count: int, first_ms: int) -> pa.Table:
    given = {
        "user_id": "u", "kind": KIND_CODE["like"], "ingested_at_ms": 1, "surface": "feed",
        "origin": "live", "late": False, "duplicate": False, "source_partition": 0,
        "source_offset": 0,
    }  # fmt: skip
    rows = [
        given | {"event_id": f"e{at}", "video_id": f"v{at}", "event_time_ms": at}
        for at in range(first_ms, first_ms + count)
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def test_what_fell_off_the_stores_list_stays_filtered_and_news_come_by_the_store_alone() -> None:
    store, activity = MemoryFeatureStore(), Activity()
    store.fold("user", _likes(60, 1), Stamp("e", 0, 0))
    activity.fold(_likes(60, 1))
    activity.fold(_likes(1, 61))  # the store has not heard of this one yet
    asked = query(user=store.read("user", ["u"], 100))
    pool = Pool(tuple(Candidate(f"v{at}", "given") for at in (1, 60, 61)))
    fallen, kept, news = AlreadyEngaged(activity).judge(asked, pool)
    assert fallen == "already engaged: earlier"
    assert kept == "already engaged: like"
    assert news is None
