"""The reasoner: from a dormant user's history to a trajectory.

Knows item numbers, relevance, transitions, roles and P(convert). Numpy only: training and
serving use this one class, written to a bundle and read back. Does not know the training log
(`train`) or tensors (`runtime`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from models.layers.transitions import decayed
from models.reasoning.inputs import ROLES
from models.reasoning.roles import RoleModel
from models.reasoning.sessions import (
    KINDS,
    UNSEEN,
    EngagementSteps,
    fold_steps,
    gap_bucket,
    novelty_bucket,
    position_bucket,
)
from streams.contract.clock import DAY_MS, HOUR_MS

HISTORY = 50  # engaged items that the feature keeps
F1_DECAY, RIDGE_DECAY = 0.6, 0.95
GOALS = 5  # goals compared per request: one is taken, the others are counterfactuals
POOL = 60  # the most relevant items, which paths are made of
BEAM = 8
LINK = 0.15  # weight of a transition relative to relevance on a path
BLEND = ("f1", "ridge", "popular", "recent")
_UNKNOWN_SILENCE_MS = 30 * DAY_MS  # assumed for an empty history
CONVERT = ("bias", "relevance", "item_rate", "user_rate", "taste", "silence")


@dataclass(frozen=True)
class Trajectory:
    """Steps that end at a goal, the last item.

    p_convert: float [steps]; others: goals not taken, with P(convert), best first.
    """

    items: list[int]
    roles: list[str]
    p_convert: np.ndarray
    goal: int
    others: list[tuple[int, float]]


@dataclass(frozen=True)
class Reasoner:
    """All learned tables, over N items.

    f1, ridge: float32 [N, N]; popular, recent: float32 [N], standardised log-counts;
    genres: float32 [N, G], unit rows; item_rate: float32 [N], logit of the smoothed share
    of engagements that converted; blend: [4]; convert: [6]; convert_kinds index KINDS.
    """

    item_ids: tuple[str, ...]
    available: np.ndarray
    f1: np.ndarray
    ridge: np.ndarray
    popular: np.ndarray
    recent: np.ndarray
    genres: np.ndarray
    item_rate: np.ndarray
    blend: np.ndarray
    convert: np.ndarray
    convert_kinds: tuple[int, ...]
    roles: RoleModel

    @cached_property
    def number(self) -> Mapping[str, int]:
        """video_id -> item number."""
        return {item_id: n for n, item_id in enumerate(self.item_ids)}

    def history(
        self, ids: Sequence[str], kinds: Sequence[str], times_ms: Sequence[int]
    ) -> EngagementSteps:
        """Steps of a feature's history, given newest first, without unknown items and kinds."""
        rows = [
            (self.number[item_id], KINDS.index(kind), int(time_ms))
            for item_id, kind, time_ms in zip(ids, kinds, times_ms, strict=False)
            if item_id in self.number and kind in KINDS
        ]
        rows = sorted(rows[:HISTORY], key=lambda row: row[2])
        return fold_steps([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])

    def signals(self, past: EngagementSteps) -> np.ndarray:
        """float32 [4, N] in BLEND's order; the first two are 0 without a history."""
        newest = past.item[::-1]
        near = self._from_history(newest, F1_DECAY, self.f1)
        learned = self._from_history(newest, RIDGE_DECAY, self.ridge)
        return np.stack([_squash(near), _standard(learned), self.popular, self.recent])

    def _from_history(self, newest: np.ndarray, decay: float, table: np.ndarray) -> np.ndarray:
        """float32 [N]: the decayed history times `table`, of which only its rows are read."""
        rows = np.unique(newest)
        found: np.ndarray = decayed(newest, decay, len(self.item_ids))[rows] @ table[rows]
        return found

    def relevance(self, past: EngagementSteps) -> np.ndarray:
        """float64 [N]: log-odds, up to a constant, of being in the next session."""
        scores: np.ndarray = self.blend @ self.signals(past)
        return scores

    def p_convert(
        self, past: EngagementSteps, items: np.ndarray, now_ms: int, relevance: np.ndarray
    ) -> np.ndarray:
        """P(conversion | engagement) of each item int64 [M], calibrated; float64 [M]."""
        logits = self.convert_features(past, items, now_ms, relevance) @ self.convert
        found: np.ndarray = 1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))
        return found

    def convert_features(
        self, past: EngagementSteps, items: np.ndarray, now_ms: int, relevance: np.ndarray
    ) -> np.ndarray:
        """float64 [M, 6] in CONVERT's order."""
        converted = np.isin(past.kind, self.convert_kinds).sum()
        rate = (converted + 0.5) / (len(past) + 10.0)
        liked = self.genres[past.item].sum(axis=0)
        liked = liked / max(float(np.linalg.norm(liked)), 1e-6)
        silence = max(now_ms - int(past.time_ms[-1]), 0) if len(past) else _UNKNOWN_SILENCE_MS
        shared = [1.0, 0.0, 0.0, np.log(rate / (1 - rate)) + 3.0, 0.0]
        shared.append(np.log1p(silence / HOUR_MS) / 5.0)
        features = np.tile(np.array(shared), (len(items), 1))
        features[:, 1] = relevance[items] / 4.0
        features[:, 2] = self.item_rate[items]
        features[:, 4] = self.genres[items] @ liked
        return features

    def plan(
        self, past: EngagementSteps, k: int, now_ms: int, unavailable: Sequence[int] = ()
    ) -> Trajectory | None:
        """The best path of at most k items that ends at the best of GOALS goals.

        A path is as long as its mean score grows with its length. Items of the history and
        unavailable ones are excluded. None without any item.
        """
        relevance = self.relevance(past)
        closed = ~self.available
        closed[past.item] = True
        closed[list(unavailable)] = True
        pool = np.argsort(-np.where(closed, -np.inf, relevance), kind="stable")
        pool = pool[: min(max(POOL, 2 * k), int((~closed).sum()))]
        if not len(pool):
            return None
        chance = self.p_convert(past, pool, now_ms, relevance)
        worth = np.log(chance) + relevance[pool] - relevance[pool].max()
        goals = np.argsort(-worth, kind="stable")[:GOALS]
        link = self._links(pool)
        paths = [self._backward(goal, relevance[pool], link, min(k, len(pool))) for goal in goals]
        best = max(range(len(goals)), key=lambda n: worth[goals[n]] + paths[n][1])
        path = np.array(paths[best][0])
        others = [(int(pool[g]), float(chance[g])) for n, g in enumerate(goals) if n != best]
        items = pool[path]
        roles = self._roles(past, items, now_ms)
        return Trajectory(items.tolist(), roles, chance[path], int(items[-1]), others)

    def _links(self, pool: np.ndarray) -> np.ndarray:
        """float [M, M]: standardised transition strength, row = from."""
        raw = np.log(self.f1[np.ix_(pool, pool)] + 1e-3)
        found: np.ndarray = (raw - raw.mean()) / max(float(raw.std()), 1e-6)
        return found

    @staticmethod
    def _backward(
        goal: int, relevance: np.ndarray, link: np.ndarray, length: int
    ) -> tuple[list[int], float]:
        """Beam search from the goal backwards: of the best paths of 1..length steps the one with
        the best mean score per step. The path, first step first, and that score."""
        beams: list[tuple[float, list[int]]] = [(0.0, [int(goal)])]
        best, best_mean = beams[0][1], 0.0
        for steps in range(2, length + 1):
            grown = []
            for score, path in beams:
                step = relevance + LINK * link[:, path[-1]]
                step[path] = -np.inf
                for item in np.argsort(-step, kind="stable")[:BEAM]:
                    if np.isfinite(step[item]):
                        grown.append((score + float(step[item]), [*path, int(item)]))
            # Of paths with the same items only the best order is kept.
            grown.sort(key=lambda beam: -beam[0])
            distinct = {frozenset(path): (score, path) for score, path in reversed(grown)}
            beams = sorted(distinct.values(), key=lambda beam: -beam[0])[:BEAM]
            if beams[0][0] / steps > best_mean:
                best, best_mean = beams[0][1], beams[0][0] / steps
        return best[::-1], best_mean

    def _roles(self, past: EngagementSteps, items: np.ndarray, now_ms: int) -> list[str]:
        """The most likely roles of the planned session, given that its goal converts the user.

        The kinds of its steps are unknown; they are assumed to follow each other within minutes.
        """
        seen = np.full((len(items), 4), UNSEEN, dtype=np.int64)
        before = past.item
        silence = now_ms - int(past.time_ms[-1]) if len(past) else _UNKNOWN_SILENCE_MS
        for t, item in enumerate(items):
            gap = gap_bucket(np.array([silence if t == 0 else 120_000]))[0]
            fresh = novelty_bucket(int(item), before, self.genres)
            seen[t] = position_bucket(t), UNSEEN, gap, fresh
            before = np.r_[before, item]
        return self.roles.decode(seen, last="converter")

    def write(self, folder: Path) -> None:
        """Writes items.json and reasoner.npz."""
        names = {"video_ids": self.item_ids, "convert_kinds": self.convert_kinds, "roles": ROLES}
        (folder / "items.json").write_text(json.dumps(names), encoding="utf-8")
        emit = {f"emit_{n}": table for n, table in enumerate(self.roles.emit)}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        hidden = {"start": self.roles.start, "move": self.roles.move}
        np.savez(folder / "reasoner.npz", allow_pickle=False, **arrays, **hidden, **emit)

    @classmethod
    def read(cls, folder: Path) -> Reasoner:
        """Reads what `write` wrote."""
        names = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        with np.load(folder / "reasoner.npz") as stored:
            emit = tuple(stored[f"emit_{n}"] for n in range(4))
            roles = RoleModel(stored["start"], stored["move"], emit)
            arrays = {name: stored[name] for name in _ARRAYS}
        kinds = tuple(names["convert_kinds"])
        return cls(tuple(names["video_ids"]), convert_kinds=kinds, roles=roles, **arrays)


_ARRAYS = (
    *("available", "f1", "ridge", "popular", "recent", "genres", "item_rate"),
    *("blend", "convert"),
)


def _squash(scores: np.ndarray) -> np.ndarray:
    """Log-scaled, so that a few strong transitions do not dominate the blend."""
    return _standard(np.log(scores + 1e-3))


def _standard(scores: np.ndarray) -> np.ndarray:
    found: np.ndarray = (scores - scores.mean()) / max(float(scores.std()), 1e-6)
    return found
