"""Laws of exploration by weights: the configured share is ranked by a draw, which is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.monitoring.served_log import ServedLog, ServedSlate
from models.ranking.fake import fake_ranker
from models.ranking.grade.dirichlet import log_density
from serving.fakes import ANSWERS
from serving.gateway import SERVED
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query
from serving.stages.scorers import Ranker
from serving.surfaces.feed import FeedRequest
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.events import CatalogueItem
from streams.contract.impression import verify
from streams.contract.schema import from_ipc
from streams.contract.topics import EVENTS_BY_USER
from streams.feedback.store import FeedbackStore, read_feedback

Make = Callable[..., Any]
KEY = bytes(range(32))


@pytest.fixture
def drawing(make_harness: Make, tmp_path: Any) -> Any:
    """A harness in which every feed is ranked by drawn weights."""
    return make_harness(streams=False, drawn_share=1.0, state_dir=tmp_path / "gateway")


def test_a_drawn_reply_is_marked_and_ranked_by_the_weights_it_reports(drawing: Any) -> None:
    reply = drawing.feed()
    assert reply["weights_drawn"] is True
    weights = np.array(list(reply["weights"].values()))
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    for item in reply["items"]:
        ratios = [item["p"][task] / reply["rates"][task] for task in reply["weights"]]
        assert item["score"] == pytest.approx(np.dot(ratios, weights), rel=1e-4)
    assert drawing.feed()["weights"] == reply["weights"], "the same seed, the same draw"
    assert drawing.feed(seed=6)["weights"] != reply["weights"]


def test_every_token_and_the_served_log_contain_the_draw_and_its_density(drawing: Any) -> None:
    reply = drawing.feed()
    weights = list(reply["weights"].values())
    alpha = 40 * np.array(list(_means(drawing).values()), np.float32)
    density = log_density(alpha, np.array(weights, np.float32))
    for item in reply["items"]:
        token = verify(item["impression"], KEY)
        assert token.weights == pytest.approx(weights, abs=1e-6)
        assert token.log_density == pytest.approx(density, abs=1e-3)
        assert token.propensity == item["propensity"]
    drawing.gateway.served.flush()
    row = ServedLog(drawing.deps.config.state_dir / SERVED).read().row(0, named=True)
    assert row["weights"] == pytest.approx(weights, abs=1e-6)
    assert row["log_density"] == pytest.approx(density, abs=1e-3)


def test_feedback_contains_the_draw_and_its_outcome(make_harness: Make, tmp_path: Any) -> None:
    """Through ingest and the feedback join to the rows that the policy is trained on."""
    harness = make_harness(drawn_share=1.0)
    reply = harness.feed()
    first = reply["items"][0]
    for kind in ("shown", "like"):
        sent = harness.send_event(kind, first["video_id"], impression=first["impression"])
        assert sent.status_code == 202, sent.text
    harness.wait_until(lambda: harness.engaged() == [first["video_id"]], 20.0)
    feedback = FeedbackStore(tmp_path, key=KEY, windows_ms={"like": 60_000})
    consumer = harness.bus.consumer([EVENTS_BY_USER], "feedback")
    while records := consumer.poll(500, 0.3):
        for each in records:
            stamp = Stamp(harness.bus.topic_id(EVENTS_BY_USER), each.partition, each.offset)
            feedback.join(Delivery(EVENTS_BY_USER, stamp, from_ipc(each.value or b"")))
    (row,) = read_feedback(tmp_path).iter_rows(named=True)
    assert (row["request_id"], row["like"]) == (reply["slate_id"], True)
    assert row["weights"] == pytest.approx(list(reply["weights"].values()), abs=1e-5)
    assert row["log_density"] == pytest.approx(verify(first["impression"], KEY).log_density)


def test_provided_candidates_and_user_pages_are_ranked_by_the_mean(drawing: Any) -> None:
    """Neither is learned from, so neither explores."""
    reply = drawing.feed(candidates=["v1", "v2", "v3"])
    assert reply["weights_drawn"] is False
    assert reply["weights"] == pytest.approx(_means(drawing))
    token = verify(reply["items"][0]["impression"], KEY)
    assert (token.weights, token.log_density) == (None, None)


def test_the_share_holds_over_many_requests(make_harness: Make) -> None:
    harness = make_harness(streams=False, drawn_share=0.25)
    drawn = [harness.gateway.surfaces.answer(FeedRequest(user_id="u", seed=n)) for n in range(200)]
    share = np.mean([slate.log_density is not None for slate in drawn])
    assert share == pytest.approx(0.25, abs=0.09)


@pytest.mark.parametrize("alpha", [np.nan, -1.0, 0.0, np.inf])
def test_an_invalid_concentration_is_answered_by_the_mean(make_harness: Make, alpha: float) -> None:
    harness = make_harness(streams=False, drawn_share=1.0)
    broken = lambda inputs: fake_ranker(inputs) | {"alpha": np.full(5, alpha, np.float32)}  # noqa: E731
    harness.models.answers = dict(ANSWERS) | {"ranker": broken}
    reply = harness.feed()
    assert (reply["fallbacks"], reply["weights_drawn"]) == ([], False)
    assert sum(reply["weights"].values()) == pytest.approx(1, abs=1e-5)


def test_a_nan_prediction_affects_only_its_own_candidate(make_harness: Make) -> None:
    harness = make_harness(streams=False)
    deps = harness.gateway.surfaces.deps
    items = [CatalogueItem(video_id=f"v{n}", title="") for n in range(3)]
    pool = Pool.of(tuple(Candidate(item.video_id, "given", item=item) for item in items))

    def one_is_nan(inputs: Any) -> Any:
        found = fake_ranker(inputs)
        found["p"][1] = np.nan
        return found

    harness.models.answers = dict(ANSWERS) | {"ranker": one_is_nan}
    ranker = Ranker(deps.models, deps.catalogue, deps.popularity, drawn_share=1.0)
    scored = ranker.score(Query("r", "feed", "u", 3, 1, 7), pool)
    assert scored.log_density is not None
    assert np.isfinite(scored.score).tolist() == [True, False, True]
    assert np.isfinite(scored.weights).all()
    mean = ranker.score(Query("r", "feed", "u", 3, 1, 7, explore=False), pool)
    assert mean.log_density is None


def test_served_logs_without_weights_are_read_together_with_newer_ones(tmp_path: Any) -> None:
    one = np.zeros(3, np.float32)
    slate = ServedSlate("r1", "u", 1, "r", False, one, np.zeros(2, int), ("v",), one)
    log = ServedLog(tmp_path)
    log.append([slate])
    (path,) = tmp_path.glob("*.parquet")
    log.read().drop("weights", "log_density").write_parquet(path)
    log.append([replace(slate, request_id="r2", served_at_ms=2, log_density=1.5)])
    assert log.read()["log_density"].to_list() == [None, 1.5]


def _means(harness: Any) -> dict[str, float]:
    weights: dict[str, float] = harness.client.get("/v1/users/u1").json()["weights"]
    return weights
