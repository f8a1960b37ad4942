"""Preference optimisation of the ranker's served score against a frozen reference.

Knows tensors, preference pairs and seeds. Does not know logs or gates. Papers: DPO
(arXiv 2305.18290) and S-DPO (arXiv 2406.09215), its form for one chosen and many rejected
items. A policy's log-preference is the logarithm of the served score, fused with the user's own
weights; the partition function cancels within a slate. Only P(action) is trained here, the
weights by `models.ranking.grade.served_fusion`.

Kept: the frozen reference, beta, the listwise form. Added: the tasks' cross-entropy on the same
slates, so that P(action) stays a probability. Scaled down: a few passes over thousands of
slates.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from models.alignment.pairs import PreferencePairs
from models.ranking.ple.network import Ranker
from models.ranking.ple.tensors import RankerBatch
from models.ranking.ple.train import log_score, ranker_loss, seeded_torch, split_rows
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


def align_ranker(
    reference: Ranker,
    batch: RankerBatch,
    wanted: PreferencePairs,
    settings: AlignmentConfig,
    *,
    seed: int,
    progress: ProgressCallback,
) -> Ranker:
    """A new ranker that prefers the chosen candidates; the reference is not changed."""
    challenger = deepcopy(reference)
    with seeded_torch(seed, settings.threads) as generator:
        frozen = reference_scores(reference, batch)
        trained = [parameter for _, parameter in challenger.prediction_parameters()]
        optimiser = torch.optim.AdamW(trained, settings.rate, weight_decay=0.0)
        for epoch in range(settings.epochs):
            order = torch.randperm(len(wanted), generator=generator)
            for rows in split_rows(order, settings.lists):
                loss = _step_loss(challenger, batch, wanted, rows, frozen, settings)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(challenger.parameters(), 1.0)
                optimiser.step()
            progress((epoch + 1) / settings.epochs, f"aligning, pass {epoch + 1}: {loss:.3f}")
    return challenger.eval()


def reference_scores(reference: Ranker, batch: RankerBatch) -> Tensor:
    """The frozen log-preferences of every candidate; float32 [G, C]."""
    with torch.no_grad():
        chunks = split_rows(torch.arange(len(batch)), 512)
        return torch.cat([log_score(reference(*batch.take(c).inputs())[2]) for c in chunks])


def listwise_dpo(margin: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(-log sum over rejected of exp(margin_rejected - margin_chosen)); [P].

    margin: beta * (log policy - log reference) [P, C]; chosen: int64 [P]; rejected: bool [P, C].
    With one rejected candidate this is DPO's loss.
    """
    ahead = margin - margin.gather(1, chosen.unsqueeze(1))
    return -logsigmoid(-ahead.masked_fill(~rejected, -torch.inf).logsumexp(1))


def _step_loss(
    policy: Ranker,
    batch: RankerBatch,
    wanted: PreferencePairs,
    rows: Tensor,
    frozen: Tensor,
    settings: AlignmentConfig,
) -> Tensor:
    picked = rows.numpy()
    group = torch.from_numpy(wanted.group[picked])
    part = batch.take(group)
    scores = policy(*part.inputs())[2]
    margin = settings.beta * (log_score(scores) - frozen[group])
    chosen = torch.from_numpy(wanted.chosen[picked])
    rejected = torch.from_numpy(wanted.rejected[picked])
    each = listwise_dpo(margin, chosen, rejected) * torch.from_numpy(wanted.weight[picked])
    return each.mean() + settings.anchor * ranker_loss(policy, part, listwise=0.0)
