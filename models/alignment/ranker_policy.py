"""The ranker's served score under the contract of updates: lists are candidates of one slate.

Knows tensors, preference pairs and seeds. Does not know logs or gates. A policy's log-preference
is the logarithm of the served score, fused with the user's own weights; the partition function
cancels within a slate. Only P(action) is trained here, the weights by
`models.ranking.grade.served_fusion`.

Kept of DPO: the frozen reference, beta, the listwise form. Added: the tasks' cross-entropy on
the same slates, so that P(action) stays a probability. Scaled down: a few passes over thousands
of slates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.alignment.pairs import PreferencePairs
from models.ranking.ple.network import Ranker
from models.ranking.ple.tensors import RankerBatch
from models.ranking.ple.train import log_score, ranker_loss, seeded_torch, split_rows
from models.updates.contract import StepSettings, Terms, update_policy
from models.updates.losses import choice_kl
from models.updates.methods import ListwisePreference
from models.updates.report import UpdateReport
from streams.progress import ProgressCallback


@dataclass(frozen=True)
class AlignmentConfig:
    """Settings of one update. `beta`: strength of the pull to the reference."""

    epochs: int = 4
    lists: int = 256
    rate: float = 3e-4
    beta: float = 2.0
    anchor: float = 0.3  # weight of the tasks' cross-entropy
    threads: int = 1


@dataclass(frozen=True)
class CandidateLists:
    """P lists of a batch: their slates, the slates' rows in the whole batch, and preferences."""

    part: RankerBatch
    row: Tensor
    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class RankerPolicy:
    """A `models.updates.contract.Policy`.

    Its reference: the frozen ranker's log-preferences of the whole batch, float32 [G, C].
    """

    network: Ranker
    anchor: float

    def trained(self) -> Sequence[nn.Parameter]:
        return [parameter for _, parameter in self.network.prediction_parameters()]

    def clipped(self) -> Sequence[nn.Parameter]:
        return list(self.network.parameters())

    def terms(self, group: CandidateLists, reference: Tensor) -> Terms:
        """The KL is that of one choice among the slate's candidates."""
        ours, theirs = log_score(self.network(*group.part.inputs())[2]), reference[group.row]
        return Terms(
            log_policy=ours[..., None],
            log_reference=theirs[..., None],
            kl=choice_kl(ours.detach(), theirs, group.part.real),
            extra=self.anchor * ranker_loss(self.network, group.part, listwise=0.0),
        )


def align_ranker(
    reference: Ranker,
    batch: RankerBatch,
    wanted: PreferencePairs,
    settings: AlignmentConfig,
    *,
    seed: int,
    progress: ProgressCallback,
) -> tuple[Ranker, UpdateReport]:
    """A new ranker that prefers the chosen candidates; the reference is not changed."""
    challenger = deepcopy(reference)
    per_epoch = -(-len(wanted) // settings.lists)

    def step(number: int, loss: float) -> None:
        if (number + 1) % per_epoch == 0:
            epoch = (number + 1) // per_epoch
            progress(epoch / settings.epochs, f"aligning, pass {epoch}: {loss:.3f}")

    with seeded_torch(seed, settings.threads) as generator:
        report = update_policy(
            RankerPolicy(challenger, settings.anchor),
            _lists(batch, wanted, settings, generator),
            reference_scores(reference, batch),
            ListwisePreference(beta=settings.beta),
            StepSettings(rate=settings.rate),
            step=step,
        )
    return challenger.eval(), report


def reference_scores(reference: Ranker, batch: RankerBatch) -> Tensor:
    """The frozen log-preferences of every candidate; float32 [G, C]."""
    with torch.no_grad():
        chunks = split_rows(torch.arange(len(batch)), 512)
        return torch.cat([log_score(reference(*batch.take(c).inputs())[2]) for c in chunks])


def _lists(
    batch: RankerBatch,
    wanted: PreferencePairs,
    settings: AlignmentConfig,
    generator: torch.Generator,
) -> Iterator[CandidateLists]:
    for _ in range(settings.epochs):
        order = torch.randperm(len(wanted), generator=generator)
        for rows in split_rows(order, settings.lists):
            picked = rows.numpy()
            row = torch.from_numpy(wanted.group[picked])
            yield CandidateLists(
                batch.take(row),
                row,
                torch.from_numpy(wanted.chosen[picked]),
                torch.from_numpy(wanted.rejected[picked]),
                torch.from_numpy(wanted.weight[picked]),
            )
