"""The reasoner's numbers and what it does with them: from a silent user to a trajectory.

Knows item numbers, relevance, transitions, roles and P(convert). Numpy only: the training
side and the served form are this one class, written to a bundle and read back. Does not
know the training log (`rolegen`) nor tensors (`runtime`).
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
    Steps,
    gap_bucket,
    novelty_bucket,
    observe,
    position_bucket,
    steps,
)

HISTORY = 50  # engaged videos that the feature keeps
F1_DECAY, RIDGE_DECAY = 0.6, 0.95
GOALS = 5  # goals weighed per request: one is taken, the others are counterfactuals
POOL = 60  # most relevant items that a path may use
BEAM = 8
LINK = 0.15  # weight of a transition beside relevance on the way to the goal
BLEND = ("f1", "ridge", "popular", "recent")
CONVERT = ("bias", "relevance", "item_rate", "user_rate", "taste", "silence")


@dataclass(frozen=True)
class Plan:
    """K steps toward a goal. p_convert: float [K]; others: goals not taken, with theirs."""

    items: list[int]
    roles: list[str]
    p_convert: np.ndarray
    goal: int
    others: list[tuple[int, float]]


@dataclass(frozen=True)
class Reasoner:
    """Everything learned, over N items.

    f1, ridge: float32 [N, N]; popular, recent: float32 [N], standardised log-counts;
    genres: float32 [N, G], unit rows; item_rate: float32 [N], logit of the smoothed share
    of engagements that converted; blend: [4]; convert: [6]; convert_kinds index KINDS.
    """

    video_ids: tuple[str, ...]
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
        return {video_id: n for n, video_id in enumerate(self.video_ids)}

    def history(self, ids: Sequence[str], kinds: Sequence[str], times_ms: Sequence[int]) -> Steps:
        """Steps of a feature's history, newest first; unknown videos and kinds are left out."""
        rows = [
            (self.number[video_id], KINDS.index(kind), int(time_ms))
            for video_id, kind, time_ms in zip(ids, kinds, times_ms, strict=False)
            if video_id in self.number and kind in KINDS
        ]
        rows = sorted(rows[:HISTORY], key=lambda row: row[2])
        return steps([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])

    def signals(self, done: Steps) -> np.ndarray:
        """float32 [4, N] in BLEND's order; the first two are 0 without a history."""
        newest = done.item[::-1]
        near = decayed(newest, F1_DECAY, len(self.video_ids)) @ self.f1
        learned = decayed(newest, RIDGE_DECAY, len(self.video_ids)) @ self.ridge
        return np.stack([_squash(near), _standard(learned), self.popular, self.recent])

    def relevance(self, done: Steps) -> np.ndarray:
        """float64 [N]: log-odds, up to a constant, of being in the next session."""
        scores: np.ndarray = self.blend @ self.signals(done)
        return scores

    def p_convert(self, done: Steps, items: np.ndarray, now_ms: int) -> np.ndarray:
        """P(the user converts on each item | engages with it), calibrated; float64 [M]."""
        logits = self.convert_features(done, items, now_ms, self.relevance(done)) @ self.convert
        found: np.ndarray = 1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))
        return found

    def convert_features(
        self, done: Steps, items: np.ndarray, now_ms: int, relevance: np.ndarray
    ) -> np.ndarray:
        """float64 [M, 6] in CONVERT's order."""
        converted = np.isin(done.kind, self.convert_kinds).sum()
        rate = (converted + 0.5) / (len(done) + 10.0)
        liked = self.genres[done.item].sum(axis=0)
        liked = liked / max(float(np.linalg.norm(liked)), 1e-6)
        silence = max(now_ms - int(done.time_ms[-1]), 0) if len(done) else 30 * 86_400_000
        shared = [1.0, 0.0, 0.0, np.log(rate / (1 - rate)) + 3.0, 0.0]
        shared.append(np.log1p(silence / 3_600_000) / 5.0)
        features = np.tile(np.array(shared), (len(items), 1))
        features[:, 1] = relevance[items] / 4.0
        features[:, 2] = self.item_rate[items]
        features[:, 4] = self.genres[items] @ liked
        return features

    def plan(
        self, done: Steps, k: int, now_ms: int, unavailable: Sequence[int] = ()
    ) -> Plan | None:
        """The best path of up to k items to the best of GOALS goals; None where no item is left.

        Items of the history and unavailable ones do not come out.
        """
        relevance = self.relevance(done)
        closed = ~self.available
        closed[done.item] = True
        closed[list(unavailable)] = True
        pool = np.argsort(-np.where(closed, -np.inf, relevance), kind="stable")
        pool = pool[: min(max(POOL, 2 * k), int((~closed).sum()))]
        if not len(pool):
            return None
        chance = self.p_convert(done, pool, now_ms)
        worth = np.log(chance) + relevance[pool] - relevance[pool].max()
        goals = np.argsort(-worth, kind="stable")[:GOALS]
        link = self._links(pool)
        paths = [self._backward(goal, relevance[pool], link, min(k, len(pool))) for goal in goals]
        best = max(range(len(goals)), key=lambda n: worth[goals[n]] + paths[n][1])
        path = np.array(paths[best][0])
        others = [(int(pool[g]), float(chance[g])) for n, g in enumerate(goals) if n != best]
        items = pool[path]
        roles = self._roles(done, items, now_ms)
        return Plan(items.tolist(), roles, chance[path], int(items[-1]), others)

    def _links(self, pool: np.ndarray) -> np.ndarray:
        """[M, M] standardised transition strength, row = from."""
        raw = np.log(self.f1[np.ix_(pool, pool)] + 1e-3)
        found: np.ndarray = (raw - raw.mean()) / max(float(raw.std()), 1e-6)
        return found

    @staticmethod
    def _backward(
        goal: int, relevance: np.ndarray, link: np.ndarray, length: int
    ) -> tuple[list[int], float]:
        """Beam search from the goal to the beginning; the path, first step first, and its
        mean score."""
        beams: list[tuple[float, list[int]]] = [(0.0, [int(goal)])]
        for _ in range(length - 1):
            grown = []
            for score, path in beams:
                step = relevance + LINK * link[:, path[-1]]
                step[path] = -np.inf
                for item in np.argsort(-step, kind="stable")[:BEAM]:
                    if np.isfinite(step[item]):
                        grown.append((score + float(step[item]), [*path, int(item)]))
            # Paths of the same items differ in order only: the best order of each is kept.
            grown.sort(key=lambda beam: -beam[0])
            distinct = {frozenset(path): (score, path) for score, path in reversed(grown)}
            beams = sorted(distinct.values(), key=lambda beam: -beam[0])[:BEAM]
        score, path = beams[0]
        return path[::-1], score / length

    def _roles(self, done: Steps, items: np.ndarray, now_ms: int) -> list[str]:
        """Viterbi over the session to come: its kinds are unknown, its steps are taken to
        follow each other within minutes, and it ends in a converter, as a goal is one."""
        seen = np.full((len(items), 4), UNSEEN, dtype=np.int64)
        before = done.item
        silence = now_ms - int(done.time_ms[-1]) if len(done) else 30 * 86_400_000
        for t, item in enumerate(items):
            gap = gap_bucket(np.array([silence if t == 0 else 120_000]))[0]
            fresh = novelty_bucket(int(item), before, self.genres)
            seen[t] = position_bucket(t), UNSEEN, gap, fresh
            before = np.r_[before, item]
        return self.roles.decode(seen, last="converter")

    def past_roles(self, done: Steps) -> list[str]:
        """The role of every step that was taken, session by session."""
        seen = observe(done, self.genres)
        return [
            role
            for session in np.unique(done.session)
            for role in self.roles.decode(seen[done.session == session])
        ]

    def write(self, folder: Path) -> None:
        names = {"video_ids": self.video_ids, "convert_kinds": self.convert_kinds, "roles": ROLES}
        (folder / "items.json").write_text(json.dumps(names), encoding="utf-8")
        emit = {f"emit_{n}": table for n, table in enumerate(self.roles.emit)}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        hidden = {"start": self.roles.start, "move": self.roles.move}
        np.savez(folder / "reasoner.npz", allow_pickle=False, **arrays, **hidden, **emit)

    @classmethod
    def read(cls, folder: Path) -> Reasoner:
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
    """Log-scaled so that the blend is not ruled by a few strong transitions."""
    return _standard(np.log(scores + 1e-3))


def _standard(scores: np.ndarray) -> np.ndarray:
    found: np.ndarray = (scores - scores.mean()) / max(float(scores.std()), 1e-6)
    return found
