"""Laws of the model monitor: which answers are healthy, and what counts as a repair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from models.client import ModelProcessDied, ModelUnavailable
from models.ranking.ple.recipe import canary_request
from models.release.canary import Canary
from models.release.store import ReleaseStore
from models.signature import BadInput, byte_list
from serving.fakes import ANSWERS, FakeModelClient
from serving.monitoring.canary import Canaries, live_requests
from serving.monitoring.model_monitor import ModelMonitor
from serving.pipeline.query import Release
from serving.surfaces import StageDependencies

MODELS = ANSWERS
Answer = dict[str, np.ndarray]


class SealedCanaries:
    """Every model's canary with the answer of its fake, as a release store has them."""

    def __init__(self, requests: Mapping[str, Mapping[str, np.ndarray]], sealed: bool) -> None:
        self.requests = dict(requests) | {"ranker": canary_request()}
        self.sealed, self.other_repairs = sealed, False

    def canary(self, model: str, version: int) -> Canary | None:
        assert version == 1
        request = self.requests[model]
        return Canary(request, MODELS[model](request)) if self.sealed else None

    @contextmanager
    def repair_lock(self, model: str, since_s: float) -> Iterator[bool]:
        del model, since_s
        yield not self.other_repairs


class Watched:
    """A monitor of three fake models, which tests break and which a reload may heal."""

    def __init__(self, deps: StageDependencies, sealed: bool) -> None:
        self.models = FakeModelClient()
        requests = live_requests(deps.catalogue, 1_700_000_000_000)
        self.store = SealedCanaries(requests, sealed)
        self.changes = 0
        self.monitor = ModelMonitor(
            self.models,
            lambda: Release("r1", dict.fromkeys(MODELS, 1)),
            Canaries(self.store, deps.catalogue, deps.clock),
            self._count_change,
        )

    def _count_change(self) -> None:
        self.changes += 1

    def break_model(self, model: str, answer: Callable[[Answer], Answer], *, heals: bool) -> None:
        """The model's answers go through `answer` until it is reloaded (for good: heals=False)."""
        models, sound = self.models, MODELS[model]
        reloads = len(models.reloaded)

        def broken(inputs: Mapping[str, np.ndarray]) -> Answer:
            if heals and len(models.reloaded) > reloads:
                return sound(inputs)
            return answer(sound(inputs))

        models.answers[model] = broken


@pytest.fixture(params=[True, False], ids=["sealed", "older bundle"])
def watched(request: pytest.FixtureRequest, stage_deps: StageDependencies) -> Watched:
    return Watched(stage_deps, request.param)


def spoiled(name: str, spoil: Callable[[np.ndarray], np.ndarray]) -> Callable[[Answer], Answer]:
    return lambda answer: answer | {name: spoil(answer[name])}


def dies(_: Answer) -> Answer:
    raise ModelProcessDied("Stub process 'ranker_0_0' is not healthy.")


UNSOUND = [
    pytest.param("ranker", spoiled("score", lambda s: s * np.nan), "NaN", id="NaN scores"),
    pytest.param("ranker", spoiled("p", lambda p: p * np.inf), "NaN or infinity", id="infinity"),
    pytest.param("ranker", spoiled("score", np.zeros_like), "same 'score'", id="constant"),
    pytest.param("ranker", spoiled("score", lambda s: s[:1]), "rows of 'score'", id="one row"),
    pytest.param("ranker", spoiled("weights", lambda w: w[:2]), "'weights' of shape", id="shape"),
    pytest.param("queries", spoiled("score", lambda s: s * np.nan), "NaN", id="query scores"),
    pytest.param("queries", lambda a: {"query": a["query"]}, "without 'score'", id="missing"),
    pytest.param("reactivation", spoiled("p_convert", lambda p: p * np.nan), "NaN", id="chances"),
]


def test_sound_answers_are_healthy(watched: Watched) -> None:
    watched.monitor.check()
    assert watched.monitor.problems == {}
    assert watched.changes == 0
    assert {model for model, _ in watched.models.calls} == set(MODELS)


