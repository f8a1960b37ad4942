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

from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Removal
from serving.stages.caps import Cap, first_reasons
from serving.stages.placement import Limits, SlateLimits
from serving.stages.scorers import standardised

_NO_LIMITS = Limits()


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
        return self.select_within(query, pool, SlateLimits(_NO_LIMITS, min(query.k, len(pool))))

    def select_within(self, query: Query, pool: Pool, limits: SlateLimits) -> tuple[Candidate, ...]:
        """A slate within limits: what is pinned has its slot, and the draw is among the others."""
        slots = limits.slots
        draw = None if pool.scored is None else _SlateDraw(self, query.seed, pool, slots)
        left, chosen = limits.without_pinned(np.ones(len(pool), bool)), list[Candidate]()
        while len(chosen) < slots:
            if (pin := limits.pinned(len(chosen))) is not None:
                chosen.append(pool.slate_item(pin.row, 1.0, False, pin.rule))
                if draw is not None:
                    draw.count_genres(pin.row)
                continue
            within = left if not self.caps else self._open(chosen, left, pool, query.k)
            open_, restricted = limits.open(len(chosen), within)
            if not open_.any():
                break
            first = int(open_.argmax())
            drawn = (first, 1.0, False) if draw is None else draw.draw_slot(len(chosen), open_)
            chosen.append(pool.slate_item(*drawn, limits.chosen(drawn[0], restricted)))
            left[drawn[0]] = False
        return (*chosen, *_pinned_after(limits, pool, len(chosen)))

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

    def _open(self, chosen: list[Candidate], left: np.ndarray, pool: Pool, k: int) -> np.ndarray:
        """bool [C]: the candidates that are left and that no cap excludes."""
        rows = np.flatnonzero(left)
        rest = [pool.candidates[row] for row in rows.tolist()]
        reasons = first_reasons(self.caps, chosen, rest, k)
        open_ = np.zeros(len(pool), bool)
        open_[rows] = [reason is None for reason in reasons]
        return open_


@dataclass(frozen=True)
class InOrder:
    """Keeps the source's order, as a trajectory needs. Nothing is explored."""

    name: str = "in_order"
    keeps_order: bool = True

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        return tuple(pool.slate_item(row, 1.0, False) for row in range(min(query.k, len(pool))))

    def select_within(self, query: Query, pool: Pool, limits: SlateLimits) -> tuple[Candidate, ...]:
        """The first candidates that the limits admit; what is pinned has its slot."""
        del query
        left, chosen = limits.without_pinned(np.ones(len(pool), bool)), list[Candidate]()
        while len(chosen) < limits.slots:
            if (pin := limits.pinned(len(chosen))) is not None:
                chosen.append(pool.slate_item(pin.row, 1.0, False, pin.rule))
                continue
            open_, restricted = limits.open(len(chosen), left)
            if not open_.any():
                break
            row = int(open_.argmax())
            chosen.append(pool.slate_item(row, 1.0, False, limits.chosen(row, restricted)))
            left[row] = False
        return (*chosen, *_pinned_after(limits, pool, len(chosen)))


def _pinned_after(limits: SlateLimits, pool: Pool, slot: int) -> list[Candidate]:
    return [pool.slate_item(p.row, 1.0, False, p.rule) for p in limits.pinned_after(slot)]


class _SlateDraw:
    """One slate while it is drawn slot by slot."""

    def __init__(self, rule: PlackettLuce, seed: int, pool: Pool, slots: int) -> None:
        assert pool.scored is not None
        self._rule = rule
        value = standardised(pool.scored.score).astype(np.float64)
        self._finite = np.isfinite(value)
        self._base, self._fresh_base = value / rule.temperature, value / rule.explore_temperature
        self._fresh = pool.from_source(rule.explore_source) & self._finite
        self._genres = pool.genre_shares() if rule.diversity else np.zeros((len(pool), 1))
        self._slate_genres = np.zeros(self._genres.shape[1])
        # Noise depends on the candidate, not on its row: an additional candidate in the pool
        # does not reshuffle the others.
        self._noise = -np.log(-np.log(_uniform(seed, slots, pool.draw_hashes())))
        self._coin = _uniform(seed, slots, _COIN)[:, 0]

    def draw_slot(self, slot: int, open_: np.ndarray) -> tuple[int, float, bool]:
        """(row, propensity given the slots above, whether exploration drew it). open_: bool [C]."""
        logits, fresh = self._logits(open_), open_ & self._fresh
        share = self._rule.explore if fresh.any() else 0.0
        explored = bool(share) and float(self._coin[slot]) < share
        fresh_logits = np.where(fresh, self._fresh_base, -np.inf)
        # Gumbel-max trick: the argmax of logits + Gumbel noise is a draw from their softmax.
        row = int(np.argmax((fresh_logits if explored else logits) + self._noise[slot]))
        propensity = (1 - share) * _softmax_at(logits, row)
        if fresh[row]:
            propensity += share * _softmax_at(fresh_logits, row)
        self.count_genres(row)
        return row, propensity, explored

    def count_genres(self, row: int) -> None:
        """Candidate `row` is in the slate."""
        self._slate_genres = 0.7 * self._slate_genres + self._genres[row]

    def _logits(self, open_: np.ndarray) -> np.ndarray:
        """float64 [C]: non-finite scores are drawn only when no finite one is left."""
        open_finite = open_ & self._finite
        if not open_finite.any():
            return np.where(open_, 0.0, -np.inf)
        overlap = self._genres @ self._slate_genres / max(float(self._slate_genres.sum()), 1.0)
        cost = overlap * (self._rule.diversity / self._rule.temperature)
        return np.where(open_finite, self._base - cost, -np.inf)


def _softmax_at(logits: np.ndarray, row: int) -> float:
    """The probability of `row` among all, of which one at least is finite."""
    weights = np.exp(logits - logits.max())
    return float(weights[row] / weights.sum())


def _key(candidate: Candidate) -> tuple[str, str | None]:
    return candidate.item_id, candidate.query


_COIN = np.array([0x9E3779B97F4A7C15], np.uint64)


def _uniform(seed: int, slots: int, keys: np.ndarray) -> np.ndarray:
    """float64 [slots, C] in (0, 1), a pure function of seed, slot and key (splitmix64 finalizer)."""
    salts = [
        (seed * 0x9E3779B97F4A7C15 + n * 0xD1B54A32D192ED03) % 2**64 for n in range(1, slots + 1)
    ]
    x = keys[None, :] ^ np.array(salts, np.uint64)[:, None]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.asarray(((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)
