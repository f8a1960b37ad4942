"""A small world of slates in which every value is known exactly, to test estimators.

Knows kinds of users, items' attraction, slots' attention and how slots affect each other. Does
not know estimators. It is small enough (C^K slates) to compute a policy's true value as a sum
over all slates.

Persons vary around their kind (`spread`), so the slates of one person are correlated and
intervals must resample persons.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

Draws = Literal["independent", "plackett_luce"]


@dataclass(frozen=True)
class SlateWorld:
    """attraction: float [kinds, C]; look: float [K], the chance that a slot is looked at.

    clash: factor of an item's attraction if one of its group (item % 3) is above it; 1: slots
    are independent.
    """

    attraction: np.ndarray
    look: np.ndarray
    clash: float = 1.0
    spread: float = 0.4

    @property
    def slates(self) -> np.ndarray:
        """Every slate of K out of C with repetition, int [C^K, K]."""
        wide = self.attraction.shape[1]
        return np.array(list(product(range(wide), repeat=len(self.look))))

    def chances(self, kind: np.ndarray, items: np.ndarray) -> np.ndarray:
        """P(click) at each slot for an average person of a kind; kind [N], items [N, K]."""
        above = np.tril(np.ones((items.shape[1],) * 2, bool), -1)
        disturbed = ((items[:, :, None] % 3 == items[:, None, :] % 3) & above).any(2)
        plain = self.attraction[kind[:, None], items] * self.look
        return np.asarray(np.where(disturbed, self.clash, 1.0) * plain)

    def value(self, policy: np.ndarray, draws: Draws) -> float:
        """The exact mean number of clicks on a slate; policy: logits [kinds, C]."""
        slates = self.slates
        total = 0.0
        for kind in range(len(self.attraction)):
            who = np.full(len(slates), kind)
            chance = slot_chances(policy[who], slates, draws).prod(1)
            total += float(chance @ self.chances(who, slates).sum(1))
        return total / len(self.attraction)


@dataclass(frozen=True)
class Visits:
    """Logged visits: persons [N], kind [N], items [N, K], clicks float [N, K]."""

    persons: np.ndarray
    kind: np.ndarray
    items: np.ndarray
    clicks: np.ndarray


def small_world(seed: int, *, kinds: int = 5, items: int = 6, slots: int = 3) -> SlateWorld:
    """Attractions between 0.05 and 0.65; lower slots are looked at less."""
    rng = np.random.default_rng(seed)
    return SlateWorld(rng.uniform(0.05, 0.65, (kinds, items)), 1 / np.log2(np.arange(slots) + 2))


def visits(
    world: SlateWorld, policy: np.ndarray, draws: Draws, *, persons: int, each: int, seed: int
) -> Visits:
    """`each` slates for every person, drawn from the policy's logits [kinds, C]."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.integers(0, len(world.attraction), persons), each)
    keen = np.repeat(rng.uniform(1 - world.spread, 1 + world.spread, persons), each)
    items = _drawn(policy[kind], len(world.look), draws, rng)
    chance = np.clip(world.chances(kind, items) * keen[:, None], 0, 1)
    clicks = (rng.random(chance.shape) < chance).astype(float)
    return Visits(np.repeat(np.arange(persons), each), kind, items, clicks)


def slot_chances(logits: np.ndarray, items: np.ndarray, draws: Draws) -> np.ndarray:
    """P(item at its slot), given the slots above for Plackett-Luce; [N, C], [N, K] -> [N, K]."""
    weight = np.exp(logits - logits.max(1, keepdims=True))
    mine = np.take_along_axis(weight, items, 1)
    if draws == "independent":
        return np.asarray(mine / weight.sum(1, keepdims=True))
    gone = np.cumsum(mine, 1) - mine
    left = weight.sum(1, keepdims=True) - gone
    again = np.tril(items[:, :, None] == items[:, None, :], -1).any(2)
    return np.where(again, 0.0, mine / np.maximum(left, 1e-12))


def _drawn(logits: np.ndarray, slots: int, draws: Draws, rng: np.random.Generator) -> np.ndarray:
    """int [N, K]: Gumbel's trick, once a slot or once for the whole order."""
    shape = (len(logits), slots if draws == "independent" else 1, logits.shape[1])
    noisy = logits[:, None, :] + rng.gumbel(size=shape)
    if draws == "independent":
        return np.asarray(noisy.argmax(2))
    return np.asarray(np.argsort(-noisy[:, 0], axis=1)[:, :slots])
