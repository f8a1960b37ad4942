"""One arm in one world and seed: its own slates, feedback, consumption and updates.

Knows the order of a step: visits, reactions, feedback, then learning. Does not know bars.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.loop.learner import FormLearner
from benchmarks.loop.plain import PlainArm, implicit_factors, item_knn, popularity
from benchmarks.loop.stack import LoopStack, open_stack
from benchmarks.loop.world import SLOTS, START_MS, STEP_MS, STEPS_A_DAY, DriftingWorld
from models.alignment.ranker import RankerUpdate
from models.ranking.ple.config import RankerConfig
from models.recipe import NotEnoughData

POPULARITY, FROZEN, NIGHTLY, OURS = "popularity", "frozen", "nightly retraining", "ours"
FAST_OFF, FORM, ORACLE = "frozen, fast features off", "form-knowing learner", "oracle"
KNN, KNN_NIGHTLY = "item-kNN, frozen", "item-kNN, nightly"
FACTORS, FACTORS_NIGHTLY = "implicit MF, frozen", "implicit MF, nightly"
PLAIN = (KNN, KNN_NIGHTLY, FACTORS, FACTORS_NIGHTLY)
STACKED = (FROZEN, FAST_OFF, OURS, NIGHTLY)
ARMS = (ORACLE, POPULARITY, *PLAIN, FORM, *STACKED)


@dataclass(frozen=True)
class Learning:
    """How our models are trained at first, and updated.

    An update waits for 200 slates: of fewer, the later 30 % are less than the 60 that the gate needs.
    """

    ranker: RankerConfig = field(default_factory=RankerConfig)
    update: RankerUpdate = field(default_factory=lambda: RankerUpdate(min_slates=200))


@dataclass
class ArmRun:
    """reward float64 [U]: expected order-weighted reward over the week. by_step float64 [steps]: a
    slate. cpu_s: of serving and of learning. verdicts: of updates, with their reasons."""

    reward: np.ndarray
    by_step: np.ndarray
    cpu_s: dict[str, float]
    verdicts: list[str] = field(default_factory=list)
    exposure: float = 0.0  # share of slots with the item that hostile users push


class Arm(Protocol):
    """One policy through the week."""

    def serve(self, step: int, users: np.ndarray, times: np.ndarray) -> dict[int, np.ndarray]:
        """Slates by user: rows of items, int64 [<= SLOTS]. Reactions are taken in as well."""

    def learn(self, step: int) -> str:
        """After a step; a verdict, or "" without an update."""


def run_arm(world: DriftingWorld, arm: Arm, *, pushed: int | None = None) -> ArmRun:
    """All steps. pushed: the row of the item whose exposure is counted."""
    run = ArmRun(
        np.zeros(len(world.user_ids)),
        np.zeros(world.size.steps),
        {"serving": 0.0, "learning": 0.0},
    )
    shown = slots = 0
    for step in range(world.size.steps):
        reward = world.reward(step)
        with _counted(run, "serving"):
            slates = arm.serve(step, *world.visits(step))
        gained = {
            user: float(reward[user, slate] @ world.attention[: len(slate)])
            for user, slate in slates.items()
        }
        run.reward[list(gained)] += list(gained.values())
        run.by_step[step] = np.mean(list(gained.values()))
        shown += sum(int((slate == pushed).sum()) for slate in slates.values())
        slots += sum(map(len, slates.values()))
        with _counted(run, "learning"):
            if verdict := arm.learn(step):
                run.verdicts.append(verdict)
    run.exposure = shown / max(slots, 1)
    return run


@contextmanager
def _counted(run: ArmRun, what: str) -> Iterator[None]:
    start_s = time.process_time()
    yield
    run.cpu_s[what] += time.process_time() - start_s


@dataclass
class DirectArm:
    """An arm that takes reactions directly: popularity, the plain baselines, the learner."""

    world: DriftingWorld
    policy: PlainArm | FormLearner

    def serve(self, step: int, users: np.ndarray, times: np.ndarray) -> dict[int, np.ndarray]:
        del times
        truth, slates = self.world.truth(step), {}
        if isinstance(self.policy, FormLearner):
            self.policy.start_step(step)
        for user in users.tolist():
            slate = self.policy.slate(user, step * 100_003 + user)
            acts: dict[int, set[str]] = defaultdict(set)
            for slot, kind, *_ in self.world.watch(truth, user, slate.tolist(), step):
                acts[slot].add(kind)
            if isinstance(self.policy, FormLearner):
                self.policy.hear(user, slate, acts)
            else:
                self.policy.hear(user, slate, [s for s, kinds in acts.items() if "play" in kinds])
            slates[user] = slate
        return slates

    def learn(self, step: int) -> str:
        if isinstance(self.policy, PlainArm):
            self.policy.end_step(step)
        return ""


@dataclass
class OracleArm:
    """The best slate by the truth of the step, with consumption of its own."""

    world: DriftingWorld

    def __post_init__(self) -> None:
        self.played = self.world.played.copy()

    def serve(self, step: int, users: np.ndarray, times: np.ndarray) -> dict[int, np.ndarray]:
        del times
        truth, reward, slates = self.world.truth(step), self.world.reward(step), {}
        for user in users.tolist():
            ranked = np.where(self.played[user], -1.0, reward[user])
            slate = np.argsort(-ranked)[:SLOTS]
            acts = self.world.watch(truth, user, slate.tolist(), step)
            self.played[user, [slate[slot] for slot, kind, *_ in acts if kind == "play"]] = True
            slates[user] = slate
        return slates

    def learn(self, step: int) -> str:
        del step
        return ""


Messages = Callable[[int], list[dict[str, Any]]]


@dataclass
class StackArm:
    """Our feed, with the real ingest, feature rows, feedback, updates and gate.

    every: steps between updates; None: never. retrain: a full training in place of an update.
    extra: further messages of a step, from users outside the world.
    """

    world: DriftingWorld
    stack: LoopStack
    learning: Learning
    every: int | None
    retrain: bool = False
    extra: Messages = lambda _step: []

    def serve(self, step: int, users: np.ndarray, times: np.ndarray) -> dict[int, np.ndarray]:
        truth, clock, slates, messages = self.world.truth(step), self.stack.clock, {}, []
        for user, at_ms in zip(users.tolist(), times.tolist(), strict=True):
            clock.at_ms = at_ms
            seed = self.world.seed * 1_000_003 + step * 1_009 + user
            found = self.stack.slate(self.world.user_ids[user], SLOTS, seed)
            rows = np.array([self.world.item_row[item] for item, _ in found])
            messages += self._messages(truth, step, user, rows, [token for _, token in found])
            slates[user] = rows
        clock.at_ms = START_MS + (step + 1) * STEP_MS
        self.stack.send(messages + self.extra(step))
        if (step + 1) % STEPS_A_DAY == 0:
            self.stack.start_day()
        self.stack.popularity.refresh()
        return slates

    def learn(self, step: int) -> str:
        if self.every is None or (step + 1) % self.every:
            return ""
        if self.retrain:
            self.stack.train(self.learning.ranker, self.world.seed)
            return "retrained"
        try:
            outcome = self.stack.update(self.learning.update, self.world.seed)
        except NotEnoughData as error:
            return f"waiting: {error}"
        word = "promoted" if outcome.promoted else "refused"
        return f"{word}: {'; '.join(outcome.reasons)}"

    def _messages(
        self, truth: Any, step: int, user: int, rows: np.ndarray, tokens: list[str]
    ) -> list[dict[str, Any]]:
        world, at_ms = self.world, self.stack.clock.at_ms
        found = []
        for slot, kind, offset_ms, dwell_ms, cents in world.watch(truth, user, rows.tolist(), step):
            item = world.items[int(rows[slot])]
            event = {
                "event_id": f"{step}:{user}:{slot}:{kind}",
                "user_id": world.user_ids[user],
                "kind": kind,
                "event_time_ms": at_ms + 100 + offset_ms,
                "surface": "feed",
                "origin": "simulated",
                "impression": tokens[slot],
                "video_id": item.video_id,
                "author_id": item.author_id,
                "dwell_ms": dwell_ms,
                "amount_cents": cents,
            }
            found.append({name: value for name, value in event.items() if value is not None})
        return found


def train_prior(world: DriftingWorld, home: Path, learning: Learning) -> None:
    """The ranker that all of our arms begin with, trained on the history alone, in `home`."""
    stack = open_stack(home, START_MS, world.items)
    try:
        stack.replay(world.past.frame)
        stack.train(learning.ranker, world.seed)
    finally:
        stack.close()


@contextmanager
def stack_arm(
    world: DriftingWorld,
    name: str,
    prior: Path,
    home: Path,
    learning: Learning,
    extra: Messages = lambda _step: [],
    *,
    capped: bool = True,
) -> Iterator[StackArm]:
    """One of `STACKED`, with the models of `prior`. capped: see `LoopStack`."""
    for folder in ("releases", "repository"):
        shutil.copytree(prior / folder, home / folder)
    stack = open_stack(home, START_MS, world.items, fast=name != FAST_OFF, capped=capped)
    try:
        stack.models.load_all()
        stack.replay(world.past.frame)
        every = {FROZEN: None, FAST_OFF: None, NIGHTLY: STEPS_A_DAY}.get(name, 1)
        yield StackArm(world, stack, learning, every, name == NIGHTLY, extra)
    finally:
        stack.close()


def direct_arm(world: DriftingWorld, name: str) -> Arm:
    """One of the arms that need no stack."""
    if name == ORACLE:
        return OracleArm(world)
    if name == FORM:
        return DirectArm(world, FormLearner(world))
    if name == POPULARITY:
        return DirectArm(world, PlainArm(world.played, popularity, 1, False, world.seed))
    fit = item_knn if name in (KNN, KNN_NIGHTLY) else implicit_factors
    every = STEPS_A_DAY if name in (KNN_NIGHTLY, FACTORS_NIGHTLY) else None
    return DirectArm(world, PlainArm(world.played, fit, every, True, world.seed))
