"""An experiment's results: rates by arm with intervals, the sample ratio, and the guard's verdict.

Knows slates with their rewards, one row each. Does not know where they are stored
(`models.experiments.evaluation`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from models.experiments.definition import Arm, Experiment
from models.experiments.sequential import (
    UNKNOWN,
    ArmSums,
    Interval,
    SampleRatio,
    difference,
    mean,
    sample_ratio,
)
from models.release.json_files import plain
from streams.contract.impression import HOLDOUT_ARM

MISMATCH = 0.001  # p-value below which the arms do not have the users that they should


@dataclass(frozen=True)
class ArmResult:
    """One arm. rate: reward per slate. lift: minus the control's rate, at the experiment's level.

    preference: of an interleaved arm, the share of slates won by team b minus that won by team a.
    """

    name: str
    policy: str
    share: float
    users: int
    slates: int
    rate: Interval
    lift: Interval | None = None
    preference: Interval | None = None

    @property
    def verdict(self) -> str:
        judged = self.preference or self.lift
        if judged is None:
            return ""
        if judged.low == -math.inf:
            return "too few users"
        return "better" if judged.above else "worse" if judged.below else "no difference yet"


@dataclass(frozen=True)
class Results:
    """What an experiment has shown so far. harmed: arms that the guard stops, with why."""

    name: str
    arms: tuple[ArmResult, ...]
    ratio: SampleRatio
    harmed: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; an end that is not known yet is null."""
        found = asdict(self)
        for arm, each in zip(found["arms"], self.arms, strict=True):
            arm["verdict"] = each.verdict
        found["mismatch"] = self.ratio.p_value < MISMATCH
        whole = plain(found)
        assert isinstance(whole, dict)
        return whole


def results(found: Experiment, slates: pl.DataFrame) -> Results:
    """slates: one row per slate seen by its user, with arm, user_id, reward, guarded (the guard's
    metric) and won (-1, 0, 1: which team's items got more of the reward; 0 without teams)."""
    control, *others = found.arms
    level = found.level / max(1, len(others))  # of one comparison, so that all keep `level`
    arms = [_arm(found, slates, control, level)]
    arms += [_arm(found, slates, arm, level, against=control) for arm in others]
    held = slates.filter(pl.col("arm") == HOLDOUT_ARM)
    if held.height:
        arms.append(_arm(found, slates, Arm(HOLDOUT_ARM, 0.0), found.level, against=control))
    own = arms[: len(found.arms)]
    ratio = sample_ratio([arm.users for arm in own], [arm.share for arm in own])
    return Results(found.name, tuple(arms), ratio, _harmed(found, slates))


def _arm(
    found: Experiment, slates: pl.DataFrame, arm: Arm, level: float, against: Arm | None = None
) -> ArmResult:
    sums = arm_sums(slates, arm.name)
    lift = preference = None
    if against is not None and arm.teams is None:
        control = arm_sums(slates, against.name)
        lift = difference(control, sums, level=level, tight_at=found.tight_at)
    if arm.teams is not None:
        won = arm_sums(slates, arm.name, "won")
        preference = mean(won, level=level, tight_at=found.tight_at)
    return ArmResult(
        name=arm.name,
        policy=arm.policy,
        share=arm.share,
        users=len(sums.slates),
        slates=int(sums.slates.sum()),
        rate=mean(sums, level=found.level, tight_at=found.tight_at),
        lift=lift,
        preference=preference,
    )


def arm_sums(slates: pl.DataFrame, arm: str, column: str = "reward") -> ArmSums:
    """The arm's slates by user."""
    own = slates.filter(pl.col("arm") == arm)
    users = own.group_by("user_id").agg(n=pl.len(), y=pl.col(column).sum())
    squares = float((own[column].cast(pl.Float64) ** 2).sum())
    return ArmSums(
        users["n"].to_numpy().astype(np.float64), users["y"].to_numpy().astype(np.float64), squares
    )


def _harmed(found: Experiment, slates: pl.DataFrame) -> tuple[tuple[str, str], ...]:
    guard = found.guard
    if guard is None or not slates.height:
        return ()
    control, *others = found.arms
    kept = arm_sums(slates, control.name, "guarded")
    allowed = -guard.worse_by * kept.rate
    harmed = []
    for arm in others:
        sums = arm_sums(slates, arm.name, "guarded")
        # Narrowest early: a guard is there for harm that shows within a few thousand slates.
        lost = (
            difference(kept, sums, level=guard.level / len(others), tight_at=2_000)
            if len(sums.slates)
            else UNKNOWN
        )
        if lost.high < allowed:
            harmed.append(
                (
                    arm.name,
                    f"{guard.metric} per slate of {arm.name} is {sums.rate:.3f}, of {control.name} "
                    f"{kept.rate:.3f} (difference at most {lost.high:+.3f})",
                )
            )
    return tuple(harmed)
