"""Settings of the query recommender: network size, training, legality.

Knows numbers. Does not know data or tensors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeneratorSize:
    """The network's size. `items`: those with an embedding of their own."""

    words: int
    items: int
    width: int = 64
    heads: int = 4
    layers: int = 2


@dataclass(frozen=True)
class QueriesConfig:
    """Everything that decides a training run besides the log and the seed."""

    width: int = 64
    heads: int = 4
    layers: int = 2
    min_users: int = 2
    min_clicks: int = 200  # of legal queries; fewer raise NotEnoughData
    item_clicks: int = 5  # an item with fewer clicks has no embedding of its own
    steps: int = 300  # at most; 120 do not beat the baseline on half of the demo's ratings
    least_steps: int = 120
    passes: int = 8  # over the examples, where these are too few for all steps
    batch: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    item_dropout: float = 0.3  # share of prompts whose item number is hidden
    word_dropout: float = 0.1  # share of words hidden, to train the cold buckets
    max_examples: int = 60_000  # the newest
    max_evaluated: int = 1_500
    threads: int = 1  # tensors are small: a second one waits more than it works beside other load
    taken_down: tuple[str, ...] = ()

    def steps_for(self, examples: int) -> int:
        """Optimiser steps on so many examples: a small log is not read over and over."""
        wanted = self.passes * -(-examples // self.batch)
        return min(self.steps, max(self.least_steps, wanted))
