"""A shop and a music service that exist only by declaration, through the whole loop.

Each owner's folder (`owners/`) holds settings and a file of features, and no other Python. The shop
declares `view` and `goods_returned` beside the shipped `cart` and `order`; nothing is ever played.
The music service declares `rating`, with a value, beside the shipped `play` and `skip`. Messages go
through admission, log, feedback and folds; a ranker is trained on what users did by themselves; its
feed is served and reacted to; the ranker is updated once, behind its gate; and the slates of the feed
that is then live are judged by the planted truth.

Claims and bars, set before any judged run, paired by user over at least three seeds. A slate's value
is its expected number of wanted items: opened and put into the cart, or played and enjoyed. Popularity
is the better of two rankings of what the feed may show: by users who opened an item, and by users who
wanted it.

- Both worlds: the served feed is above popularity (95 % interval above 0).
- Both worlds without taste, a null control: the served feed loses at most 10 % to popularity. Scores
  are drawn, fresh items are tried, and both cost a little where nothing can be gained.
- Every reply has the declared tasks, and no stage of any judged reply failed.
- Reported: random slates, the oracle, and the gate's decision.

Worlds were sized on seed 100; reported seeds start at 0. `--quick`: one seed, the size of the test.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.declared.measurement import Judged, LoopSize, run_world
from benchmarks.declared.world import WorldSize
from benchmarks.report import Report
from models.alignment.ranker import RankerUpdate
from models.ranking.ple.config import RankerConfig, RankerTraining
from models.training.evaluation import paired_bootstrap

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

DECLARED_TASK = {"shop": "view", "music": "rating"}
NULL_LOSS = -10.0
SERVED = "served feed"
QUICK = LoopSize(
    WorldSize(users=100, items=100, met=30),
    slates=2,
    ranker=RankerConfig(interactions=500, training=RankerTraining(epochs=1)),
    update=RankerUpdate(training=RankerTraining(epochs=1)),
)
FULL = LoopSize(
    WorldSize(users=150, items=150, met=30),
    slates=4,
    ranker=RankerConfig(interactions=2_000),
    update=RankerUpdate(training=RankerTraining(epochs=4, groups=64)),
)


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    size, seeds = (QUICK, 1) if options.quick else (FULL, options.seeds)
    report = Report(
        "declared", {"seeds": seeds, "slates": size.slates, "world": asdict(size.world)}
    )
    for kind in DECLARED_TASK:
        for strength in (1.0, 0.0):
            runs = []
            for seed in range(seeds):
                print(f"{kind}, taste {strength:g}, seed {seed}", flush=True)
                runs.append(run_world(kind, size, seed, strength=strength))
            add_rows(report, kind, strength, runs)
            check(report, kind, strength, runs)
    return report


def add_rows(report: Report, kind: str, strength: float, runs: list[Judged]) -> None:
    """One row a policy."""
    for policy in runs[0].wanted:
        values = [float(judged.wanted[policy].mean()) for judged in runs]
        low, high = gain_of(runs, policy)[1:]
        report.add(
            world=kind,
            taste=strength,
            policy=policy,
            wanted=float(np.mean(values)),
            over_popularity_low=low,
            over_popularity_high=high,
        )
    promoted = sum(judged.outcome.promoted for judged in runs)
    report.notes.append(f"{kind}, taste {strength:g}: {promoted} of {len(runs)} updates promoted")


def gain_of(runs: list[Judged], policy: str = SERVED) -> tuple[float, float, float]:
    """Wanted items a slate over popularity: mean and interval, users of all seeds resampled."""
    return paired_bootstrap(np.concatenate([judged.gain(policy) for judged in runs]))


def check(report: Report, kind: str, strength: float, runs: list[Judged]) -> None:
    """The world's verdicts."""
    mean, low, _ = gain_of(runs)
    if strength:
        name = f"{kind}: wanted items a slate over popularity, lower bound"
        report.check(name, low, "> 0", low > 0)
    else:
        served = float(np.mean([judged.wanted[SERVED].mean() for judged in runs]))
        loss = 100 * mean / (served - mean)
        name = f"{kind} without taste: over popularity, %"
        report.check(name, loss, f">= {NULL_LOSS:g}", loss >= NULL_LOSS)
    task = DECLARED_TASK[kind]
    named = all(task in names for judged in runs for names in judged.tasks)
    failures = Counter(each for judged in runs for each in judged.fallbacks)
    report.notes += [f"{kind}, taste {strength:g}: {n} x {why}" for why, n in failures.items()]
    failed = failures.total()
    name = f"{kind}, taste {strength:g}: stages that failed, with {task} among all tasks"
    report.check(name, failed, "0", named and failed == 0)
