"""Selectors: from scored candidates to a slate, with the propensity of every choice.

Knows scores, genres and seeds. Does not know how a score was made.

A slot is drawn from what is left, given the slots above: with probability 1 - e from a
softmax over scores (standardised, less a cost for genres that the slate already has),
with probability e from the new items alone. Drawing slot by slot from a softmax is the
Plackett-Luce model; the logged propensity is the chosen item's probability under the
whole mixture, so it is exact (`tests/serving/test_selection.py` counts draws).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.pipeline.query import Candidate, Pool, Query, Removal
from serving.stages.caps import Cap, first_reasons
from serving.stages.scorers import standardised
from streams.contract.topics import entity_hash


@dataclass(frozen=True)
class PlackettLuce:
    """Top-k with genre diversity and exploration, repeatable by the query's seed.

    `temperature` is in standard deviations of the score: 0.1 draws the best item in
    nearly every slot where it leads by half a deviation. `explore` is the share of
    slots given to candidates of `explore_source`. `caps` close candidates before each
    slot; the draw is among the others, so the propensities stay exact.
    """

    temperature: float = 0.1
    diversity: float = 0.35
    explore: float = 0.08
    explore_source: str = "fresh"
    caps: tuple[Cap, ...] = ()
    name: str = "plackett_luce"

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        draw = None if pool.scored is None else _Draw(self, query.seed, pool)
        left, chosen = list(range(len(pool))), list[Candidate]()
        while left and len(chosen) < query.k:
            open_rows = self._open(chosen, left, pool, query.k)
            if not open_rows:
                break
            slot = len(chosen)
            drawn = (open_rows[0], 1.0, False) if draw is None else draw.slot(slot, open_rows)
            chosen.append(pool.finished(*drawn))
            left.remove(drawn[0])
        return tuple(chosen)

    def held_back(self, query: Query, pool: Pool, items: tuple[Candidate, ...]) -> list[Removal]:
        """What a cap kept out although it scores above something in the slate (or it is short)."""
        if not self.caps:
            return []
        taken = {(c.video_id, c.query) for c in items}
        rest = [c for c in range(len(pool)) if _key(pool.candidates[c]) not in taken]
        reasons = first_reasons(self.caps, items, [pool.candidates[r] for r in rest], query.k)
        short = len(items) < query.k
        least = min((c.score for c in items), default=-np.inf)
        found = []
        for row, reason in zip(rest, reasons, strict=True):
            above = pool.scored is None or bool(pool.scored.score[row] > least)
            if reason is not None and (short or above):
                one = pool.candidates[row]
                found.append(Removal(one.video_id, reason[0], reason[1], one.query))
        return found

    def _open(self, chosen: list[Candidate], left: list[int], pool: Pool, k: int) -> list[int]:
        if not self.caps:
            return left
        rest = [pool.candidates[row] for row in left]
        reasons = first_reasons(self.caps, chosen, rest, k)
        return [row for row, reason in zip(left, reasons, strict=True) if reason is None]


@dataclass(frozen=True)
class InOrder:
    """The source's order is the answer: a trajectory has a first step. Nothing is explored."""

    name: str = "in_order"

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        return tuple(pool.finished(row, 1.0, False) for row in range(min(query.k, len(pool))))


class _Draw:
    """The state of one slate while it is drawn."""

    def __init__(self, rule: PlackettLuce, seed: int, pool: Pool) -> None:
        assert pool.scored is not None
        self._rule, self._seed = rule, seed
        self._value = standardised(pool.scored.score).astype(np.float64)
        self._finite = np.isfinite(self._value)
        self._fresh = np.array([c.source == rule.explore_source for c in pool.candidates])
        self._genres = _genre_rows(pool)
        self._beside = np.zeros(self._genres.shape[1])
        # Noise belongs to the candidate, not to its row: one more candidate in the pool
        # does not reshuffle the others.
        names = [f"{c.video_id}\0{c.query or ''}" for c in pool.candidates]
        self._hash = np.array([entity_hash(name) for name in names], np.uint64)

    def slot(self, slot: int, open_rows: list[int]) -> tuple[int, float, bool]:
        """(row, conditional propensity, whether the exploring share drew it)."""
        self._left = np.zeros(len(self._value), bool)
        self._left[open_rows] = True
        greedy, new = self._softmax(), self._uniform_new()
        share = self._rule.explore if new.any() else 0.0
        explored = bool(share) and float(_uniform(self._seed, slot, _COIN)[0]) < share
        row = self._sample(new if explored else greedy, slot)
        propensity = (1 - share) * greedy[row] + share * new[row]
        self._beside = 0.7 * self._beside + self._genres[row]
        return row, float(propensity), explored

    def _softmax(self) -> np.ndarray:
        """float64 [C]: NaN and infinity are drawn only when nothing finite is left."""
        open_rows = self._left & self._finite
        if not open_rows.any():
            return np.asarray(self._left / self._left.sum())
        alike = self._genres @ self._beside / max(float(self._beside.sum()), 1.0)
        logits = (self._value - self._rule.diversity * alike) / self._rule.temperature
        logits = np.where(open_rows, logits, -np.inf)
        weights = np.exp(logits - logits[open_rows].max())
        return np.asarray(weights / weights.sum())

    def _uniform_new(self) -> np.ndarray:
        new = self._left & self._fresh & self._finite
        return np.asarray(new / max(int(new.sum()), 1))

    def _sample(self, probability: np.ndarray, slot: int) -> int:
        """Gumbel's trick: the largest of log p + noise is a draw from p."""
        noise = -np.log(-np.log(_uniform(self._seed, slot, self._hash)))
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(probability) + noise))


def _key(candidate: Candidate) -> tuple[str, str | None]:
    return candidate.video_id, candidate.query


_COIN = np.array([0x9E3779B97F4A7C15], np.uint64)


def _uniform(seed: int, slot: int, keys: np.ndarray) -> np.ndarray:
    """float64 in (0, 1), a pure function of seed, slot and key (splitmix64's finaliser)."""
    salt = np.uint64((seed * 0x9E3779B97F4A7C15 + (slot + 1) * 0xD1B54A32D192ED03) % 2**64)
    x = keys ^ salt
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.asarray(((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def _genre_rows(pool: Pool) -> np.ndarray:
    """float64 [C, G], each row summing to 1, or 0 for an item without genres."""
    genres = [c.item.genres if c.item is not None else () for c in pool.candidates]
    place = {name: at for at, name in enumerate(sorted({g for row in genres for g in row}))}
    rows = np.zeros((len(genres), max(len(place), 1)))
    for at, names in enumerate(genres):
        for name in names:
            rows[at, place[name]] = 1.0 / len(names)
    return rows
