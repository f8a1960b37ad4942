"""The update of a surface whose model scores whole answers: listwise preference, then the gate.

Earlier slates train the challenger, later ones gate it, as for the ranker. An order is preferred
to a click, and a click to what was passed over (the progressive preference of OneBar, arXiv
2606.15330). Knows slates, lists and the gate. Does not know any one model: a `ScoredPolicy`
states log-scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.alignment.gate import GateResult, GateThresholds, evaluate_challenger
from models.alignment.pairs import PreferencePairs, listwise_pairs
from models.alignment.surfaces.slates import SurfaceSlates, surface_slates
from models.ranking.ple.train import seeded_torch, split_rows
from models.recipe import NotEnoughData, TrainingLog
from models.updates.contract import StepSettings, Terms, update_policy
from models.updates.losses import choice_kl
from models.updates.methods import ListwisePreference
from streams.progress import ProgressCallback

_CHUNK = 64


class ScoredPolicy(Protocol):
    """A surface's model over given slates."""

    @property
    def slates(self) -> SurfaceSlates:
        """The slates without the candidates that the model cannot score."""

    def trained(self) -> Sequence[nn.Parameter]: ...

    def log_scores(self, rows: Tensor) -> Tensor:
        """Log-preferences of the slates `rows`; float32 [n, C], -inf at padding."""

    def write(self, bundle: Path) -> None:
        """Writes a complete bundle with its canary."""


@dataclass(frozen=True)
class SurfaceTraining:
    """Settings of one update. `beta`: strength of the pull to the reference; `anchor`: weight of
    -log P(chosen), which keeps chosen answers probable in absolute terms."""

    epochs: int = 3
    lists: int = 64
    rate: float = 3e-4
    beta: float = 0.5
    anchor: float = 0.05
    threads: int = 1


@dataclass(frozen=True)
class AnswerLists:
    """N lists: their slates' rows, chosen and rejected answers."""

    row: Tensor
    real: Tensor
    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class ListPolicy:
    """A `models.updates.contract.Policy`; its reference: frozen log-scores of all slates [G, C]."""

    scored: ScoredPolicy
    anchor: float

    def trained(self) -> Sequence[nn.Parameter]:
        return self.scored.trained()

    def clipped(self) -> Sequence[nn.Parameter]:
        return self.scored.trained()

    def terms(self, group: AnswerLists, reference: Tensor) -> Terms:
        """The KL is that of one choice among the slate's answers."""
        ours = self.scored.log_scores(group.row).masked_fill(~group.real, 0.0)
        theirs = reference[group.row].masked_fill(~group.real, 0.0)
        chosen = ours.gather(1, group.chosen.unsqueeze(1)).mean()
        return Terms(
            log_policy=ours[..., None],
            log_reference=theirs[..., None],
            kl=choice_kl(ours.detach(), theirs, group.real),
            extra=-self.anchor * chosen,
        )


