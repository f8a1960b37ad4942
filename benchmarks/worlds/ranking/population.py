"""The users of a ranking world: profiles, true utility vectors, habits, changes of taste.

Knows the planted truth of users. Policies get only the log's arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.worlds.ranking import marginals
from benchmarks.worlds.ranking.config import WORLD_TASKS, RankingWorld

T = len(WORLD_TASKS)


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
    explained = profile @ rng.normal(size=(profile.shape[1], T))
    explained = (explained - explained.mean(0)) / explained.std(0)
    hidden, later = _hidden(world, rng), _hidden(world, rng)
    changed = rng.random(users) < world.drift.share
    turn = rng.integers(world.drift.first_session, world.drift.last_session + 1, users)
    keep = world.drift.keep
    new = np.where(changed[:, None], keep * hidden + np.sqrt(1 - keep**2) * later, hidden)
    mix = rules.from_profile

    def simplex(personal: np.ndarray) -> np.ndarray:
        deviation = np.sqrt(mix) * explained + np.sqrt(1 - mix) * personal
        raw = np.asarray(rules.base) * np.exp(rules.spread * deviation)
        return np.asarray(raw / raw.sum(1, keepdims=True))

    after = simplex(new)
    habit = world.candidates.habit * np.log(np.maximum(after, 1e-3) / np.asarray(rules.base))
    return Population(
        profile=torch.from_numpy(profile),
        before=torch.from_numpy(simplex(hidden)).float(),
        after=torch.from_numpy(after).float(),
        turn=torch.from_numpy(np.where(changed, turn, 0)),
        habit=torch.from_numpy(habit - habit.mean(0)).float(),
    )


def _hidden(world: RankingWorld, rng: np.random.Generator) -> np.ndarray:
    """float64 [U, T], unit deviation: the part of taste that profiles do not predict."""
    users, kinds = world.size.users, world.utility.segments
    if kinds == 0:
        return rng.normal(size=(users, T))
    centres = rng.normal(size=(kinds, T))
    centres = (centres - centres.mean(0)) / centres.std(0)
    within = 0.35  # deviation of users around the centre of their segment
    spread = np.sqrt(1 - within**2) * centres[rng.integers(kinds, size=users)]
    return np.asarray(spread + within * rng.normal(size=(users, T)))
