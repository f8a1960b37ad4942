"""Settings of the dormant-user reasoner.

Knows numbers. Does not know data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReactivationConfig:
    """Everything that decides a fit besides the log."""

    min_steps: int = 200  # engagements; fewer raise NotEnoughData
    min_conversions: int = 30  # orders; with fewer, weaker actions count as conversions
    max_items: int = 4_000  # side of the dense tables: the most engaged items
    penalty: float = 200.0  # of the ridge from a history to the next steps
    splits: int = 12  # splits of one user's history that the ridge is fitted on
    horizon: int = 20  # steps after a split that count as the next ones
    max_evaluated: int = 1_000
