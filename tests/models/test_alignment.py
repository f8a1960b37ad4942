"""Laws of alignment: preference pairs are valid, and the gate separates good from bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.alignment.gate import policy_decisions
from models.alignment.off_policy import (
    Decisions,
    Estimate,
    doubly_robust,
    effective_sample_size,
    ips,
    slate_decisions,
    snips,
)
from models.alignment.pairs import preference_pairs
from models.alignment.ranker import RankerUpdate
from models.ranking.ple.data import impression_examples, slot_examination
from models.recipe import NotEnoughData, TrainingLog
from models.updates.losses import listwise_dpo
from streams.progress import no_progress


def test_examples_equal_the_shown_slates(small_log: TrainingLog) -> None:
    slates = impression_examples(small_log, count=10_000)
    assert slates.real.sum() == small_log.feedback.height
    assert slates.acted.sum() == small_log.feedback["play"].sum()
    assert (np.diff(slates.slot, axis=1) == 1).all()


def test_only_examined_candidates_are_rejected(small_log: TrainingLog) -> None:
    slates = impression_examples(small_log, count=10_000)
    wanted = preference_pairs(slates)
    assert len(wanted) > 0
    assert slates.acted[wanted.group, wanted.chosen].all()
    assert not (wanted.rejected & slates.acted[wanted.group]).any()
    below = slates.slot[wanted.group] > wanted.chosen[:, None] + 1
    assert not (wanted.rejected & below).any()
    assert wanted.weight.mean() == pytest.approx(1, abs=1e-3)


def test_estimated_examination_falls_with_the_slot(small_log: TrainingLog) -> None:
    looked = slot_examination(impression_examples(small_log, count=10_000))
    truth = 1 / np.log2(np.arange(len(looked)) + 2)
    np.testing.assert_allclose(looked, truth, atol=0.12)


def test_with_one_rejected_candidate_the_loss_is_dpos() -> None:
    margin = torch.tensor([[0.3, -0.7]])
    loss = listwise_dpo(margin, torch.tensor([0]), torch.tensor([[False, True]]))
    assert loss.item() == pytest.approx(-np.log(1 / (1 + np.exp(-1.0))), abs=1e-6)


def test_a_challenger_of_honest_feedback_passes_the_gate(
    small_log: TrainingLog, trained: Path, tmp_path: Path
) -> None:
    verdict = RankerUpdate().challenge(trained, small_log, tmp_path, seed=0, progress=no_progress)
    assert verdict.promoted, verdict.reasons
    assert verdict.gauc.difference[1] > 0
    assert (tmp_path / "ranker.onnx").is_file()


def test_a_challenger_of_poisoned_feedback_is_refused(
    poisoned_log: TrainingLog, trained: Path, tmp_path: Path
) -> None:
    verdict = RankerUpdate().challenge(
        trained, poisoned_log, tmp_path, seed=0, progress=no_progress
    )
    assert not verdict.promoted
    assert any("GAUC" in reason for reason in verdict.reasons)


def test_slates_of_drawn_weights_are_evaluated_given_their_weights() -> None:
    """Two items per slate, each slate ranked by its own draw of weights: ratios given the draw
    estimate the value of ranking by the mean; ratios that assume the mean ranked do not."""
    rng = np.random.default_rng(0)
    count, mean = 320_000, np.array([0.5, 0.5])
    ratios = rng.gamma(2.0, 0.5, (count, 2, 2))  # [slates, items, tasks]
    drawn = rng.dirichlet(4 * mean, count)
    by_draw = 3 * np.log(np.einsum("nct,nt->nc", ratios, drawn))
    by_mean = 3 * np.log(ratios @ mean)
    chance = np.clip(0.3 * ratios[..., 0], 0, 1)  # only the first task pays
    first = (by_draw + rng.gumbel(size=by_draw.shape)).argmax(1)
    slot = np.stack([first, 1 - first], 1)  # item 0 stands first where `first` is 0
    reward = rng.random(chance.shape) < chance
    target = np.exp(by_mean)
    truth = float(((target / target.sum(1, keepdims=True)) * chance).sum(1).mean())

    def errors_off(logged: np.ndarray) -> float:
        real, users = np.ones(chance.shape, bool), np.arange(count)
        found = slate_decisions(users, reward, slot, real, logged, by_mean, chance)
        earned = found.ratio * found.reward
        return abs(float(earned.mean()) - truth) / (float(earned.std()) / count**0.5)

    assert errors_off(by_draw) < 2
    assert errors_off(by_mean) > 3


def test_slates_of_the_popularity_arm_are_no_choices_of_the_ranker(small_log: TrainingLog) -> None:
    half = pl.col("request_id").hash(seed=0) % 2 == 0
    feedback = small_log.feedback.with_columns(
        arm=pl.when(half).then(pl.lit("popularity")).otherwise(pl.lit("ranker"))
    )
    mixed = impression_examples(replace(small_log, feedback=feedback), count=500)
    assert 0.2 < mixed.ranked.mean() < 0.8
    scores = np.random.default_rng(0).random(mixed.item.shape)
    rows = np.flatnonzero(mixed.ranked)
    alone = policy_decisions(mixed.take(rows), scores[rows], scores[rows])
    found = policy_decisions(mixed, scores, scores)
    assert np.array_equal(found.logged, alone.logged)
    none = replace(mixed, ranked=np.zeros(len(mixed), bool))
    assert snips(policy_decisions(none, scores, scores)).effective_n == 0


def test_too_few_slates_are_an_error_with_their_number(
    small_log: TrainingLog, trained: Path, tmp_path: Path
) -> None:
    few = replace(small_log, feedback=small_log.feedback.head(60))
    with pytest.raises(NotEnoughData, match="100 needed"):
        RankerUpdate().challenge(trained, few, tmp_path, seed=0, progress=no_progress)


def bandit(seed: int, n: int = 3_000) -> tuple[Decisions, float]:
    """A logged bandit of three arms with its true value under the target policy."""
    rng = np.random.default_rng(seed)
    worth, log, target = np.array([0.1, 0.3, 0.6]), np.array([0.6, 0.3, 0.1]), np.full(3, 1 / 3)
    arm = rng.choice(3, n, p=log)
    reward = (rng.random(n) < worth[arm]).astype(float)
    believed = worth * 0.7 + 0.1
    decisions = Decisions(
        users=np.arange(n) // 10,
        reward=reward,
        logged=log[arm],
        target=target[arm],
        expected=believed[arm],
        expected_target=np.full(n, believed @ target),
    )
    return decisions, float(worth @ target)


@pytest.mark.parametrize("estimator", [ips, snips, doubly_robust])
def test_an_estimator_finds_the_true_value_where_the_log_mean_does_not(
    estimator: Callable[[Decisions], Estimate],
) -> None:
    values = [estimator(bandit(seed)[0]).value for seed in range(40)]
    decisions, truth = bandit(0)
    error = np.std(values) / np.sqrt(len(values))
    assert np.mean(values) == pytest.approx(truth, abs=4 * error)
    assert abs(decisions.reward.mean() - truth) > 0.05


def test_a_better_policys_interval_lies_above_zero() -> None:
    decisions, _ = bandit(1)
    assert snips(decisions).difference[1] > 0
    assert doubly_robust(decisions).difference[1] > 0


def test_even_weights_keep_the_whole_sample() -> None:
    assert effective_sample_size(np.ones(50)) == pytest.approx(50)
    assert effective_sample_size(np.r_[1.0, np.zeros(49)]) == pytest.approx(1)


def test_the_logging_policy_has_its_own_value(small_log: TrainingLog) -> None:
    slates = impression_examples(small_log, count=300)
    scores = np.random.default_rng(0).normal(size=slates.item.shape)
    same = slate_decisions(
        slates.users.astype(str),
        slates.acted,
        slates.slot,
        slates.real,
        scores,
        scores,
        np.full(scores.shape, 0.2),
    )
    np.testing.assert_allclose(same.ratio, 1)
    assert snips(same).difference[0] == pytest.approx(0)
    assert ips(same).difference[0] == pytest.approx(0)
