"""Laws of the fusion policy: weights on the simplex, group-relative advantages, no leakage."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks.worlds.ranking.config import RankingWorld
from benchmarks.worlds.ranking.gate import DrawnWorld, draw, gate
from models.ranking.grade.config import GroupTraining
from models.ranking.grade.logs import Observables
from models.ranking.grade.policy import FusionPolicy
from models.ranking.grade.rewards import fit_satisfaction, format_reward
from models.ranking.grade.train import (
    feedback_reward,
    lambda_loss,
    train_group_relative,
    update_policy,
)
from models.updates.losses import group_advantage

START = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.15])


def small(name: str, share: float = 0.04) -> DrawnWorld:
    torch.set_num_threads(1)
    return draw(RankingWorld.named(name).scaled(share), seed=0, pools=10)


@pytest.fixture(scope="module")
def headline() -> DrawnWorld:
    return small("headline")


def test_weights_are_on_the_simplex_for_any_input() -> None:
    policy = FusionPolicy(7, START)
    strange = torch.tensor([[float("nan")] * 7, [float("inf")] * 7, [-1e30] * 7, [0.0] * 7])
    with torch.no_grad():
        alpha = policy(strange)
        drawn = policy.draw(alpha, 1, torch.Generator().manual_seed(0))
        weights, density = drawn[:, 0], policy.density(alpha, drawn)[:, 0]
    for given in (policy.mean(strange), weights):
        assert bool((given > 0).all())
        assert torch.allclose(given.sum(-1), torch.ones(4), atol=1e-5)
    assert bool(density.isfinite().all())


def test_the_policy_has_about_thirty_thousand_parameters() -> None:
    assert 25_000 <= sum(p.numel() for p in FusionPolicy(29, START).parameters()) <= 35_000


def test_a_groups_advantages_have_mean_zero_and_ignore_scale_and_level() -> None:
    rewards = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    advantage = group_advantage(rewards)
    assert torch.allclose(advantage.mean(-1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(group_advantage(3 * rewards - 7), advantage, atol=1e-4)
    assert torch.equal(advantage.argsort(-1), rewards.argsort(-1))


def test_equal_rewards_give_no_advantage() -> None:
    assert torch.equal(group_advantage(torch.full((2, 8), 0.3)), torch.zeros(2, 8))
    assert torch.equal(group_advantage(torch.ones(2, 1)), torch.zeros(2, 1))


def test_only_weights_off_the_simplex_are_penalised() -> None:
    good, bad = START, torch.tensor([1.2, -0.2, 0.0, 0.0, 0.0])
    assert format_reward(good).item() == pytest.approx(0, abs=1e-6)
    assert format_reward(bad).item() < -0.1
    assert format_reward(2 * good).item() == pytest.approx(-1)


def test_a_list_in_the_right_order_has_a_smaller_loss() -> None:
    gains = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    right = lambda_loss(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), gains)
    assert right < lambda_loss(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), gains)


def test_observables_before_a_session_do_not_depend_on_it(headline: DrawnWorld) -> None:
    log, at = headline.log, 20
    other = log.means.clone()
    other[0, at:] = 9.0
    changed = Observables.of(replace(log, means=other))
    # the population's own mean and scale move by one user's share; the user's sums may not
    whole = headline.observed
    assert torch.allclose(changed.usual[0, at], whole.usual[0, at], atol=0.05)
    assert not torch.allclose(changed.usual[0, -1], whole.usual[0, -1], atol=0.05)


def test_the_same_seed_draws_the_same_log() -> None:
    one, two = small("headline", 0.01), small("headline", 0.01)
    assert torch.equal(one.log.satisfied, two.log.satisfied)
    assert torch.equal(one.observed.values, two.observed.values)


def test_logged_weights_are_on_the_simplex_and_their_density_is_finite(
    headline: DrawnWorld,
) -> None:
    assert torch.allclose(headline.log.weights.sum(-1), torch.ones(1), atol=1e-5)
    assert bool(headline.log.log_density.isfinite().all())


def test_the_headline_world_passes_its_gate() -> None:
    """On a tenth of the users; the full figures are in docs/worlds/ranking.md."""
    figures = gate(small("headline", 0.1), 0, steps=300)
    assert 0.07 <= figures.gap <= 0.12
    assert 0.45 <= figures.reachable <= 0.70
    assert 0.2 <= figures.correlation <= 0.3
    assert figures.spread > 0.3


def test_the_null_world_gives_no_method_a_gain() -> None:
    """Neither a regressor of the truth nor GRADE gains, and GRADE loses little."""
    null = small("null")
    assert gate(null, 0, steps=200).gap < 0.002
    static = float(null.test.utility(null.static).mean())
    policy = _trained(null)
    ours = null.test.utility(policy.mean(null.observed.now[null.test.users]))
    assert ours.mean() <= static * 1.002
    assert ours.mean() >= static * 0.95  # a 25th of the users: noise costs more than in the bench


def _trained(drawn: DrawnWorld) -> FusionPolicy:
    torch.manual_seed(0)
    prior = fit_satisfaction(drawn.log, drawn.observed, START, steps=200, seed=0)
    rules = GroupTraining(steps=60)
    reward = feedback_reward(drawn.log, drawn.observed, prior, rules)
    policy = FusionPolicy(drawn.observed.width, START)
    return train_group_relative(policy, drawn.log, drawn.observed, reward, rules, seed=0)


def test_group_training_follows_a_reward_for_one_task(headline: DrawnWorld) -> None:
    policy = FusionPolicy(headline.observed.width, START)
    now = headline.observed.now[:50]
    before = policy.mean(now)[:, 4].mean()
    rules = GroupTraining(steps=30, batch=64)
    train_group_relative(policy, headline.log, headline.observed, lambda *a: a[3][..., 4], rules, 0)
    assert policy.mean(now)[:, 4].mean() > before + 0.05


def test_an_update_does_not_change_the_served_policy(headline: DrawnWorld) -> None:
    policy = FusionPolicy(headline.observed.width, START)
    kept = copy.deepcopy(policy.state_dict())
    prior = fit_satisfaction(headline.log, headline.observed, START, steps=20, seed=0)
    args = (policy, headline.log, headline.observed, prior)
    challenger = update_policy(*args, since=45, steps=5, seed=0)
    assert all(torch.equal(kept[name], value) for name, value in policy.state_dict().items())
    now = headline.observed.now[:50]
    assert not torch.equal(challenger.mean(now), policy.mean(now))
    with pytest.raises(ValueError, match="earlier"):
        update_policy(*args, since=50, steps=5, seed=0)


def test_an_unknown_world_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="headline"):
        RankingWorld.named("nowhere")
