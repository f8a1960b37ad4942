"""The gate between a challenger and the live release.

Knows scores of incumbent and challenger on later slates that neither was aligned on. Does not
know how the challenger was trained. A challenger passes when it ranks later feedback no worse
and no off-policy estimate shows a loss; with too little data the gate refuses and names what
is missing.

The incumbent ordered the slates, and higher slots are looked at more, so GAUC favours the
incumbent: the gate errs towards refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from models.alignment.guards import Drift, Guards, SliceResult, evaluate_guards
from models.alignment.off_policy import (
    Decisions,
    Estimate,
    doubly_robust,
    fitted_sharpness,
    slate_decisions,
    snips,
)
from models.alignment.pool_values import LoggedPools, cascade_doubly_robust
from models.recipe import Evaluation
from models.training.evaluation import PerUser, auc_per_user, compare
from models.updates.report import UpdateReport


class JudgedSlates(Protocol):
    """G slates of up to C candidates with their outcomes; the feed's are `RankerExamples`."""

    @property
    def users(self) -> np.ndarray: ...
    @property
    def slot(self) -> np.ndarray: ...
    @property
    def real(self) -> np.ndarray: ...
    @property
    def acted(self) -> np.ndarray: ...
    @property
    def ranked(self) -> np.ndarray:
        """bool [G]: whether a model ordered the slate."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> JudgedSlates: ...


@dataclass(frozen=True)
class GateThresholds:
    """What a challenger must meet. Differences are challenger - incumbent."""

    min_users: int = 20
    min_slates: int = 60
    gauc_margin: float = 0.02  # how far below 0 the interval may reach
    value_margin: float = 0.10  # the same for the off-policy value, as a share of it
    min_effective: float = 100.0  # effective choices after weighting
    # With logged pools these two decide in place of GAUC and the re-ordering of shown items.
    pool_margin: float = 0.02  # how far below 0 the interval of the value may reach, as a share
    min_pools: int = 200  # effective slates; with fewer, pools do not decide


@dataclass(frozen=True)
class GateResult:
    """Whether the challenger may go live, with all reasons and figures."""

    promoted: bool
    reasons: tuple[str, ...]
    gauc: Evaluation
    snips: Estimate
    doubly_robust: Estimate
    slates: int
    pool_value: Estimate | None = None  # from logged pools
    slices: tuple[SliceResult, ...] = ()
    drift: tuple[Drift, ...] = ()
    updates: tuple[UpdateReport, ...] = ()  # how the challenger was trained: KL and reward

    def as_dict(self) -> Mapping[str, Any]:
        return asdict(self)


def evaluate_challenger(
    examples: JudgedSlates,
    incumbent: np.ndarray,
    challenger: np.ndarray,
    thresholds: GateThresholds,
    *,
    seed: int,
    logged: np.ndarray | None = None,
    pools: LoggedPools | None = None,
    guards: Guards | None = None,
) -> GateResult:
    """Compares two rankers' served scores, float [G, C], on slates with feedback.

    logged: the scores that ranked the slates, where these are not the incumbent's own: a slate
    ranked by drawn weights is a choice given those weights. pools: of those of the slates whose
    whole pool was logged. Where they are enough, their value alone decides: it is unbiased, and
    GAUC favours the incumbent. guards: slices that must not lose, and drift to report.
    """
    gauc = compare(
        "GAUC of feedback",
        slate_auc(examples, challenger),
        "incumbent",
        slate_auc(examples, incumbent),
        seed=seed,
    )
    decisions = policy_decisions(examples, incumbent if logged is None else logged, challenger)
    estimates = snips(decisions, seed=seed), doubly_robust(decisions, seed=seed)
    value = cascade_doubly_robust(pools, seed=seed) if pools is not None else None
    if value is not None and value.effective_n >= thresholds.min_pools:
        reasons = _value_not_worse(value, thresholds)
    else:
        reasons = slate_reasons(len(examples), gauc, estimates, thresholds)
    slices: tuple[SliceResult, ...] = ()
    drift: tuple[Drift, ...] = ()
    if guards is not None:
        slices, drift = evaluate_guards(examples, incumbent, challenger, guards, seed=seed)
        reasons += [
            f"{each.name}: GAUC falls by {_interval(each.difference)} on {each.users} users"
            for each in slices
            if each.lost
        ]
    passed = (
        f"GAUC {gauc.value:.4f} against {gauc.baseline_value:.4f} "
        f"(difference {_interval(gauc.difference)}) on {len(examples)} later slates"
    )
    if value is not None:
        passed += f"; value by {value.method} {_interval(value.difference)} actions a slate"
    said = tuple(reasons) or (passed,)
    return GateResult(not reasons, said, gauc, *estimates, len(examples), value, slices, drift)


def slate_auc(examples: JudgedSlates, scores: np.ndarray) -> PerUser:
    """Each user's AUC over the slates' real candidates; scores [G, C]."""
    group, place = np.nonzero(examples.real)
    users = examples.users[group].astype(str)
    return auc_per_user(users, scores[group, place], examples.acted[group, place])


def policy_decisions(
    examples: JudgedSlates, scores: np.ndarray, challenger: np.ndarray
) -> Decisions:
    """The slates that a ranker ranked as choices under both policies; reward: any action.

    scores: float [G, C], what ranked the slates; also the reward model, scaled to the slates'
    mean reward. challenger: float [G, C].
    """
    ranked = np.flatnonzero(examples.ranked)
    examples, scores, challenger = examples.take(ranked), scores[ranked], challenger[ranked]
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


def slate_reasons(
    slates: int,
    gauc: Evaluation,
    estimates: tuple[Estimate, Estimate],
    thresholds: GateThresholds,
) -> list[str]:
    """Why a challenger may not go live by shown items alone, without pools; [] where it may."""
    enough = _enough(slates, gauc, estimates[0], thresholds)
    return [*enough, *_not_worse(gauc, estimates, thresholds)]


def _enough(
    slates: int, gauc: Evaluation, estimate: Estimate, thresholds: GateThresholds
) -> list[str]:
    short = []
    if gauc.n < thresholds.min_users:
        short.append(f"{gauc.n} users with both outcomes, {thresholds.min_users} needed")
    if slates < thresholds.min_slates:
        short.append(f"{slates} later slates, {thresholds.min_slates} needed")
    if estimate.effective_n < thresholds.min_effective:
        short.append(
            f"off-policy weights leave {estimate.effective_n:.0f} effective choices, "
            f"{thresholds.min_effective:.0f} needed: the challenger leaves the logged support"
        )
    return short


def _value_not_worse(value: Estimate, thresholds: GateThresholds) -> list[str]:
    """Non-inferiority: the whole interval lies above minus the margin.

    A challenger that is worse by more than the margin passes at most 2.5 % of the time, whatever
    the traffic.
    """
    if value.difference[1] >= -thresholds.pool_margin * value.logged_value:
        return []
    return [
        f"{value.method} cannot rule out a loss of {thresholds.pool_margin:.0%}: "
        f"{_interval(value.difference)} on {value.logged_value:.4f} actions a slate"
    ]


def _not_worse(
    gauc: Evaluation, estimates: tuple[Estimate, Estimate], thresholds: GateThresholds
) -> list[str]:
    worse = []
    mean, low, _ = gauc.difference
    if mean < 0 or low < -thresholds.gauc_margin:
        worse.append(
            f"GAUC of later feedback {gauc.value:.4f} against the incumbent's "
            f"{gauc.baseline_value:.4f}: difference {_interval(gauc.difference)}"
        )
    for each in estimates:
        if each.difference[1] < -thresholds.value_margin * each.logged_value:
            worse.append(
                f"{each.method} cannot rule out a loss: {_interval(each.difference)} "
                f"on {each.logged_value:.4f} actions a choice"
            )
    return worse


def _interval(difference: tuple[float, float, float]) -> str:
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)
