"""Laws of values from logged pools, on a world small enough to list every slate."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from models.alignment.gate import GateThresholds, evaluate_challenger
from models.alignment.pool_values import LoggedPools, cascade_doubly_robust, slot_propensities

POOL, SLOTS = 5, 3
LOOK = np.array([1.0, 0.6, 0.4])
APPEAL = np.array([0.05, 0.15, 0.3, 0.5, 0.7])
LOGGING = np.array([0.0, 0.4, 0.3, 0.6, 0.2])
TARGET = np.array([-0.4, 0.2, 0.1, 0.9, 0.8])
SLATES = np.array(list(permutations(range(POOL), SLOTS)))


def chances(slates: np.ndarray) -> np.ndarray:
    """P(action) by slot [N, K]: an item right below the best one is acted on half as often."""
    best = APPEAL.argmax()
    after = np.concatenate([np.zeros((len(slates), 1), bool), slates[:, :-1] == best], axis=1)
    return np.asarray(APPEAL[slates] * LOOK * np.where(after, 0.5, 1.0))


def probability(preference: np.ndarray) -> np.ndarray:
    """P of every slate [N]."""
    wide = np.broadcast_to(preference, (len(SLATES), POOL))
    return np.asarray(slot_propensities(wide, SLATES).prod(1))


def truth(preference: np.ndarray) -> float:
    return float(probability(preference) @ chances(SLATES).sum(1))


def pools(shown: np.ndarray, reward: np.ndarray, expected: np.ndarray) -> LoggedPools:
    n = len(shown)
    return LoggedPools(
        users=np.arange(n) // 4,
        logged=np.broadcast_to(LOGGING, (n, POOL)),
        target=np.broadcast_to(TARGET, (n, POOL)),
        shown=shown,
        reward=reward,
        expected=np.broadcast_to(expected, (n, POOL)),
        look=LOOK,
    )


def drawn(seed: int, n: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shown = SLATES[rng.choice(len(SLATES), n, p=probability(LOGGING))]
    return shown, (rng.random(shown.shape) < chances(shown)).astype(float)


def test_slot_propensities_sum_to_one_over_all_slates() -> None:
    assert probability(LOGGING).sum() == pytest.approx(1)
    padded = slot_propensities(LOGGING[None], np.array([[2, -1, -1]]))
    np.testing.assert_allclose(padded[0], [np.exp(0.3) / np.exp(LOGGING).sum(), 1, 1])


@pytest.mark.parametrize("expected", [APPEAL, np.full(POOL, 0.9), np.zeros(POOL)])
def test_the_estimate_is_exact_in_expectation_whatever_the_reward_model(
    expected: np.ndarray,
) -> None:
    """Every slate once, at its expected reward, weighted by its probability."""
    found = cascade_doubly_robust(pools(SLATES, chances(SLATES), expected))
    assert np.isfinite(found.value)
    each = np.array(
        [
            cascade_doubly_robust(pools(one[None], chances(one[None]), expected)).value
            for one in SLATES
        ]
    )
    assert probability(LOGGING) @ each == pytest.approx(truth(TARGET), abs=1e-12)


def test_drawn_logs_are_unbiased_and_their_intervals_cover_the_truth() -> None:
    true = truth(TARGET) - truth(LOGGING)
    found = [cascade_doubly_robust(pools(*drawn(seed), APPEAL)) for seed in range(40)]
    means = np.array([each.difference[0] for each in found])
    assert means.mean() == pytest.approx(true, abs=4 * means.std() / np.sqrt(len(means)))
    covered = [each.difference[1] <= true <= each.difference[2] for each in found]
    assert np.mean(covered) >= 0.85


def test_the_logging_policy_has_its_own_value() -> None:
    shown, reward = drawn(0)
    same = pools(shown, reward, np.zeros(POOL))
    own = LoggedPools(**{**vars(same), "target": same.logged})
    found = cascade_doubly_robust(own)
    assert found.difference == pytest.approx((0, 0, 0))
    assert found.effective_n == pytest.approx(len(shown))


class Shown:
    """The slates that the gate judges."""

    def __init__(self, reward: np.ndarray) -> None:
        self.users = np.arange(len(reward)) // 4
        self.acted = reward > 0
        self.real = np.ones(reward.shape, bool)
        self.slot = np.broadcast_to(np.arange(SLOTS), reward.shape)
        self.ranked = np.ones(len(reward), bool)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Shown:
        return Shown(self.acted[rows].astype(float))


@pytest.mark.parametrize(("better", "promoted"), [(True, True), (False, False)])
def test_pools_decide_where_there_are_enough(better: bool, promoted: bool) -> None:
    shown, reward = drawn(3)
    preference = TARGET if better else -TARGET
    given = pools(shown, reward, APPEAL)
    given = LoggedPools(
        **{**vars(given), "target": np.broadcast_to(preference, given.logged.shape)}
    )
    scores = np.exp(LOGGING)[shown]
    # By shown items alone the verdict would be the other one.
    misleading = 1 / scores if better else scores * np.where(reward > 0, 2, 1)
    rules = GateThresholds()
    verdict = evaluate_challenger(Shown(reward), scores, misleading, rules, seed=0, pools=given)
    alone = evaluate_challenger(Shown(reward), scores, misleading, rules, seed=0)
    assert verdict.promoted is promoted, verdict.reasons
    assert alone.promoted is not promoted, alone.reasons
    assert verdict.pool_value is not None
