"""Guards of the gate: slices of users and items that must not lose, and drift of what is ranked high.

Knows slates, two rankers' scores and masks. Does not know logs: `models.alignment.slices` makes
the masks. A slice refuses a challenger only where its loss is proven: the whole interval of the
difference in GAUC lies below minus the tolerance. Small slices therefore refuse seldom; their
intervals are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.training.evaluation import auc_per_user, paired_bootstrap

if TYPE_CHECKING:
    from models.alignment.gate import JudgedSlates

SLICE_TOLERANCE = 0.02  # of GAUC
DRIFT_TOLERANCE = 0.10  # of the incumbent's figure; reported, refuses nothing
TOP = 3  # places of a slate that drift looks at


@dataclass(frozen=True)
class Guards:
    """What to watch. slices: masks by name, bool [G] of slates or [G, C] of candidates.

    figures: by name, float [G, C] of candidates. kind: int [G, C], such as the genre, for
    diversity.
    """

    slices: Mapping[str, np.ndarray]
    figures: Mapping[str, np.ndarray]
    kind: np.ndarray


@dataclass(frozen=True)
class SliceResult:
    """difference: challenger - incumbent in GAUC over the slice's candidates, with its interval."""

    name: str
    users: int
    difference: tuple[float, float, float]

    @property
    def lost(self) -> bool:
        return self.difference[2] < -SLICE_TOLERANCE


@dataclass(frozen=True)
class Drift:
    """A mean over the candidates that a ranker puts into the first `TOP` places of a slate."""

    name: str
    incumbent: float
    challenger: float

    @property
    def share(self) -> float:
        """The change as a share of the incumbent's figure."""
        return self.challenger / self.incumbent - 1 if self.incumbent else 0.0

    def in_words(self) -> str:
        beyond = "beyond" if abs(self.share) > DRIFT_TOLERANCE else "within"
        return (
            f"{self.name} of the first {TOP} places {self.incumbent:.3f} -> {self.challenger:.3f} "
            f"({self.share:+.0%}, {beyond} {DRIFT_TOLERANCE:.0%})"
        )


def evaluate_guards(
    slates: JudgedSlates,
    incumbent: np.ndarray,
    challenger: np.ndarray,
    guards: Guards,
    *,
    seed: int,
) -> tuple[tuple[SliceResult, ...], tuple[Drift, ...]]:
    """Slices and drift of two rankers' scores, float [G, C]."""
    slices = []
    for name, mask in guards.slices.items():
        inside = slates.real & (mask[:, None] if mask.ndim == 1 else mask)
        group, place = np.nonzero(inside)
        users, acted = slates.users[group].astype(str), slates.acted[group, place]
        before, after = (
            auc_per_user(users, scores[group, place], acted) for scores in (incumbent, challenger)
        )
        difference = paired_bootstrap(after.value - before.value, before.weight, seed=seed)
        slices.append(SliceResult(name, len(before.users), difference))
    tops = [_first_places(slates.real, scores) for scores in (incumbent, challenger)]
    drift = [
        Drift(name, *(float(figure[top].mean()) if top.any() else 0.0 for top in tops))
        for name, figure in guards.figures.items()
    ]
    drift.append(Drift("distinct kinds", *(_distinct(guards.kind, top) for top in tops)))
    return tuple(slices), tuple(drift)


def drift_in_words(gate: Mapping[str, Any] | None) -> list[str]:
    """The drift in a release's record; none in records of before, or without an update."""
    return [Drift(**each).in_words() for each in (gate or {}).get("drift", ())]


def _distinct(kind: np.ndarray, top: np.ndarray) -> float:
    """The share of first places whose kind no other one of the slate has before it."""
    kinds = sum(len(np.unique(row[mask])) for row, mask in zip(kind, top, strict=True))
    return float(kinds / max(top.sum(), 1))


def _first_places(real: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [G, C]: the `TOP` best candidates of each slate."""
    order = np.argsort(-np.where(real, scores, -np.inf), axis=1, kind="stable")
    top = np.zeros(real.shape, bool)
    np.put_along_axis(top, order[:, :TOP], True, axis=1)
    return np.asarray(top & real)
