"""The gate between a challenger and the live release.

Knows scores of incumbent and challenger on slates that neither was aligned on, later in
time. Does not know how the challenger came to be. It lets one through when the feedback
is ranked no worse forward in time, and the off-policy estimate does not say that it
earns less; where there is too little to tell, it refuses and says what is missing.

The slates were ordered by the incumbent, and what stands higher is looked at more, so
GAUC leans to the incumbent: the gate errs to refusing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from models.alignment.off_policy import (
    Decisions,
    Estimate,
    doubly_robust,
    fitted_sharpness,
    slate_decisions,
    snips,
)
from models.ranking.ple.data import Examples
from models.recipe import Evaluation
from models.training.evaluation import PerUser, auc_per_user, compare


@dataclass(frozen=True)
class Rules:
    """What a challenger must show. Differences are challenger - incumbent."""

    min_users: int = 20
    min_slates: int = 60
    gauc_margin: float = 0.02  # how far the interval may reach below 0
    value_margin: float = 0.10  # the same for the off-policy value, as a share of it
    min_effective: float = 100.0  # choices, after weighting


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger may go live, with every reason and figure."""

    promoted: bool
    reasons: tuple[str, ...]
    gauc: Evaluation
    snips: Estimate
    doubly_robust: Estimate
    slates: int

    def as_dict(self) -> Mapping[str, Any]:
        return asdict(self)


def judge(
    examples: Examples,
    incumbent: np.ndarray,
    challenger: np.ndarray,
    rules: Rules,
    *,
    seed: int,
    logged: np.ndarray | None = None,
) -> Verdict:
    """Compares two rankers' served scores [G, C] on slates with feedback.

    logged: the scores that the slates were drawn by, where these are not the incumbent's
    own: a slate ranked by weights that were drawn is a choice given those weights.
    """
    gauc = compare(
        "GAUC of feedback",
        slate_auc(examples, challenger),
        "incumbent",
        slate_auc(examples, incumbent),
        seed=seed,
    )
    decisions = decisions_of(examples, incumbent if logged is None else logged, challenger)
    estimates = snips(decisions, seed=seed), doubly_robust(decisions, seed=seed)
    reasons = [
        *_enough(examples, gauc, estimates[0], rules),
        *_not_worse(gauc, estimates, rules),
    ]
    passed = (
        f"GAUC {gauc.value:.4f} against {gauc.baseline_value:.4f} "
        f"(difference {_interval(gauc.difference)}) on {len(examples)} later slates"
    )
    return Verdict(not reasons, tuple(reasons) or (passed,), gauc, *estimates, len(examples))


def slate_auc(examples: Examples, scores: np.ndarray) -> PerUser:
    """Each user's AUC over the slates' real candidates; scores [G, C]."""
    group, place = np.nonzero(examples.real)
    users = examples.users[group].astype(str)
    return auc_per_user(users, scores[group, place], examples.acted[group, place])


def decisions_of(examples: Examples, scores: np.ndarray, challenger: np.ndarray) -> Decisions:
    """The slates as choices under both policies; reward: any action.

    scores: what the slates were drawn by. The reward model is these scores, scaled to the
    slates' mean reward.
    """
    logged, target = np.log(scores + 1e-6), np.log(challenger + 1e-6)
    real, slot = examples.real, examples.slot
    sharp = fitted_sharpness(logged, slot, real)
    reward = examples.acted
    mean_score = max(float(scores[real].mean()), 1e-9) if real.any() else 1.0
    rate = float(reward[real].mean()) if real.any() else 0.0
    expected = np.clip(scores / mean_score * rate, 0, 1)
    return slate_decisions(
        examples.users.astype(str),
        reward,
        slot,
        real,
        sharp * logged,
        sharp * target,
        expected,
    )


def _enough(examples: Examples, gauc: Evaluation, estimate: Estimate, rules: Rules) -> list[str]:
    short = []
    if gauc.n < rules.min_users:
        short.append(f"{gauc.n} users with both outcomes, {rules.min_users} needed")
    if len(examples) < rules.min_slates:
        short.append(f"{len(examples)} later slates, {rules.min_slates} needed")
    if estimate.effective_n < rules.min_effective:
        short.append(
            f"off-policy weights leave {estimate.effective_n:.0f} effective choices, "
            f"{rules.min_effective:.0f} needed: the challenger leaves the logged support"
        )
    return short


def _not_worse(gauc: Evaluation, estimates: tuple[Estimate, Estimate], rules: Rules) -> list[str]:
    worse = []
    mean, low, _ = gauc.difference
    if mean < 0 or low < -rules.gauc_margin:
        worse.append(
            f"GAUC of later feedback {gauc.value:.4f} against the incumbent's "
            f"{gauc.baseline_value:.4f}: difference {_interval(gauc.difference)}"
        )
    for each in estimates:
        if each.difference[1] < -rules.value_margin * each.logged_value:
            worse.append(
                f"{each.method} cannot rule out a loss: {_interval(each.difference)} "
                f"on {each.logged_value:.4f} actions a choice"
            )
    return worse


def _interval(difference: tuple[float, float, float]) -> str:
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)
