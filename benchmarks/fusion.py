"""Each user's own fusion weights against one vector for everybody, where the truth is known.

Claims and bars, from docs/worlds/ranking.md, written before any method was tuned: in the
headline world >= 65 % of (ceiling - best static), lower 95 % bound >= 50 %, >= 3 % over
best static (moonshot 85 %); low-predictability >= 60 %, non-linear >= 50 %, drifting above
static; a paired interval above 0 in each; in the null world no more than 0.5 % is lost and
nothing gained. Directions (headline): over LTR only, regression, Gaussian exploration,
REINFORCE. Ablations: Gaussian draws more invalid weights; posterior-only has gained less
after a quarter of the updates; prior-only raises plays and lowers orders.

Best static is searched on true utility; ceiling is the better, on validation users, of a
regressor of true w* and a policy trained on true utility. Intervals are paired over test
users, seeds pooled. `--quick`: two seeds, a fifth of the users, under half of the updates, headline and null; its
figures are lower than the full form's and are told, not claimed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.__main__ import Options
from benchmarks.report import Report
from deploy.world.ranking.bounds import regress_truth
from deploy.world.ranking.config import WORLDS, RankingWorld
from deploy.world.ranking.gate import Drawn, draw
from deploy.world.ranking.pools import Judge, attention, item_value, slate_mean
from models.evaluation import paired_bootstrap
from models.ranking.grade import FusionPolicy
from models.ranking.grade_log import Observables
from models.ranking.grade_rewards import fit_satisfaction
from models.ranking.grade_rivals import GaussianPolicy, invalid_share, regression, reinforce
from models.ranking.grade_training import GroupTraining, feedback_reward, group_train, ltr

METHODS = (
    "uniform", "best static", "LTR only", "regression", "Gaussian exploration", "REINFORCE",
    "GRADE", "posterior-only", "prior-only", "ceiling", "oracle",
)  # fmt: skip


@dataclass
class Outcome:
    """One world, all seeds: per-user utilities by method, and single figures by name."""

    utility: dict[str, list[np.ndarray]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def user_values(self, method: str) -> np.ndarray:
        return np.concatenate(self.utility[method])

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def figure(self, name: str) -> float:
        return float(np.mean(self.figures[name])) if name in self.figures else float("nan")

    def gain(self, method: str, over: str = "best static") -> tuple[float, float, float]:
        """(mean, low, high), relative to `over`."""
        base = self.user_values(over)
        mean, low, high = paired_bootstrap(self.user_values(method) - base, rounds=500)
        scale = float(base.mean())
        return mean / scale, low / scale, high / scale

    def share(self, method: str, of: str = "ceiling") -> tuple[float, float, float]:
        """(mean, low, high) of (method - best static) / (of - best static), users resampled; NaN where
        there is nothing to share, as in the null world."""
        base = self.user_values("best static")
        ours, whole = self.user_values(method) - base, self.user_values(of) - base
        if whole.mean() < 1e-3 * base.mean():
            return float("nan"), float("nan"), float("nan")
        rng, n = np.random.default_rng(0), len(base)
        picks = (rng.integers(0, n, n) for _ in range(500))
        draws = [ours[p].mean() / max(whole[p].mean(), 1e-9) for p in picks]
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(ours.mean() / max(whole.mean(), 1e-9)), float(low), float(high)


def run(options: Options) -> Report:
    worlds = [RankingWorld.load(options.world)] if options.world else _worlds(options.quick)
    seeds = 2 if options.quick else options.seeds
    scale = 0.2 if options.quick else 1.0
    report = Report("fusion", {"seeds": seeds, "worlds": [w.model_dump() for w in worlds]})
    for world in worlds:
        outcome, started = Outcome(), time.monotonic()
        for seed in range(seeds):
            _one(world.scaled(scale) if scale < 1 else world, seed, outcome, scale**0.5)
        _table(report, world, outcome)
        _judge(report, world, outcome)
        report.notes.append(f"{world.name}: {(time.monotonic() - started) / seeds:.0f} s a seed")
    return report


def _worlds(quick: bool) -> list[RankingWorld]:
    first = ["headline", "null"] if quick else ["headline"]
    rest = [] if quick else sorted(p.stem for p in WORLDS.glob("*.toml") if p.stem != "headline")
    return [RankingWorld.named(name) for name in first + rest]


def _one(world: RankingWorld, seed: int, outcome: Outcome, pace: float) -> None:
    """Every method on one draw of a world."""
    drawn = draw(world, seed)
    log, observed, start = drawn.log, drawn.observed, torch.tensor(world.logging.weights)
    now, updates = observed.now[drawn.test.users], int(400 * pace)
    first = ltr(log, observed, start, steps=int(250 * pace), seed=seed)
    prior = fit_satisfaction(log, observed, start, steps=int(4000 * pace), seed=seed)

    def stage_two(policy: FusionPolicy, rules: GroupTraining, name: str) -> FusionPolicy:
        def watch(step: int, current: FusionPolicy) -> None:
            if step == rules.steps // 4:
                utility = float(drawn.test.utility(current.mean(now)).mean())
                outcome.note(f"quarter {name}", utility)

        reward = feedback_reward(log, observed, prior if rules.prior > 0 else None, rules)
        return group_train(policy, log, observed, reward, rules, seed, progress=watch)

    fresh: Callable[[], FusionPolicy] = lambda: copy.deepcopy(first)  # noqa: E731
    torch.manual_seed(seed)
    gaussian = GaussianPolicy(observed.width, start)
    policies = {
        "LTR only": first,
        "regression": regression(log, observed, start, steps=int(4000 * pace), seed=seed),
        "GRADE": stage_two(fresh(), GroupTraining(steps=updates), "GRADE"),
        "Gaussian exploration": stage_two(gaussian, GroupTraining(steps=updates), "Gaussian"),
        "REINFORCE": reinforce(fresh(), log, observed, steps=int(400 * pace), seed=seed),
        "posterior-only": stage_two(
            fresh(), GroupTraining(steps=updates, prior=0, posterior=1), "posterior-only"
        ),
        "prior-only": stage_two(
            fresh(), GroupTraining(steps=updates, engaged=True, posterior=0), "prior-only"
        ),
    }
    weights = {name: policy.mean(now) for name, policy in policies.items()}
    weights |= {"uniform": torch.full((5,), 0.2), "best static": drawn.static}
    weights["ceiling"] = _ceiling(drawn, first, seed)
    _record(drawn, weights, outcome)
    generator = torch.Generator().manual_seed(seed)
    for name in ("GRADE", "Gaussian exploration"):
        policy = policies[name]
        drawn_vectors = policy.draw(policy(now), 4, generator)
        outcome.note(f"invalid {name}", invalid_share(drawn_vectors))


def _record(drawn: Drawn, weights: dict[str, torch.Tensor], outcome: Outcome) -> None:
    truth = drawn.truth[drawn.test.users]
    for name, given in weights.items():
        outcome.utility.setdefault(name, []).append(drawn.test.utility(given).numpy())
        alike = torch.cosine_similarity(given.expand_as(truth), truth).mean()
        plays, orders = drawn.test.actions(given)
        outcome.note(f"cosine {name}", float(alike))
        outcome.note(f"plays {name}", plays)
        outcome.note(f"orders {name}", orders)
    outcome.utility.setdefault("oracle", []).append(drawn.test.oracle().numpy())


def _ceiling(drawn: Drawn, first: FusionPolicy, seed: int) -> torch.Tensor:
    """Weights of test users by the better of two who are told the truth, on validation users."""
    observed, n = drawn.observed, drawn.world.size.train_users
    net = regress_truth(observed.now[:n], drawn.truth[:n], 1500, seed)
    still = Observables(observed.now[:, None].expand_as(observed.values), observed.usual)
    looked, truth = attention(drawn.world), drawn.truth

    def true_utility(
        u: torch.Tensor, _: torch.Tensor, pools: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        value = item_value(drawn.world, pools, truth[u])
        scores = torch.bmm(weights, pools.transpose(1, 2))
        top = scores.topk(drawn.world.size.slate, -1).indices
        wide = value[:, None].expand(-1, weights.shape[1], -1)
        return slate_mean(wide.gather(2, top), looked, 2)

    policy = group_train(
        copy.deepcopy(first), drawn.log, still, true_utility, GroupTraining(steps=500), seed
    )
    with torch.no_grad():
        both = [lambda x: net(x).softmax(-1), policy.mean]

        def worth(judge: Judge, which: Callable[[torch.Tensor], torch.Tensor]) -> float:
            return float(judge.utility(which(observed.now[judge.users])).mean())

        best = max(both, key=lambda which: worth(drawn.valid, which))
        weights: torch.Tensor = best(observed.now[drawn.test.users])
        return weights


def _table(report: Report, world: RankingWorld, outcome: Outcome) -> None:
    for method in METHODS:
        mean, low, high = outcome.gain(method)
        report.add(
            world=world.name,
            method=method,
            over_static_pct=100 * mean,
            low=100 * low,
            high=100 * high,
            share_of_ceiling=outcome.share(method)[0],
            share_of_oracle=outcome.share(method, "oracle")[0],
            cosine=outcome.figure(f"cosine {method}"),
            plays=outcome.figure(f"plays {method}"),
            orders=outcome.figure(f"orders {method}"),
        )


def _judge(report: Report, world: RankingWorld, outcome: Outcome) -> None:
    bars, name = world.bars, world.name
    mean, low, high = outcome.gain("GRADE")
    share, share_low, _ = outcome.share("GRADE")
    if bars.gain is not None:
        report.judge(f"{name}: gain over static", mean, f">= {bars.gain}", mean >= bars.gain)
    if bars.share is not None:
        report.judge(f"{name}: share", share, f">= {bars.share}", share >= bars.share)
    if bars.share_low is not None:
        ok = share_low >= bars.share_low
        report.judge(f"{name}: share, lower bound", share_low, f">= {bars.share_low}", ok)
    if bars.above_static:
        report.judge(f"{name}: gain, lower bound", low, "> 0", low > 0)
    if bars.loss is not None:
        report.judge(
            f"{name}: gain is a loss of at most", mean, f">= -{bars.loss}", mean >= -bars.loss
        )
        report.judge(f"{name}: no gain", high, "<= 0.001", high <= 0.001)
    if name == "headline":
        _judge_directions(report, outcome)


def _judge_directions(report: Report, outcome: Outcome) -> None:
    for rival in ("LTR only", "regression", "Gaussian exploration", "REINFORCE"):
        low = outcome.gain("GRADE", rival)[1]
        report.judge(f"GRADE over {rival}, lower bound", low, "> 0", low > 0)
    more = outcome.figure("invalid Gaussian exploration") - outcome.figure("invalid GRADE")
    report.judge("Gaussian: invalid vectors beyond Dirichlet's", more, "> 0", more > 0)
    early = outcome.figure("quarter GRADE") - outcome.figure("quarter posterior-only")
    report.judge("posterior-only: behind after a quarter", early, "> 0", early > 0)
    plays = outcome.figure("plays prior-only") - outcome.figure("plays GRADE")
    orders = outcome.figure("orders prior-only") - outcome.figure("orders GRADE")
    report.judge("prior-only: plays beyond GRADE's", plays, "> 0", plays > 0)
    report.judge("prior-only: orders beyond GRADE's", orders, "< 0", orders < 0)