@dataclass(frozen=True)
class SurfaceUpdate:
    """A `models.training.update.Challenge` of one surface.

    load: the incumbent over the slates, as a policy that may change.
    """

    surface: str
    load: Callable[[Path, TrainingLog, SurfaceSlates], ScoredPolicy]
    slates: int = 8_000
    train_share: float = 0.7  # the earlier part in time
    min_slates: int = 100
    min_preferences: int = 50
    training: SurfaceTraining = field(default_factory=SurfaceTraining)
    rules: GateThresholds = field(default_factory=GateThresholds)

    def challenge(
        self,
        incumbent: Path,
        log: TrainingLog,
        bundle: Path,
        *,
        seed: int,
        progress: ProgressCallback,
    ) -> GateResult:
        """Aligns the incumbent on `log.feedback` and writes the challenger.

        Raises `NotEnoughData` with what is missing.
        """
        progress(0.0, "reading slates with matured feedback")
        policy = self.load(incumbent, log, self._slates(log))
        slates = policy.slates
        earlier, later = self._split(slates)
        wanted = self._preferences(slates, earlier)
        with seeded_torch(seed, self.training.threads) as generator:
            progress(0.2, f"scoring {len(slates)} slates")
            frozen = score_slates(policy, np.arange(len(slates)))
            report = update_policy(
                ListPolicy(policy, self.training.anchor),
                _lists(slates, wanted, self.training, generator),
                torch.from_numpy(frozen),
                ListwisePreference(beta=self.training.beta),
                StepSettings(rate=self.training.rate),
                step=lambda n, loss: progress(0.4, f"aligning, group {n + 1}: {loss:.3f}"),
            )
            progress(0.8, "evaluating on later slates and off-policy")
            after = score_slates(policy, later)
        verdict = evaluate_challenger(
            slates.take(later),
            _within_slate(frozen[later]),
            _within_slate(after),
            self.rules,
            seed=seed,
        )
        policy.write(bundle)
        progress(1.0, "gated")
        return replace(verdict, updates=(report,))

    def preview(self, log: TrainingLog) -> str:
        """What `challenge` would train on and compare. Raises `NotEnoughData`."""
        slates = self._slates(log)
        earlier, later = self._split(slates)
        lists = len(self._preferences(slates, earlier))
        return (
            f"incumbent and challenger, trained on {lists} preferences in {len(earlier)} earlier "
            f"slates of {self.surface}, on {len(later)} later ones: GAUC of feedback and "
            "off-policy value by SNIPS and doubly robust, each by its 95 % interval"
        )

    def _slates(self, log: TrainingLog) -> SurfaceSlates:
        slates = surface_slates(log, self.surface, count=self.slates)
        if len(slates) < self.min_slates:
            raise NotEnoughData(
                f"{len(slates)} slates of {self.surface} with matured feedback since the last "
                f"update, {self.min_slates} needed"
            )
        return slates

    def _split(self, slates: SurfaceSlates) -> tuple[np.ndarray, np.ndarray]:
        """Rows of earlier and of later slates, split by time of serving."""
        split_ms = int(np.quantile(slates.time_ms, self.train_share))
        return np.flatnonzero(slates.time_ms < split_ms), np.flatnonzero(slates.time_ms >= split_ms)

    def _preferences(self, slates: SurfaceSlates, rows: np.ndarray) -> PreferencePairs:
        part = slates.take(rows)
        found = listwise_pairs(part.grade, part.real, part.slot)
        if len(found) < self.min_preferences:
            raise NotEnoughData(
                f"{len(found)} preferences in {len(rows)} slates of {self.surface}, "
                f"{self.min_preferences} needed: an action below an answer that was passed over"
            )
        return replace(found, group=rows[found.group])


def score_slates(policy: ScoredPolicy, rows: np.ndarray) -> np.ndarray:
    """Log-scores of these slates without gradient; float32 [n, C], -inf at padding."""
    with torch.no_grad():
        chunks = split_rows(torch.from_numpy(rows), _CHUNK)
        scores: np.ndarray = torch.cat([policy.log_scores(chunk) for chunk in chunks]).numpy()
    return scores


def _within_slate(scores: np.ndarray) -> np.ndarray:
    """Each slate's shares, which sum to 1; [G, C]."""
    shares: np.ndarray = torch.from_numpy(scores).softmax(-1).nan_to_num(0.0).numpy()
    return shares


def _lists(
    slates: SurfaceSlates,
    wanted: PreferencePairs,
    training: SurfaceTraining,
    generator: torch.Generator,
) -> Iterator[AnswerLists]:
    for _ in range(training.epochs):
        order = torch.randperm(len(wanted), generator=generator)
        for rows in split_rows(order, training.lists):
            picked = rows.numpy()
            group = wanted.group[picked]
            yield AnswerLists(
                torch.from_numpy(group),
                torch.from_numpy(slates.real[group]),
                torch.from_numpy(wanted.chosen[picked]),
                torch.from_numpy(wanted.rejected[picked]),
                torch.from_numpy(wanted.weight[picked]),
            )
