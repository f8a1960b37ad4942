"""What a slot costs, learned beside the ranker and left out when it serves.

A candidate that was shown low was looked at less: without a counter-measure the ranker
blames it for its place. A bias a slot and task (and one for the listwise loss) explains
the place during training (a shallow tower, Zhao et al., RecSys 2019); served P(action)
is of the first slot. Encounters have no slot, stand at slot 0 and get no bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOTS = 100  # later slots share the last bias


class SlotBias(nn.Module):
    """[G, C] slots -> [G, C, T + 1] in log-odds; the first slot's are 0 and stay so."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.of = nn.Embedding(SLOTS, tasks + 1, padding_idx=0)
        nn.init.zeros_(self.of.weight)

    def tasks(self, slot: Tensor) -> Tensor:
        """Added to the logits of each task: [G, C, T]."""
        biases: Tensor = self.of(slot.clamp_max(SLOTS - 1))
        return biases[..., :-1]

    def group(self, slot: Tensor) -> Tensor:
        """Added to the log-scores of a group: [G, C]."""
        biases: Tensor = self.of(slot.clamp_max(SLOTS - 1))
        return biases[..., -1]

    @torch.no_grad()
    def odds(self) -> Tensor:
        """float32 [SLOTS, T]: the odds of an action relative to the first slot."""
        return self.of.weight[:, :-1].exp()
