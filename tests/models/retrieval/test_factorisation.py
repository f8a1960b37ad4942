"""The liking factors: liking is not meeting, no pair scores itself, newcomers are folded in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.ids import id_hash, id_hashes
from models.recipe import NotEnoughData, TrainingLog
from models.retrieval.factorisation.blend import learned_weights
from models.retrieval.factorisation.config import FactorisationConfig
from models.retrieval.factorisation.data import ACTIONS, interactions
from models.retrieval.factorisation.factors import LikingFactors
from models.retrieval.factorisation.train import CrossFitted, cross_fit, fold_of, train
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
def fitted(camps: TrainingLog) -> CrossFitted:
    return cross_fit(camps, FactorisationConfig(), seed=0)


@pytest.fixture(scope="module")
def factors(fitted: CrossFitted) -> LikingFactors:
    return fitted.factors


NOTHING = np.zeros(0, np.int64)


def best(factors: LikingFactors, vector: np.ndarray, count: int) -> list[int]:
    order = np.argsort(-factors.scores(vector), kind="stable")[:count]
    return [int(factors.item_ids[row][1:]) for row in order]


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
    assert pairs.actions[:, ACTIONS.index("like")].tolist() == [False, True, False, False]
    assert pairs.plays[[1, 2, 3]].tolist() == [2, 1, 0]


def test_each_camp_is_offered_its_own_half(factors: LikingFactors) -> None:
    for user in range(0, USERS, 7):
        vector = factors.vector(id_hash(f"u{user}"), NOTHING, NOTHING)
        assert np.mean([item % 2 == user % 2 for item in best(factors, vector, 10)]) > 0.9


def test_a_user_who_was_not_in_training_follows_from_the_history(factors: LikingFactors) -> None:
    met = id_hashes([f"v{n}" for n in range(12)])
    for camp in (0, 1):
        liking = np.where(np.arange(12) % 2 == camp, 0.9, 0.1)
        vector = factors.vector(id_hash("stranger"), met, liking)
        assert np.mean([item % 2 == camp for item in best(factors, vector, 10)]) > 0.9
    padded = factors.vector(id_hash("stranger"), np.r_[met, 0, 0], np.r_[liking, 1.0, 1.0])
    np.testing.assert_allclose(padded, vector)


def test_a_stranger_without_a_history_gets_the_likings_of_all(factors: LikingFactors) -> None:
    vector = factors.vector(id_hash("stranger"), NOTHING, NOTHING)
    assert np.array_equal(factors.scores(vector), factors.bias + factors.popular)


def test_parts_add_up_to_the_score_and_unknown_items_have_none(factors: LikingFactors) -> None:
    vector = factors.vector(id_hash("u3"), NOTHING, NOTHING)
    parts = factors.parts(vector, id_hashes([*factors.item_ids, "new"]))
    np.testing.assert_allclose(parts[:-1].sum(1), factors.scores(vector), rtol=1e-5, atol=1e-6)
    assert not parts[-1].any()
    assert not LikingFactors.empty().parts(np.zeros(1), id_hashes(["v1", "v2"])).any()


def test_no_pair_is_scored_by_factors_that_learned_from_it(
    camps: TrainingLog, fitted: CrossFitted
) -> None:
    """A pair's own liking changes the served factors, and not the parts it is trained with."""
    pairs = fitted.pairs
    user, item = pairs.user_hash[pairs.user[:1]], pairs.item_hash[pairs.item[:1]]
    other = pl.when(pl.col("dwell_ms") > DURATION_MS // 2).then(1).otherwise(DURATION_MS)
    own = (pl.col("user_id") == pairs.user_ids[pairs.user[0]]) & (
        pl.col("video_id") == pairs.item_ids[pairs.item[0]]
    )
    events = camps.events.with_columns(
        dwell_ms=pl.when(own).then(other).otherwise("dwell_ms").cast(pl.Int32)
    )
    config = FactorisationConfig(ridges=(3.0,))
    before = cross_fit(camps, config, seed=0)
    after = cross_fit(TrainingLog(events, camps.items, camps.feedback, 10**9), config, seed=0)
    fold = int(fold_of(user, item, config.folds)[0])
    assert np.array_equal(before.folds[fold].mean, after.folds[fold].mean)
    assert not np.array_equal(before.factors.mean, after.factors.mean)


def test_held_out_parts_still_tell_the_camps_apart(fitted: CrossFitted) -> None:
    pairs = fitted.pairs
    own = pairs.liking > 0.5
    users, items = pairs.user_hash[pairs.user], pairs.item_hash[pairs.item]
    personal = fitted.unseen_parts(users, items)[:, 1]
    assert personal[own].mean() > 0 > personal[~own].mean()
    unknown = fitted.unseen_parts(users[:2], np.array([id_hash("new"), items[1]]))
    assert not unknown[0].any()
    assert unknown[1].any()


def test_factors_read_back_as_they_were_written(factors: LikingFactors, tmp_path: Path) -> None:
    assert not LikingFactors.read(tmp_path).item_ids, "a folder without factors has empty ones"
    factors.save(tmp_path)
    again = LikingFactors.read(tmp_path)
    assert (again.user_ids, again.item_ids) == (factors.user_ids, factors.item_ids)
    assert (again.ridge, again.scale) == (factors.ridge, factors.scale)
    for name in ("mean", "bias", "users", "items", "popular"):
        assert np.array_equal(getattr(again, name), getattr(factors, name))


def test_the_same_seed_gives_the_same_factors(camps: TrainingLog, factors: LikingFactors) -> None:
    again = train(camps, FactorisationConfig(), seed=0)
    assert np.array_equal(again.users, factors.users)


def test_too_few_interactions_are_named() -> None:
    with pytest.raises(NotEnoughData, match="1 of 200"):
        train(_log([("u1", "v1", "play", 1, 6_000, None)]), FactorisationConfig(), seed=0)


def test_weights_are_learned_only_from_enough_impressions() -> None:
    rng = np.random.default_rng(0)
    parts, slot = rng.normal(size=(4_000, 3)), rng.normal(size=(4_000, 1))
    odds = parts @ [1.0, 2.0, -0.5] - 1 + 1.5 * slot[:, 0]
    played = rng.random(4_000) < 1 / (1 + np.exp(-odds))
    start = np.array([0.3, 0.3, 0.3])
    weights = learned_weights(parts, played, start, 20.0, slot)
    assert weights[:2] == pytest.approx([1.0, 2.0], abs=0.2)
    assert weights[2] == 0, "popularity cannot count against an item"
    assert np.array_equal(learned_weights(parts[:100], played[:100], start, 20.0), start)


def test_weights_do_not_depend_on_the_unit_of_a_part(camps: TrainingLog) -> None:
    """The start is stated by standard deviation: a smaller ridge changes the parts' scale only."""
    scales = []
    for ridge in (2.0, 4.0):
        found = cross_fit(camps, FactorisationConfig(ridges=(ridge,)), seed=0)
        scales.append(found.parts.std(axis=0)[1])
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)


def test_a_part_starts_with_the_share_of_its_weight_that_held_out_likings_support(
    fitted: CrossFitted,
) -> None:
    """Two camps: taste explains everything, and no item is liked more than another."""
    bias, personal, popular = fitted.parts.std(axis=0)
    start = FactorisationConfig().start
    assert personal == pytest.approx(start[1])
    assert popular == pytest.approx(start[2])
    assert bias < start[0] / 2


@pytest.mark.parametrize("seed", [1])
def test_without_taste_the_personal_part_starts_at_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str, int, int | None, str | None]] = []
    for user in range(USERS):
        for step, item in enumerate(rng.choice(ITEMS, 30, replace=False).tolist()):
            liked = rng.random() < (0.8 if item < ITEMS / 2 else 0.2)  # by everybody alike
            rows.append((f"u{user}", f"v{item}", "play", step, int(DURATION_MS * liked), None))
    found = cross_fit(_log(rows), FactorisationConfig(), seed=0)
    assert found.parts[:, 1].std() < FactorisationConfig().start[1] / 10
    assert found.parts[:, 0].std() == pytest.approx(FactorisationConfig().start[0])
