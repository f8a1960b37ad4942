"""Selectors: from scored candidates to a slate, with the propensity of every choice.

Knows scores, genres and seeds. Does not know how a score was made.

Each slot is drawn from the remaining candidates. With probability 1 - e the draw is from a
softmax over scores (standardised, minus a cost for genres already in the slate); with
probability e it is among the fresh items, by a softmax of its own temperature, so that those
that fit the user are tried first. Drawing slot by slot from a softmax is
the Plackett-Luce model. The logged propensity is the chosen item's probability under the
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

    temperature: in standard deviations of the score; 0.1 draws the best item in nearly
        every slot where it leads by 0.5.
    explore: share of slots given to candidates of `explore_source`.
    explore_temperature: of the draw among those; at 0.5 a fresh item one deviation above another
        is tried about seven times as often, and equal ones equally.
    caps: exclude candidates before each slot; the draw is among the others, so the
        propensities stay exact.
    """

    temperature: float = 0.1
    diversity: float = 0.35
    explore: float = 0.03
    explore_temperature: float = 0.5
    explore_source: str = "fresh"
    caps: tuple[Cap, ...] = ()
    name: str = "plackett_luce"

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        draw = None if pool.scored is None else _SlateDraw(self, query.seed, pool)
        left, chosen = list(range(len(pool))), list[Candidate]()
        while left and len(chosen) < query.k:
            open_rows = self._open_rows(chosen, left, pool, query.k)
            if not open_rows:
                break
            slot = len(chosen)
            drawn = (open_rows[0], 1.0, False) if draw is None else draw.draw_slot(slot, open_rows)
            chosen.append(pool.slate_item(*drawn))
            left.remove(drawn[0])
        return tuple(chosen)

    def held_back(self, query: Query, pool: Pool, items: tuple[Candidate, ...]) -> list[Removal]:
        """Candidates that only a cap kept out: they outscore an item of the slate, or it is short."""
        if not self.caps:
            return []
        taken = {_key(candidate) for candidate in items}
        rest = [c for c in range(len(pool)) if _key(pool.candidates[c]) not in taken]
        reasons = first_reasons(self.caps, items, [pool.candidates[r] for r in rest], query.k)
        short = len(items) < query.k
        lowest = min((c.score for c in items), default=-np.inf)
        found = []
        for row, reason in zip(rest, reasons, strict=True):
            above = pool.scored is None or bool(pool.scored.score[row] > lowest)
            if reason is not None and (short or above):
                candidate = pool.candidates[row]
                removal = Removal(candidate.item_id, reason[0], reason[1], candidate.query)
                found.append(removal)
        return found

    def _open_rows(self, chosen: list[Candidate], left: list[int], pool: Pool, k: int) -> list[int]:
        if not self.caps:
            return left
        rest = [pool.candidates[row] for row in left]
        reasons = first_reasons(self.caps, chosen, rest, k)
        return [row for row, reason in zip(left, reasons, strict=True) if reason is None]


@dataclass(frozen=True)
class InOrder:
    """Keeps the source's order, as a trajectory needs. Nothing is explored."""

    name: str = "in_order"

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        return tuple(pool.slate_item(row, 1.0, False) for row in range(min(query.k, len(pool))))


class _SlateDraw:
    """One slate while it is drawn slot by slot."""

    def __init__(self, rule: PlackettLuce, seed: int, pool: Pool) -> None:
        assert pool.scored is not None
        self._rule, self._seed = rule, seed
        self._value = standardised(pool.scored.score).astype(np.float64)
        self._finite = np.isfinite(self._value)
        self._fresh = np.array([c.source == rule.explore_source for c in pool.candidates])
        self._genres = _genre_rows(pool)
        self._slate_genres = np.zeros(self._genres.shape[1])
        # Noise depends on the candidate, not on its row: an additional candidate in the pool
        # does not reshuffle the others.
        names = [f"{c.item_id}\0{c.query or ''}" for c in pool.candidates]
        self._hash = np.array([entity_hash(name) for name in names], np.uint64)

    def draw_slot(self, slot: int, open_rows: list[int]) -> tuple[int, float, bool]:
        """(row, propensity given the slots above, whether exploration drew it)."""
        self._left = np.zeros(len(self._value), bool)
        self._left[open_rows] = True
        greedy, fresh = self._softmax(), self._explored()
        share = self._rule.explore if fresh.any() else 0.0
        explored = bool(share) and float(_uniform(self._seed, slot, _COIN)[0]) < share
        row = self._sample(fresh if explored else greedy, slot)
        propensity = (1 - share) * greedy[row] + share * fresh[row]
        self._slate_genres = 0.7 * self._slate_genres + self._genres[row]
        return row, float(propensity), explored

    def _softmax(self) -> np.ndarray:
        """float64 [C]: non-finite scores are drawn only when no finite one is left."""
        open_rows = self._left & self._finite
        if not open_rows.any():
            return np.asarray(self._left / self._left.sum())
        overlap = self._genres @ self._slate_genres / max(float(self._slate_genres.sum()), 1.0)
        logits = (self._value - self._rule.diversity * overlap) / self._rule.temperature
        logits = np.where(open_rows, logits, -np.inf)
        weights = np.exp(logits - logits[open_rows].max())
        return np.asarray(weights / weights.sum())

    def _explored(self) -> np.ndarray:
        """float64 [C]: the draw among fresh candidates; zeros where none is left."""
        fresh = self._left & self._fresh & self._finite
        if not fresh.any():
            return np.zeros(len(fresh))
        logits = np.where(fresh, self._value / self._rule.explore_temperature, -np.inf)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    def _sample(self, probability: np.ndarray, slot: int) -> int:
        """Gumbel-max trick: the argmax of log p + Gumbel noise is a draw from p."""
        noise = -np.log(-np.log(_uniform(self._seed, slot, self._hash)))
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(probability) + noise))


def _key(candidate: Candidate) -> tuple[str, str | None]:
    return candidate.item_id, candidate.query


_COIN = np.array([0x9E3779B97F4A7C15], np.uint64)


def _uniform(seed: int, slot: int, keys: np.ndarray) -> np.ndarray:
    """float64 in (0, 1), a pure function of seed, slot and key (splitmix64 finalizer)."""
    salt = np.uint64((seed * 0x9E3779B97F4A7C15 + (slot + 1) * 0xD1B54A32D192ED03) % 2**64)
    x = keys ^ salt
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.asarray(((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def _genre_rows(pool: Pool) -> np.ndarray:
    """float64 [C, G], each row summing to 1, or 0 for an item without genres."""
    genres = [c.item.genres if c.item is not None else () for c in pool.candidates]
    column = {name: at for at, name in enumerate(sorted({g for row in genres for g in row}))}
    rows = np.zeros((len(genres), max(len(column), 1)))
    for at, names in enumerate(genres):
        for name in names:
            rows[at, column[name]] = 1.0 / len(names)
    return rows
