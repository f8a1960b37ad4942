"""Hostile users who push one item, against an unpoisoned twin.

The world, the users and the served stack are those of `benchmarks.loop`; ours is trained anew on
the arm's own log after a day, so that the attack reaches the trainings as well as the served state.
Beside the clean users, 5 % hostile ones each like one item a hundred times a day, with a new event
id each time. The item is drawn by seed. The same attack is measured with the shipped caps
(`streams.ingest.caps`) and without them.

Claims and bars, set before any run, over five seeds:

- Clean users' order-weighted reward stays >= 98 % of the twin's (users of all seeds, paired).
- The item's exposure is at most twice that in the twin (slots of all seeds).
- Reported: the same without caps.

`--quick`: one seed, few users, no training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loop.arms import FROZEN, NIGHTLY, ArmRun, Learning, run_arm, stack_arm, train_prior
from benchmarks.loop.cells import DRIFTING, world_of
from benchmarks.loop.world import START_MS, STEP_MS, STEPS_A_DAY, DriftingWorld, LoopSize
from benchmarks.report import Report
from deploy.simulation.movielens import DataUnavailable, load
from models.training.evaluation import paired_bootstrap

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

KEPT, MOST_EXPOSED = 98.0, 2.0
HOSTILE_SHARE, LIKES_A_DAY = 0.05, 100
TWIN, CAPPED, UNCAPPED = "unpoisoned twin", "poisoned", "poisoned, without caps"
SIZE = LoopSize(steps=5)
QUICK = LoopSize(users=60, ratings=60, steps=2)
Runs = dict[str, list[ArmRun]]


@dataclass(frozen=True)
class Attack:
    """Likes of one item by users whom the world does not know."""

    world: DriftingWorld
    item: int

    def messages(self, step: int) -> list[dict[str, Any]]:
        return list(self._likes(step))

    def _likes(self, step: int) -> Iterator[dict[str, Any]]:
        likes = LIKES_A_DAY // STEPS_A_DAY
        pushed = self.world.items[self.item]
        for user in range(round(HOSTILE_SHARE * len(self.world.user_ids))):
            for number in range(likes):
                yield {
                    "event_id": f"hostile:{step}:{user}:{number}",
                    "user_id": f"hostile{user}",
                    "kind": "like",
                    "event_time_ms": START_MS + step * STEP_MS + number * (STEP_MS // likes),
                    "origin": "simulated",
                    "video_id": pushed.video_id,
                    "author_id": pushed.author_id,
                }


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    size, seeds = (QUICK, 1) if options.quick else (SIZE, options.seeds)
    report = Report("poison", {"seeds": seeds, **asdict(size)})
    try:
        load()
    except DataUnavailable as reason:
        report.notes.append(f"left out: {reason}")
        return report
    runs: Runs = {TWIN: [], CAPPED: [], UNCAPPED: []}
    for seed in range(seeds):
        for name, found in one_seed(seed, size, trains=not options.quick).items():
            runs[name].append(found)
            print(
                f"seed {seed}, {name}: {found.reward.mean():.3f}, {found.exposure:.2%}", flush=True
            )
    add_rows(report, runs)
    check(report, runs)
    return report


def one_seed(seed: int, size: LoopSize, *, trains: bool) -> dict[str, ArmRun]:
    """The twin and both attacks, on the same first training."""
    world = world_of(DRIFTING, size, seed)
    pushed = int(np.random.default_rng([seed, 81]).integers(len(world.items)))
    attack, learning, found = Attack(world, pushed), Learning(), {}
    arm = NIGHTLY if trains else FROZEN
    with tempfile.TemporaryDirectory() as folder:
        prior = Path(folder) / "prior"
        train_prior(world, prior, learning)
        opened = partial(stack_arm, world, arm, prior)
        for name in (TWIN, CAPPED, UNCAPPED):
            extra = attack.messages if name != TWIN else _no_messages
            own = Path(folder) / name.replace(" ", "_")
            with opened(own, learning, extra, capped=name != UNCAPPED) as stacked:
                found[name] = run_arm(world, stacked, pushed=pushed)
    return found


def _no_messages(_step: int) -> list[dict[str, Any]]:
    return []


def add_rows(report: Report, runs: Runs) -> None:
    """One row an arm."""
    for name, own in runs.items():
        mean, low, high = kept_reward(runs, name)
        report.add(
            arm=name,
            reward=float(np.concatenate([each.reward for each in own]).mean()),
            of_twin_pct=mean,
            low=low,
            high=high,
            exposure_pct=100 * float(np.mean([each.exposure for each in own])),
            times_exposed=times_exposed(runs, name),
        )


def kept_reward(runs: Runs, name: str) -> tuple[float, float, float]:
    """Clean users' reward in percent of the twin's, and its interval."""
    twin = np.concatenate([each.reward for each in runs[TWIN]])
    own = np.concatenate([each.reward for each in runs[name]])
    mean, low, high = paired_bootstrap(own - twin)
    scale = 100 / float(twin.mean())
    return 100 + scale * mean, 100 + scale * low, 100 + scale * high


def times_exposed(runs: Runs, name: str) -> float:
    twin = float(np.mean([each.exposure for each in runs[TWIN]]))
    return float(np.mean([each.exposure for each in runs[name]])) / max(twin, 1e-9)


def check(report: Report, runs: Runs) -> None:
    """The verdicts."""
    kept, times = kept_reward(runs, CAPPED)[0], times_exposed(runs, CAPPED)
    report.check("clean users' reward, % of the twin's", kept, f">= {KEPT:g}", kept >= KEPT)
    name = "the item's exposure over the twin's"
    report.check(name, times, f"<= {MOST_EXPOSED:g}", times <= MOST_EXPOSED)
    report.check(f"{name}, without caps", times_exposed(runs, UNCAPPED), "none", None)
