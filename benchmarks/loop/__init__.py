"""A simulated week of a loop that closes by itself, in a world whose tastes drift.

Each arm serves the same visits of the same users with slates of its own, hears what these users do
with them, and never shows again what a user played. Histories are replayed ratings. Within the week
every taste turns by 60 degrees, so that half of its correlation with the history is left. Reward:
the expected order-weighted reward (`benchmarks.loop.world`) of what was shown, summed over a user's
week. Served arms run the real feed, ingest, feature rows, feedback, updates and gate in process.

- popularity: by users who played, counted anew after every step.
- frozen: our ranker trained on the history; feature rows, popularity and co-engagement stay live.
- ours: as frozen, and every six hours one update by the shipped contract and gate.
- nightly retraining: as frozen, and a full training on the arm's own log every midnight.
- item-kNN and implicit matrix factorisation on plays, each frozen and refitted nightly, with the
  feed's temperature and share of exploration.
- form-knowing learner: knows how the world works, but no user's and no item's numbers.
- oracle: the best slate by the truth; a ceiling.

Claims and bars, set before any run of the full form, paired by user over at least three seeds:

- Ours is above popularity and above frozen (95 % intervals above 0).
- Ours gains at least half of what the form-knowing learner gains over frozen.
- Ours is no worse than the better arm of each plain baseline, and than nightly retraining (lower bound
  -1 %). CPU of all arms is in the table.
- Null world (all like the same): ours loses at most 3 % to popularity: exploration costs a little.
- Reported: frozen with fast features off (users' rows change at midnight only); the oracle's margin.

Sizes were chosen on seed 100; reported seeds start at 0. `--quick`: few users and steps, one seed.
Results of (arm, seed) are kept under .cache/ and belong to their code; a stopped run resumes there.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.loop.arms import (
    ARMS,
    FACTORS,
    FACTORS_NIGHTLY,
    FAST_OFF,
    FORM,
    FROZEN,
    KNN,
    KNN_NIGHTLY,
    NIGHTLY,
    ORACLE,
    OURS,
    POPULARITY,
    ArmRun,
    Learning,
)
from benchmarks.loop.cells import DRIFTING, NULL, Cell, run_cells
from benchmarks.loop.world import LoopSize
from benchmarks.report import Report
from deploy.simulation.movielens import DataUnavailable, load
from models.training.evaluation import paired_bootstrap

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHARE, WORSE, NULL_LOSS = 0.5, -1.0, -3.0
NULL_ARMS = (POPULARITY, FROZEN, OURS)
QUICK = LoopSize(users=60, ratings=60, steps=2)
Runs = dict[Cell, ArmRun]


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    size, seeds = (QUICK, 1) if options.quick else (LoopSize(), options.seeds)
    report = Report("loop", {"seeds": seeds, **asdict(size)})
    try:
        load()
    except DataUnavailable as reason:
        report.notes.append(f"left out: {reason}")
        return report
    worlds = ((DRIFTING, ARMS), (NULL, NULL_ARMS))
    cells = [Cell(world, a, seed) for seed in range(seeds) for world, arms in worlds for a in arms]
    runs = run_cells(cells, size, Learning())
    for world, arms in worlds:
        add_rows(report, runs, world, arms)
    check(report, runs)
    return report


def rewards(runs: Runs, world: str, arm: str) -> np.ndarray:
    """float64 [users of all seeds]"""
    return np.concatenate([r.reward for c, r in runs.items() if (c.world, c.arm) == (world, arm)])


def relative(runs: Runs, world: str, arm: str, over: str) -> tuple[float, float, float]:
    """The paired difference in percent of the mean of `over`, and its interval."""
    base = rewards(runs, world, over)
    mean, low, high = paired_bootstrap(rewards(runs, world, arm) - base)
    scale = 100 / float(base.mean())
    return scale * mean, scale * low, scale * high


def add_rows(report: Report, runs: Runs, world: str, arms: tuple[str, ...]) -> None:
    """One row an arm."""
    for arm in arms:
        own = [run for cell, run in runs.items() if (cell.world, cell.arm) == (world, arm)]
        mean, low, high = relative(runs, world, arm, POPULARITY)
        days = np.array_split(np.mean([run.by_step for run in own], axis=0), 7)
        verdicts = [verdict.partition(":")[0] for run in own for verdict in run.verdicts]
        report.add(
            world=world,
            arm=arm,
            reward=float(rewards(runs, world, arm).mean()),
            over_popularity_pct=mean,
            low=low,
            high=high,
            first_day=float(days[0].mean()) if len(days[0]) else float("nan"),
            last_day=float(days[-1].mean()) if len(days[-1]) else float("nan"),
            cpu_serving_s=float(np.mean([run.cpu_s["serving"] for run in own])),
            cpu_learning_s=float(np.mean([run.cpu_s["learning"] for run in own])),
        )
        if verdicts:
            counts = ", ".join(f"{verdicts.count(word)} {word}" for word in sorted(set(verdicts)))
            report.notes.append(f"{world}, {arm}: updates over all seeds: {counts}")


def check(report: Report, runs: Runs) -> None:
    """The verdicts."""
    for over in (POPULARITY, FROZEN):
        low = relative(runs, DRIFTING, OURS, over)[1]
        report.check(f"ours over {over}, lower bound %", low, "> 0", low > 0)
    share, low, high = gained_share(runs)
    ok = share >= SHARE
    report.check("ours: share of the form-knowing learner's gain", share, f">= {SHARE}", ok)
    report.notes.append(f"that share's interval: {low:.3f} to {high:.3f}")
    for pair in ((KNN, KNN_NIGHTLY), (FACTORS, FACTORS_NIGHTLY), (NIGHTLY,)):
        best = max(pair, key=lambda arm: float(rewards(runs, DRIFTING, arm).mean()))
        low = relative(runs, DRIFTING, OURS, best)[1]
        report.check(f"ours over {best}, lower bound %", low, f">= {WORSE:g}", low >= WORSE)
    loss = relative(runs, NULL, OURS, POPULARITY)[0]
    name = "null: ours over popularity, %"
    report.check(name, loss, f">= {NULL_LOSS:g}", loss >= NULL_LOSS)
    fast = relative(runs, DRIFTING, FROZEN, FAST_OFF)[0]
    report.check("fast features on over off, %", fast, "none", None)
    margin = relative(runs, DRIFTING, ORACLE, POPULARITY)[0]
    report.check("margin: oracle over popularity, %", margin, "none", None)


def gained_share(runs: Runs) -> tuple[float, float, float]:
    """(ours - frozen) / (form-knowing learner - frozen), and its interval; users resampled."""
    base = rewards(runs, DRIFTING, FROZEN)
    whole = rewards(runs, DRIFTING, FORM) - base
    ours = rewards(runs, DRIFTING, OURS) - base
    picks = np.random.default_rng(0).integers(0, len(base), (2_000, len(base)))
    drawn = ours[picks].mean(axis=1) / np.maximum(whole[picks].mean(axis=1), 1e-9)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(ours.mean() / max(float(whole.mean()), 1e-9)), float(low), float(high)
