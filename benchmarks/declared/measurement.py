"""One world and one seed: declare, learn, serve, hear the reactions, update, and judge the slates.

Knows the order of the steps. Does not know bars or tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.declared.stack import OwnersStack, declared_by
from benchmarks.declared.world import (
    DAY_MS,
    HISTORY_DAYS,
    HOUR_MS,
    SLOTS,
    START_MS,
    PlantedWorld,
    WorldSize,
)
from models.alignment.ranker import RankerUpdate
from models.ranking.ple.config import RankerConfig
from models.training.update_finish import UpdateOutcome
from streams.contract.clock import ManualClock

OWNERS = Path(__file__).with_name("owners")
OPENED = {"shop": ("view",), "music": ("play",)}
WANTED = {"shop": ("cart", "order"), "music": ("rating",)}


@dataclass(frozen=True)
class LoopSize:
    """slates: served to each user before the update."""

    world: WorldSize
    slates: int
    ranker: RankerConfig
    update: RankerUpdate


@dataclass(frozen=True)
class Judged:
    """Wanted items a slate, float64 [U], by policy; and what the loop stated on the way.

    tasks: the replies' tasks before and after the update. features: the declared feature columns
    of one user's row.
    """

    wanted: dict[str, np.ndarray]
    tasks: tuple[tuple[str, ...], tuple[str, ...]]
    outcome: UpdateOutcome
    fallbacks: list[str]
    row: dict[str, Any]

    def gain(self, policy: str = "served feed") -> np.ndarray:
        """float64 [U]: over the best of the popularity rankings."""
        names = [name for name in self.wanted if name.startswith("popularity")]
        best = max(names, key=lambda name: float(self.wanted[name].mean()))
        return np.asarray(self.wanted[policy] - self.wanted[best])


def run_world(kind: str, size: LoopSize, seed: int, *, strength: float = 1.0) -> Judged:
    """One pass through the whole loop."""
    world = PlantedWorld.draw(kind, size.world, seed, strength=strength)
    with tempfile.TemporaryDirectory() as home, declared_by(OWNERS / kind, Path(home)) as settings:
        stack = OwnersStack(settings, ManualClock(START_MS + HISTORY_DAYS * DAY_MS))
        try:
            return _loop(world, stack, size, seed)
        finally:
            stack.close()


def _loop(world: PlantedWorld, stack: OwnersStack, size: LoopSize, seed: int) -> Judged:
    stack.add_items(list(world.catalogue()))
    stack.send(world.history(size.world.met, seed))
    stack.clock.advance(HOUR_MS)  # a training reads what had arrived before it
    stack.train(size.ranker, seed)
    stack.popularity.refresh()
    before = _serve(world, stack, size.slates, seed)
    stack.clock.advance(2 * DAY_MS)
    outcome = stack.update(size.update, seed)
    stack.popularity.refresh()
    replies = [
        stack.feed(user_id, SLOTS, 1_000 * seed + n) for n, user_id in enumerate(world.user_ids)
    ]
    slates = {"served feed": _rows([[i["video_id"] for i in r["items"]] for r in replies])}
    slates |= _baselines(world, stack, seed)
    first = stack.store.read("user", [world.user_ids[0]], stack.clock.now_ms())
    return Judged(
        {name: world.expected(rows) for name, rows in slates.items()},
        (before, tuple(replies[0]["weights"])),
        outcome,
        [str(fallback) for reply in replies for fallback in reply["fallbacks"]],
        {name: values[0] for name, values in first.columns.items()},
    )


def _serve(world: PlantedWorld, stack: OwnersStack, slates: int, seed: int) -> tuple[str, ...]:
    """Serves every user some slates and sends what they did; returns the tasks of the replies."""
    rng = np.random.default_rng([seed, 63])
    tasks: tuple[str, ...] = ()
    for turn in range(slates):
        messages = []
        for user, user_id in enumerate(world.user_ids):
            reply = stack.feed(user_id, SLOTS, int(rng.integers(2**31)))
            tasks = tuple(reply["weights"])
            slate = [(int(i["video_id"][1:]), i["impression"]) for i in reply["items"]]
            messages += list(world.reactions(user, slate, stack.clock.now_ms(), rng))
        stack.clock.advance(HOUR_MS)
        stack.send(messages)
        if turn % 2:
            stack.popularity.refresh()
    return tasks


def _baselines(world: PlantedWorld, stack: OwnersStack, seed: int) -> dict[str, np.ndarray]:
    """Slates of popularity by what was opened and by what was wanted, of chance, of the truth.

    All may show what the feed may show: what the user has not engaged with.
    """
    log, users = stack.training_log(), len(world.user_ids)
    allowed = np.ones(world.utility.shape, bool)
    for row, user_id in enumerate(world.user_ids):
        allowed[row, [int(item[1:]) for item in stack.activity.engaged(user_id)]] = False
    scores = {
        "random": np.random.default_rng([seed, 64]).random(allowed.shape),
        "oracle": world.utility,
    }
    for what, kinds in (("opened", OPENED), ("wanted", WANTED)):
        counted = log.events.filter(log.events["kind"].is_in(kinds[world.kind]))
        pairs = counted.select("user_id", "video_id").unique()
        items = [int(item[1:]) for item in pairs["video_id"]]
        count = np.bincount(items, minlength=len(world.quality)).astype(float)
        scores[f"popularity by {what}"] = np.broadcast_to(count, (users, len(count)))
    return {name: _top(score, allowed) for name, score in scores.items()}


def _top(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    ranked = np.where(allowed, scores, -np.inf)
    return np.argsort(-ranked, axis=1, kind="stable")[:, :SLOTS]


def _rows(slates: Sequence[Sequence[str]]) -> np.ndarray:
    rows = np.full((len(slates), SLOTS), -1, np.int64)
    for at, slate in enumerate(slates):
        rows[at, : len(slate)] = [int(item[1:]) for item in slate]
    return rows
