"""Where the feed loses utility: the best slate that each stage still allows.

Knows what passed through the pipeline and the true utility, to order by. Does not know how a
stage works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.served.pipeline import Passed
from benchmarks.served.world import SLOTS, ServedWorld
from models.ranking.ple.inputs import RANKER_TASKS

STATIC_TRIALS = 200


@dataclass(frozen=True)
class StageSlates:
    """Slates int64 [U, SLOTS] by the name of the stage; recall of the oracle's and of the best
    policy's top ten, float64 [U] each, among candidates and among those that were scored."""

    slates: dict[str, np.ndarray]
    recall: dict[str, np.ndarray]


def top(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """int64 [U, SLOTS]: the best allowed items, best first; -1 where there are too few.

    scores float [U, V]; allowed bool [U, V].
    """
    ranked = np.where(allowed, scores, -np.inf)
    order = np.argsort(-ranked, axis=1, kind="stable")[:, :SLOTS]
    found = np.isfinite(np.take_along_axis(ranked, order, axis=1))
    return np.where(found, order, -1)


def rows_of(world: ServedWorld, ids: Sequence[str]) -> np.ndarray:
    """int64 [SLOTS]: the slate's item rows, padded with -1."""
    rows = [world.item_row[item_id] for item_id in ids[:SLOTS]]
    return np.array(rows + [-1] * (SLOTS - len(rows)))


def stage_slates(
    world: ServedWorld, passed: Sequence[Passed], best: np.ndarray, seed: int
) -> StageSlates:
    """The slates that each stage allows or makes, for every user.

    best: float [U, V], the scores of the best policy on observables.
    """
    candidates = _members(world, [each.candidates for each in passed])
    kept = _members(world, [each.kept for each in passed])
    utility = world.utility
    slates = {
        "oracle: all items": top(utility, world.eligible),
        "oracle: candidates": top(utility, candidates),
        "oracle: after pre-rank": top(utility, kept),
        "best policy: all items": top(best, world.eligible),
        "best policy: candidates": top(best, candidates),
        "best policy: after pre-rank": top(best, kept),
    }
    slates |= _scored_slates(world, passed, seed)
    slates["selector without exploration"] = np.array([rows_of(world, p.plain) for p in passed])
    slates["served slate"] = np.array([rows_of(world, p.slate) for p in passed])
    recall = {
        f"{name}'s top ten in {where}": _recall(slates[f"{name}: all items"], members)
        for name in ("oracle", "best policy")
        for where, members in (("candidates", candidates), ("scored", kept))
    }
    return StageSlates(slates, recall)


def _scored_slates(
    world: ServedWorld, passed: Sequence[Passed], seed: int
) -> dict[str, np.ndarray]:
    """The order of each task alone, and of all of them fused by three kinds of weights."""
    ratios, served, kept = [], [], []
    for each in passed:
        assert each.scored is not None
        ratios.append(each.scored.p / each.scored.rates)
        served.append(each.scored.score)
        kept.append(np.array([world.item_row[item_id] for item_id in each.kept]))
    slates = {
        f"by {task} alone": _ranked(kept, [ratio[:, number] for ratio in ratios])
        for number, task in enumerate(RANKER_TASKS)
    }
    true = world.truth.utilities[world.users]
    slates["fused: served weights"] = _ranked(kept, served)
    slates["fused: best static weights"] = _best_static(world, kept, ratios, seed)
    own = [ratio @ weights for ratio, weights in zip(ratios, true, strict=True)]
    slates["fused: true weights"] = _ranked(kept, own)
    return slates


def _best_static(
    world: ServedWorld, kept: list[np.ndarray], ratios: list[np.ndarray], seed: int
) -> np.ndarray:
    """One vector for all users; chosen on the other half of the users by true utility."""
    rng = np.random.default_rng([seed, 51])
    tried = np.vstack([np.eye(len(RANKER_TASKS)), rng.dirichlet(np.ones(5), STATIC_TRIALS)])
    half = rng.permutation(len(kept)) % 2
    slates = [_ranked(kept, [ratio @ weights for ratio in ratios]) for weights in tried]
    gained = np.array([world.expected(slate, world.utility) for slate in slates])
    chosen = np.empty_like(slates[0])
    for part in (0, 1):
        best = int(gained[:, half != part].mean(axis=1).argmax())
        chosen[half == part] = slates[best][half == part]
    return chosen


def _ranked(kept: list[np.ndarray], scores: list[np.ndarray]) -> np.ndarray:
    slates = np.full((len(kept), SLOTS), -1)
    for user, (rows, score) in enumerate(zip(kept, scores, strict=True)):
        order = np.argsort(-score, kind="stable")[:SLOTS]
        slates[user, : len(order)] = rows[order]
    return slates


def _members(world: ServedWorld, lists: Sequence[Sequence[str]]) -> np.ndarray:
    """bool [U, V]"""
    found = np.zeros(world.eligible.shape, bool)
    for user, ids in enumerate(lists):
        found[user, [world.item_row[item_id] for item_id in ids]] = True
    return found


def _recall(wanted: np.ndarray, members: np.ndarray) -> np.ndarray:
    return np.asarray(np.take_along_axis(members, wanted, axis=1).mean(axis=1))
