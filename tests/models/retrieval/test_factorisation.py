"""The liking factors: liking is not meeting, dislikes count, and a bundle reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.recipe import NotEnoughData, TrainingLog
from models.retrieval.factorisation.blend import learned_weights
from models.retrieval.factorisation.config import FactorisationConfig
from models.retrieval.factorisation.data import interactions
from models.retrieval.factorisation.factors import LikingFactors
from models.retrieval.factorisation.train import train
from streams.feedback.outcomes import FEEDBACK_SCHEMA

USERS, ITEMS, DURATION_MS = 80, 60, 60_000


def _log(rows: list[tuple[str, str, str, int, int | None, str | None]]) -> TrainingLog:
    names = ("user_id", "video_id", "kind", "event_time_ms", "dwell_ms", "impression")
    types = (pl.String, pl.String, pl.String, pl.Int64, pl.Int32, pl.String)
    events = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
    items = pl.DataFrame(
        {"video_id": [f"v{n}" for n in range(ITEMS)], "duration_ms": [DURATION_MS] * ITEMS}
    )
    feedback = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(feedback, pl.DataFrame)
    return TrainingLog(events, items, feedback, 10**9)


@pytest.fixture(scope="module")
def camps() -> TrainingLog:
    """Two camps of users meet all items alike; each watches one half of the items to the end."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str, str, int, int | None, str | None]] = []
    for user in range(USERS):
        for step, item in enumerate(rng.choice(ITEMS, 30, replace=False).tolist()):
            likes = item % 2 == user % 2
            dwell_ms = int(DURATION_MS * (0.9 if likes else 0.1))
            rows.append((f"u{user}", f"v{item}", "play", step, dwell_ms, None))
    return _log(rows)


@pytest.fixture(scope="module")
def factors(camps: TrainingLog) -> LikingFactors:
    return train(camps, FactorisationConfig(), seed=0)


def test_the_strongest_sign_of_a_pair_is_its_liking() -> None:
    log = _log(
        [
            ("u1", "v1", "play", 1, 6_000, None),
            ("u1", "v2", "play", 2, 6_000, "i1"),
            ("u1", "v2", "like", 3, None, "i1"),
            ("u1", "v3", "skip", 4, 1_500, "i2"),
            ("u2", "v1", "order", 5, None, None),
        ]
    )
    pairs = interactions(log)
    assert pairs.liking.tolist() == pytest.approx([0.1, 0.85, 0.0, 1.0])
    assert pairs.played.tolist() == [True, True, False, True]
    assert pairs.shown.tolist() == [False, True, True, False]
    assert pairs.plays[[1, 2, 3]].tolist() == [2, 1, 0]


def test_each_camp_is_offered_its_own_half(factors: LikingFactors) -> None:
    for user in range(0, USERS, 7):
        own = [int(item_id[1:]) % 2 == user % 2 for item_id in factors.best(f"u{user}", 10)]
        assert np.mean(own) > 0.9


def test_an_unknown_user_gets_the_likings_of_all(factors: LikingFactors) -> None:
    assert np.array_equal(factors.scores("stranger"), factors.bias + factors.popular)


def test_factors_read_back_as_they_were_written(factors: LikingFactors, tmp_path: Path) -> None:
    factors.save(tmp_path)
    again = LikingFactors.read(tmp_path)
    assert again.best("u3", 20) == factors.best("u3", 20)
    assert again.ridge == factors.ridge


def test_the_same_seed_gives_the_same_factors(camps: TrainingLog, factors: LikingFactors) -> None:
    again = train(camps, FactorisationConfig(), seed=0)
    assert np.array_equal(again.users, factors.users)


def test_too_few_interactions_are_named() -> None:
    with pytest.raises(NotEnoughData, match="1 of 200"):
        train(_log([("u1", "v1", "play", 1, 6_000, None)]), FactorisationConfig(), seed=0)


def test_weights_are_learned_only_from_enough_impressions() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(4_000, 3))
    odds = parts @ [1.0, 2.0, -0.5] - 1
    played = rng.random(4_000) < 1 / (1 + np.exp(-odds))
    weights = learned_weights(parts, played)
    assert weights is not None
    assert weights[:2] == pytest.approx([1.0, 2.0], abs=0.2)
    assert weights[2] == 0, "popularity cannot count against an item"
    assert learned_weights(parts[:100], played[:100]) is None
