"""Calibration of P(action) per task, on slates later than those of training.

Platt scaling is folded into each task's last layers, so the served graph and a task's order stay
the same. A task is scaled only where the held-out time shows enough actions of it. The same slates
decide how much of what the experts add to a user's liking is kept. Knows the ranker's tensors.
Does not know how it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.ranking.ple.data import RankerExamples
from models.ranking.ple.network import Ranker, SlotBias
from models.ranking.ple.tensors import RankerBatch
from models.training.calibration import MIN_OUTCOMES, Platt, Reliability, fit_platt, reliability

HELD_OUT_SHARE = 0.1  # of slates, the last in time
EXPERT_SHARES = (0.25, 0.5, 1.0)  # an update continues from the experts, so never none of them


@dataclass(frozen=True)
class RankerCalibration:
    """The slots' biases and each task's scaling; `scaled` is empty without held-out slates."""

    slots: SlotBias
    scaled: tuple[Platt, ...] = ()


def held_out(slates: RankerExamples) -> tuple[RankerExamples, RankerExamples]:
    """Training slates and the last tenth in time; all and none where that shows few actions."""
    if not len(slates):
        return slates, slates
    split_ms = int(np.quantile(slates.time_ms, 1 - HELD_OUT_SHARE))
    later = slates.since(split_ms)
    if later.acted.sum() < MIN_OUTCOMES:
        return slates, slates.take(np.zeros(0, np.int64))
    return slates.before(split_ms), later


def calibrate_held_out(
    network: Ranker, held: RankerBatch | None, slots: SlotBias
) -> RankerCalibration:
    """Calibrates the network in place on the held-out slates, where there are any."""
    return RankerCalibration(slots, () if held is None else calibrate(network, held, slots))


def calibration_report(
    network: Ranker, slates: RankerBatch | None, fitted: RankerCalibration
) -> tuple[str, ...]:
    """One line a task: ECE as served and before calibration, and the reliability curve."""
    if slates is None:
        return ("no slates to judge calibration by: P(play) starts at a declared rate",)
    served = reliability_by_task(network, slates, fitted.slots)
    before = reliability_by_task(network, slates, fitted.slots, fitted.scaled)
    return tuple(
        f"{task}: ECE {now.ece:.4f} (uncalibrated {raw.ece:.4f}); predicted/happened by tenth: "
        + " ".join(f"{p:.3f}/{y:.3f}" for p, y in zip(now.predicted, now.happened, strict=True))
        for task, now, raw in zip(network.tasks.names, served, before, strict=True)
    )


@torch.no_grad()
def calibrate(network: Ranker, batch: RankerBatch, slots: SlotBias) -> tuple[Platt, ...]:
    """Scales each task's last layers in place; returns the scaling of each task."""
    logits, offset, labels = candidate_logits(network, batch, slots)
    scaled = []
    for task, tower in enumerate(network.towers):
        found = fit_platt(logits[:, task], labels[:, task], offset[:, task])
        tower.weight.mul_(found.slope)  # type: ignore[operator]
        tower.bias.mul_(found.slope).add_(found.shift)  # type: ignore[operator]
        network.liking.weight[task] *= found.slope
        scaled.append(found)
    return tuple(scaled)


def reliability_by_task(
    network: Ranker, batch: RankerBatch, slots: SlotBias, undone: Sequence[Platt] = ()
) -> list[Reliability]:
    """One reliability curve a task, at the slots where candidates were shown.

    undone: scalings to take back first, to see what they changed.
    """
    logits, offset, labels = candidate_logits(network, batch, slots)
    for task, each in enumerate(undone):
        logits[:, task] = (logits[:, task] - each.shift) / each.slope
    p = 1 / (1 + np.exp(-(logits + offset)))
    return [reliability(p[:, task], labels[:, task]) for task in range(p.shape[1])]


@torch.no_grad()
def candidate_logits(
    network: Ranker, batch: RankerBatch, slots: SlotBias
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of real candidates: logits float64 [N, T], their slots' log-odds, labels bool [N, T]."""
    parts = []
    for rows in torch.split(torch.arange(len(batch)), 512):
        part = batch.take(rows)
        logits = network(*part.inputs())[0]
        parts.append((logits[part.real], slots.tasks(part.slot)[part.real], part.labels[part.real]))
    logits, offset, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return logits.astype(float), offset.astype(float), labels > 0


@torch.no_grad()
def shrink_experts(network: Ranker, held: RankerBatch | None, slots: SlotBias) -> float:
    """Scales what the experts add to the share that later slates support; returns it.

    A larger share must lower the log-loss of P(play), or of what opens items in its place, by more
    than the standard error of the difference. Without later slates the smallest share is taken.
    """
    share = EXPERT_SHARES[0] if held is None else _supported_share(network, held, slots)
    for tower in network.towers:
        tower.weight.mul_(share)  # type: ignore[operator]
    return share


def _supported_share(network: Ranker, held: RankerBatch, slots: SlotBias) -> float:
    logits, offset, labels = candidate_logits(network, held, slots)
    base = network.tasks.base
    whole, played, offset = logits[:, base], labels[:, base], offset[:, base]
    alone = network.liking(held.liking)[held.real][:, base].double().numpy()
    alone = alone + float(network.towers[base].bias)  # type: ignore[arg-type]
    best, lowest = EXPERT_SHARES[0], _losses(alone, whole, EXPERT_SHARES[0], played, offset)
    for share in EXPERT_SHARES[1:]:
        losses = _losses(alone, whole, share, played, offset)
        gain = lowest - losses
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best, lowest = share, losses
    return best


def _losses(
    alone: np.ndarray, whole: np.ndarray, share: float, played: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """float64 [N]: log-loss after calibration, so that only the order counts."""
    mixed = alone + share * (whole - alone)
    scaled = fit_platt(mixed, played, offset)
    z = scaled.slope * mixed + scaled.shift + offset
    return np.asarray(np.logaddexp(0, z) - played * z)