@pytest.mark.parametrize(("model", "answer", "why"), UNSOUND)
def test_an_unsound_answer_is_unhealthy_until_the_canary_is_answered_rightly(
    watched: Watched, model: str, answer: Callable[[Answer], Answer], why: str
) -> None:
    watched.break_model(model, answer, heals=False)
    watched.monitor.check()
    assert why in watched.monitor.problems[model]
    assert list(watched.monitor.problems) == [model]
    assert watched.models.reloaded == [model], "a reload that did not help is no repair"
    watched.monitor.check()
    assert watched.models.reloaded == [model], "the next reload waits"
    watched.models.answers[model] = MODELS[model]
    watched.monitor.check()
    assert watched.monitor.problems == {}


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        ("ranker", spoiled("score", lambda s: s[::-1].copy())),
        ("ranker", spoiled("p", lambda p: p + np.float32(0.01))),
        ("queries", spoiled("query", lambda q: byte_list(["something else"] * len(q)))),
        ("reactivation", spoiled("video_id", lambda v: byte_list(["another"] * len(v)))),
    ],
)
def test_a_well_formed_wrong_answer_is_unhealthy_where_the_right_one_is_sealed(
    stage_deps: StageDependencies, model: str, answer: Callable[[Answer], Answer]
) -> None:
    watched = Watched(stage_deps, sealed=True)
    watched.break_model(model, answer, heals=True)
    watched.monitor.check()
    assert watched.models.reloaded == [model]
    assert watched.monitor.problems == {}, "the reload healed it"
    assert watched.changes == 2


@pytest.mark.parametrize("model", MODELS)
def test_a_dead_process_is_reloaded_at_once(watched: Watched, model: str) -> None:
    watched.break_model(model, dies, heals=True)
    watched.monitor.check()
    assert watched.models.reloaded == [model]
    assert watched.monitor.problems == {}


def test_a_reload_that_fails_is_reported_and_the_others_stay_healthy(watched: Watched) -> None:
    def cannot(model: str) -> None:
        raise ModelUnavailable(f"{model} does not load: no space left")

    watched.break_model("queries", dies, heals=False)
    watched.models.reload = cannot  # type: ignore[method-assign]
    watched.monitor.check()
    assert watched.monitor.problems == {"queries": "queries does not load: no space left"}


def test_a_rejected_canary_is_unhealthy(watched: Watched) -> None:
    def reject(_: Answer) -> Answer:
        raise BadInput("input 'k' is missing")

    watched.break_model("queries", reject, heals=False)
    watched.monitor.check()
    assert "rejects its canary" in watched.monitor.problems["queries"]


def test_a_silent_model_is_reloaded_only_if_it_stays_silent(watched: Watched) -> None:
    def late(_: Answer) -> Answer:
        raise ModelUnavailable("did not answer in time")

    watched.break_model("ranker", late, heals=True)
    watched.monitor.check()
    assert watched.monitor.problems == {"ranker": "did not answer in time"}
    assert watched.models.reloaded == []
    watched.monitor.check()
    assert watched.models.reloaded == ["ranker"]
    assert watched.monitor.problems == {}


def test_while_the_server_is_down_nothing_is_reloaded(watched: Watched) -> None:
    watched.models.down = True
    for _ in range(3):
        watched.monitor.check()
    assert set(watched.monitor.problems) == set(MODELS)
    assert watched.models.reloaded == []


def test_a_model_that_another_gateway_reloads_is_not_reloaded_twice(watched: Watched) -> None:
    watched.store.other_repairs = True
    watched.break_model("ranker", dies, heals=False)
    watched.monitor.check()
    assert watched.models.reloaded == []
    assert list(watched.monitor.problems) == ["ranker"]


def test_one_process_at_a_time_repairs_a_model(tmp_path: Any) -> None:
    mine, other = ReleaseStore(tmp_path), ReleaseStore(tmp_path)
    with mine.repair_lock("ranker", 0.0) as first, other.repair_lock("ranker", 0.0) as second:
        assert (first, second) == (True, False)
    with other.repair_lock("ranker", 0.0) as since_the_repair:
        assert not since_the_repair, "its fault may be older than the repair"
    with other.repair_lock("ranker", 1e12) as later, other.repair_lock("queries", 0.0) as another:
        assert (later, another) == (True, True)


def test_health_shows_the_fault_of_a_model_at_once(make_harness: Any) -> None:
    harness = make_harness(monitor_every_s=0.05)
    died = threading.Event()

    def answer(inputs: Mapping[str, np.ndarray]) -> Answer:
        if died.is_set():
            raise ModelProcessDied("Stub process 'queries_0_0' is not healthy.")
        return ANSWERS["queries"](inputs)

    def part() -> dict[str, str]:
        found: dict[str, str] = harness.client.get("/healthz").json()["parts"]["models"]
        return found

    harness.models.answers["queries"] = answer
    harness.wait_until(lambda: part()["status"] == "up")
    died.set()
    harness.wait_until(lambda: "queries: Stub process" in part().get("reason", ""))
    died.clear()
    harness.wait_until(lambda: part()["status"] == "up")
