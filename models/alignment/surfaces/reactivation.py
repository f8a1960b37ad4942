"""The dormant-user reasoner's update: feedback on trajectories moves the blend of its signals.

Knows reasoners and histories. The four weights of the blend are what one surface's feedback can
teach; transitions, roles and P(convert) are fitted again by the next training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.alignment.surfaces.slates import SurfaceSlates
from models.alignment.surfaces.update import SurfaceTraining, SurfaceUpdate
from models.reasoning.data import read_histories
from models.reasoning.inputs import canary_request
from models.reasoning.reasoner import BLEND, HISTORY, Reasoner
from models.reasoning.recipe import select_steps
from models.reasoning.runtime import ReactivationRuntime
from models.reasoning.sessions import EngagementSteps, fold_steps
from models.recipe import TrainingLog
from models.release.canary import write_canary


@dataclass(frozen=True)
class ReasonerPolicy:
    """A `models.alignment.surfaces.update.ScoredPolicy`.

    signals: float32 [G, C, 4] of each candidate in BLEND's order; blend: [4], changes.
    """

    reasoner: Reasoner
    slates: SurfaceSlates
    signals: Tensor
    blend: nn.Parameter

    def trained(self) -> Sequence[nn.Parameter]:
        return [self.blend]

    def log_scores(self, rows: Tensor) -> Tensor:
        scores = self.signals[rows] @ self.blend
        real = torch.from_numpy(self.slates.real[rows.numpy()])
        return scores.masked_fill(~real, -torch.inf)

    def write(self, bundle: Path) -> None:
        """A signal's weight never falls below 0, as in training."""
        blend = self.blend.detach().numpy().astype(np.float64)
        replace(self.reasoner, blend=np.maximum(blend, 0.0)).write(bundle)
        write_canary(bundle, canary_request(self.reasoner.item_ids), ReactivationRuntime)


def load_reasoner(incumbent: Path, log: TrainingLog, slates: SurfaceSlates) -> ReasonerPolicy:
    """The incumbent over these slates, with each user's history as of the slate."""
    reasoner = Reasoner.read(incumbent)
    number = reasoner.number
    slates = replace(slates, real=slates.real & np.isin(slates.item, list(number)))
    histories = read_histories(log, number)
    shape = (*slates.real.shape, len(BLEND))
    signals = np.zeros(shape, np.float32)
    for row, (user, time_ms) in enumerate(zip(slates.users, slates.time_ms, strict=True)):
        columns = np.flatnonzero(slates.real[row])
        items = [number[item] for item in slates.item[row, columns]]
        past = _past(histories.get(user), int(time_ms))
        signals[row, columns] = reasoner.signals(past)[:, items].T
    blend = nn.Parameter(torch.from_numpy(reasoner.blend.astype(np.float32)))
    return ReasonerPolicy(reasoner, slates, torch.from_numpy(signals), blend)


def reactivation_update() -> SurfaceUpdate:
    """The update that `models.registry` names."""
    training = SurfaceTraining(epochs=6, rate=0.02, anchor=0.0)
    return SurfaceUpdate("reactivation", load_reasoner, training=training)


def _past(whole: EngagementSteps | None, time_ms: int) -> EngagementSteps:
    """The newest steps before the slate."""
    if whole is None:
        return fold_steps([], [], [])
    return select_steps(whole, np.flatnonzero(whole.time_ms < time_ms)[-HISTORY:])
