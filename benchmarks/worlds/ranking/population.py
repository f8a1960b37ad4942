"""Who lives in a ranking world: profiles, true utility vectors, habits, when tastes turn.

Knows the planted truth of users. No policy may read it: methods get the log's arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.worlds.ranking import marginals
from benchmarks.worlds.ranking.config import TASKS, RankingWorld

T = len(TASKS)


@dataclass(frozen=True)
class Population:
    """U users. profile float32 [U, D]; before, after float32 [U, T]: w* on the simplex,
    ahead of and from session `turn` int64 [U] on; habit float32 [U, T]: log-odds."""

    profile: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    turn: torch.Tensor
    habit: torch.Tensor

    def utilities(self, session: int) -> torch.Tensor:
        """float32 [U, T]: w* at one session."""
        return torch.where((self.turn <= session)[:, None], self.after, self.before)


def populate(world: RankingWorld, seed: int) -> Population:
    """The same world and seed give the same users."""
    rng = np.random.default_rng([seed, 1])
    users, rules = world.size.users, world.utility
    profile = marginals.profiles(marginals.load(), users, rng)
    told = profile @ rng.normal(size=(profile.shape[1], T))
    told = (told - told.mean(0)) / told.std(0)
    untold, later = _untold(world, rng), _untold(world, rng)
    turned = rng.random(users) < world.drift.share
    turn = rng.integers(world.drift.first_session, world.drift.last_session + 1, users)
    keep = world.drift.keep
    new = np.where(turned[:, None], keep * untold + np.sqrt(1 - keep**2) * later, untold)
    mix = rules.from_profile

    def simplex(personal: np.ndarray) -> np.ndarray:
        deviation = np.sqrt(mix) * told + np.sqrt(1 - mix) * personal
        raw = np.asarray(rules.base) * np.exp(rules.spread * deviation)
        return np.asarray(raw / raw.sum(1, keepdims=True))

    after = simplex(new)
    habit = world.candidates.habit * np.log(np.maximum(after, 1e-3) / np.asarray(rules.base))
    return Population(
        profile=torch.from_numpy(profile),
        before=torch.from_numpy(simplex(untold)).float(),
        after=torch.from_numpy(after).float(),
        turn=torch.from_numpy(np.where(turned, turn, 0)),
        habit=torch.from_numpy(habit - habit.mean(0)).float(),
    )


def _untold(world: RankingWorld, rng: np.random.Generator) -> np.ndarray:
    """float64 [U, T], unit deviation: the part of taste that no profile tells."""
    users, kinds = world.size.users, world.utility.segments
    if kinds == 0:
        return rng.normal(size=(users, T))
    centres = rng.normal(size=(kinds, T))
    centres = (centres - centres.mean(0)) / centres.std(0)
    within = 0.35  # of a kind's deviation: kinds are clouds, not points
    spread = np.sqrt(1 - within**2) * centres[rng.integers(kinds, size=users)]
    return np.asarray(spread + within * rng.normal(size=(users, T)))
