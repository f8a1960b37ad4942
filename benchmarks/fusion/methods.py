"""Every method of the fusion benchmark on one drawn world, and two that use the truth.

Knows each method's inputs and budget. All are trained on one log. Does not know the bars.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.fusion.baselines import GaussianPolicy, invalid_share, regression, reinforce
from benchmarks.fusion.outcome import Outcome
from benchmarks.worlds.ranking.bounds import regress_truth
from benchmarks.worlds.ranking.config import RankingWorld
from benchmarks.worlds.ranking.gate import DrawnWorld, draw
from benchmarks.worlds.ranking.pools import PoolEvaluator, attention, item_value, slate_mean
from models.ranking.grade.config import GroupTraining
from models.ranking.grade.policy import FusionPolicy
from models.ranking.grade.rewards import fit_satisfaction
from models.ranking.grade.train import feedback_reward, train_group_relative, train_listwise


def run_methods(world: RankingWorld, seed: int, budget: float) -> Outcome:
    """Every method on one drawn world. `budget` scales the numbers of updates."""
    outcome, drawn = Outcome(), draw(world, seed)
    log, observed, start = drawn.log, drawn.observed, torch.tensor(world.logging.weights)
    now, updates = observed.now[drawn.test.users], int(400 * budget)
    first = train_listwise(log, observed, start, steps=int(250 * budget), seed=seed)
    prior = fit_satisfaction(log, observed, start, steps=int(150 * budget), seed=seed)

    def stage_two(policy: FusionPolicy, rules: GroupTraining, name: str) -> FusionPolicy:
        def watch(step: int, current: FusionPolicy) -> None:
            if step == rules.steps // 4:
                utility = float(drawn.test.utility(current.mean(now)).mean())
                outcome.note(f"quarter {name}", utility)

        reward = feedback_reward(log, observed, prior if rules.prior > 0 else None, rules)
        return train_group_relative(policy, log, observed, reward, rules, seed, progress=watch)

    fresh: Callable[[], FusionPolicy] = lambda: copy.deepcopy(first)  # noqa: E731
    torch.manual_seed(seed)
    gaussian = GaussianPolicy(observed.width, start)
    policies = {
        "LTR only": first,
        "regression": regression(log, observed, start, steps=int(4000 * budget), seed=seed),
        "GRADE": stage_two(fresh(), GroupTraining(steps=updates), "GRADE"),
        "Gaussian exploration": stage_two(gaussian, GroupTraining(steps=updates), "Gaussian"),
        "REINFORCE": reinforce(fresh(), log, observed, steps=int(400 * budget), seed=seed),
        "posterior-only": stage_two(
            fresh(), GroupTraining(steps=updates, prior=0, posterior=1), "posterior-only"
        ),
        "prior-only": stage_two(
            fresh(), GroupTraining(steps=updates, engaged=True, posterior=0), "prior-only"
        ),
    }
    weights = {name: policy.mean(now) for name, policy in policies.items()}
    weights |= {"uniform": torch.full((5,), 0.2), "best static": drawn.static}
    weights["dense prior alone"] = prior.worth(now)
    weights["ceiling"] = _ceiling(drawn, first, seed)
    _record(drawn, weights, outcome)
    generator = torch.Generator().manual_seed(seed)
    for name in ("GRADE", "Gaussian exploration"):
        policy = policies[name]
        drawn_vectors = policy.draw(policy(now), 4, generator)
        outcome.note(f"invalid {name}", invalid_share(drawn_vectors))
    return outcome


def _record(drawn: DrawnWorld, weights: dict[str, torch.Tensor], outcome: Outcome) -> None:
    truth = drawn.truth[drawn.test.users]
    for name, given in weights.items():
        outcome.utility.setdefault(name, []).append(drawn.test.utility(given).numpy())
        alike = torch.cosine_similarity(given.expand_as(truth), truth).mean()
        plays, orders = drawn.test.actions(given)
        outcome.note(f"cosine {name}", float(alike))
        outcome.note(f"plays {name}", plays)
        outcome.note(f"orders {name}", orders)
    outcome.utility.setdefault("oracle", []).append(drawn.test.oracle().numpy())


def _ceiling(drawn: DrawnWorld, first: FusionPolicy, seed: int) -> torch.Tensor:
    """Test users' weights by the better, on validation users, of two methods that use the truth."""
    observed, n = drawn.observed, drawn.world.size.train_users
    net = regress_truth(observed.now[:n], drawn.truth[:n], 1500, seed)
    still = replace(observed, values=observed.now[:, None].expand_as(observed.values))
    attended, truth = attention(drawn.world), drawn.truth

    def true_utility(
        u: torch.Tensor, _: torch.Tensor, pools: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        value = item_value(drawn.world, pools, truth[u])
        scores = torch.bmm(weights, pools.transpose(1, 2))
        top = scores.topk(drawn.world.size.slate, -1).indices
        wide = value[:, None].expand(-1, weights.shape[1], -1)
        return slate_mean(wide.gather(2, top), attended, 2)

    policy = train_group_relative(
        copy.deepcopy(first), drawn.log, still, true_utility, GroupTraining(steps=500), seed
    )
    with torch.no_grad():
        both = [lambda x: net(x).softmax(-1), policy.mean]

        def mean_utility(
            evaluator: PoolEvaluator, which: Callable[[torch.Tensor], torch.Tensor]
        ) -> float:
            return float(evaluator.utility(which(observed.now[evaluator.users])).mean())

        best = max(both, key=lambda which: mean_utility(drawn.valid, which))
        weights: torch.Tensor = best(observed.now[drawn.test.users])
        return weights
