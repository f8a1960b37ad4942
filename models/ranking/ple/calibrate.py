"""P(action) made to mean what it says, per task, on slates later than those learned from.

Platt scaling: two numbers a task, folded into the task's last layer, so that nothing
about the served graph changes and a task's order stays. Fitted where the held-out time
shows enough actions of a task and enough without, else the task is left as it is.
Knows the ranker's tensors. Does not know when or from what it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.ranking.ple.data import Examples
from models.ranking.ple.inputs import TASKS
from models.ranking.ple.network import Ranker
from models.ranking.ple.position import SlotBias
from models.ranking.ple.tensors import Batch
from models.training.calibration import Reliability, reliability

HELD = 0.1  # of slates, the last in time
ENOUGH = 30  # actions, and as many without, that two numbers are fitted on
_ROUNDS, _RIDGE, _LEAST_SLOPE = 50, 1.0, 0.05


@dataclass(frozen=True)
class Platt:
    """logit -> slope * logit + shift; (1, 0) says: left as it was."""

    slope: float = 1.0
    shift: float = 0.0


def platt(logits: np.ndarray, happened: np.ndarray, offset: np.ndarray | float = 0.0) -> Platt:
    """The maximum-likelihood scaling of `logits` [N], drawn a little towards (1, 0).

    offset: log-odds that are explained already (a slot's), not scaled.
    """
    if min(happened.sum(), (~happened).sum()) < ENOUGH:
        return Platt()
    x = np.stack([logits, np.ones_like(logits)], 1).astype(float)
    start = np.array([1.0, 0.0])
    found = start.copy()
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ found + offset, -30, 30)))
        slope = x.T @ (p - happened) + _RIDGE * (found - start)
        curve = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(2)
        step = np.linalg.solve(curve, slope)
        found = found - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return Platt(max(float(found[0]), _LEAST_SLOPE), float(found[1]))


@dataclass(frozen=True)
class Calibration:
    """What slots cost, and what was done to each task; none where nothing was held out."""

    slots: SlotBias
    done: tuple[Platt, ...] = ()


def held_out(slates: Examples) -> tuple[Examples, Examples]:
    """Slates to learn from and the last tenth in time; all and none where those show little."""
    if not len(slates):
        return slates, slates
    cut = int(np.quantile(slates.time_ms, 1 - HELD))
    later = slates.since(cut)
    if later.acted.sum() < ENOUGH:
        return slates, slates.take(np.zeros(0, np.int64))
    return slates.before(cut), later


def calibrated(network: Ranker, held: Batch | None, slots: SlotBias) -> Calibration:
    """The network calibrated in place on what was held out, where anything was."""
    return Calibration(slots, () if held is None else calibrate(network, held, slots))


def told(network: Ranker, slates: Batch | None, fitted: Calibration) -> tuple[str, ...]:
    """One line a task: ECE as served and before calibration, and the reliability curve."""
    if slates is None:
        return ("no slates to judge calibration by: P(action) means the sampling of negatives",)
    served = curves(network, slates, fitted.slots)
    before = curves(network, slates, fitted.slots, fitted.done)
    return tuple(
        f"{task}: ECE {now.ece:.4f} (uncalibrated {raw.ece:.4f}); predicted/happened by tenth: "
        + " ".join(f"{p:.3f}/{y:.3f}" for p, y in zip(now.predicted, now.happened, strict=True))
        for task, now, raw in zip(TASKS, served, before, strict=True)
    )


@torch.no_grad()
def calibrate(network: Ranker, batch: Batch, slots: SlotBias) -> tuple[Platt, ...]:
    """Scales each task's last layer in place; returns what was done, one a task."""
    logits, offset, labels = logits_of(network, batch, slots)
    done = []
    for task, tower in enumerate(network.towers):
        found = platt(logits[:, task], labels[:, task], offset[:, task])
        tower.weight.mul_(found.slope)  # type: ignore[operator]
        tower.bias.mul_(found.slope).add_(found.shift)  # type: ignore[operator]
        done.append(found)
    return tuple(done)


def curves(
    network: Ranker, batch: Batch, slots: SlotBias, undone: Sequence[Platt] = ()
) -> list[Reliability]:
    """One reliability curve a task, at the slots where things were shown.

    undone: scalings to take back first, to see what they changed.
    """
    logits, offset, labels = logits_of(network, batch, slots)
    for task, each in enumerate(undone):
        logits[:, task] = (logits[:, task] - each.shift) / each.slope
    p = 1 / (1 + np.exp(-(logits + offset)))
    return [reliability(p[:, task], labels[:, task]) for task in range(p.shape[1])]


@torch.no_grad()
def logits_of(
    network: Ranker, batch: Batch, slots: SlotBias
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of real candidates: logits float64 [N, T], their slots' log-odds, labels bool [N, T]."""
    parts = []
    for rows in torch.split(torch.arange(len(batch)), 512):
        part = batch.take(rows)
        logits = network(*part.inputs())[0]
        parts.append((logits[part.real], slots.tasks(part.slot)[part.real], part.labels[part.real]))
    logits, offset, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return logits.astype(float), offset.astype(float), labels > 0
