"""Settings of the factorisation.

Knows numbers. Does not know data.
"""

from __future__ import annotations

from dataclasses import dataclass

# How much an action says that the user liked the item, in [0, 1]. A play says nothing by
# itself: how much of the item was watched does.
LIKING: dict[str, float] = {"long_view": 0.6, "like": 0.85, "share": 0.9, "follow": 1.0}
LIKING |= {"cart": 0.9, "order": 1.0}


@dataclass(frozen=True)
class FactorisationConfig:
    """ridges: tried on a held-out share of the interactions, the best is fitted on all of them.

    skip_weight: of a skip relative to a play. A skip is a weaker sign: most items are skipped.
    popularity: of log(1 + plays) beside the liking, which is in [0, 1], until enough was shown
        to learn it (`blend.py`): 0.15 stars, of four.
    """

    factors: int = 8
    sweeps: int = 8
    ridges: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 10.0)
    held_out: float = 0.2
    skip_weight: float = 0.3
    popularity: float = 0.0375
