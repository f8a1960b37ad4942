"""Settings of the factorisation.

Knows numbers. Does not know data.
"""

from __future__ import annotations

from dataclasses import dataclass

# How much an action says that the user liked the item, in [0, 1]. A play says nothing by
# itself: how much of the item was watched does.
LIKING: dict[str, float] = {"long_view": 0.6, "like": 0.85, "share": 0.9, "follow": 1.0}
LIKING |= {"cart": 0.9, "order": 1.0}
# Of a declared signal, by its role; one that opens items as a play does says as little as a play.
BY_ROLE = {"engagement": LIKING["like"], "conversion": LIKING["order"]}
PLAYED_ONLY = 0.2  # liking of a play without a further action, where what was watched is unknown
PARTS = ("bias", "personal", "popularity")
"""The parts of a score, in log-odds of a play; columns of `LikingFactors.parts`."""


@dataclass(frozen=True)
class FactorisationConfig:
    """ridges: the largest is taken whose held-out error is at most `tolerance` above the lowest:
    errors differ little, and the order of items at the top suffers more from noise.

    bias_ridge: pseudo-interactions of an item's mean. folds: of cross-fitting.
    skip_weight: of a skip relative to a play. A skip is a weaker sign: most items are skipped.
    start: log-odds of a play for each standard deviation of a part, until enough was shown to
        learn them (`blend.py`). Measured on the headline world's validation seed 100.
    start_strength: impressions that the start outweighs, once they are learned.
    """

    factors: int = 16  # more than the ratings support: the ridge decides, and not the seed
    sweeps: int = 8
    ridges: tuple[float, ...] = (2.0, 3.0, 4.0)
    tolerance: float = 0.02
    bias_ridge: float = 20.0
    folds: int = 4
    skip_weight: float = 0.3
    start: tuple[float, float, float] = (0.3, 0.4, 0.2)
    start_strength: float = 100.0
