"""The served feed against plain baselines, the best policy on its observables, and the oracle.

Slates come from the real feed pipeline in process (sources, filters, pre-rank, hydrators, the
trained ranker's bundle, selector with exploration). Expected clicks and expected utility of
their ten slots are computed from the world's truth, which only this benchmark reads. Histories
are the replayed share of the ratings, followed by logged reactions to slates of half popular
and half random items, as the demo's crowd gives them. Users do not tire here: earlier
exposures do not lower the odds.

Claims and bars, set before any run, paired by user over at least five seeds:

- Headline world: the served ranker goes >= 0.5 of the way in utility from popularity to the
  best policy on observables, and is above the best plain baseline (interval above 0).
- World that is not low-rank (`moods`): utility no worse than the best plain baseline's, lower
  bound -2 %.
- Clicks above popularity's in every world but the null one, where nothing can be gained
  (interval above 0).
- Null world (all users like the same): utility loses at most 1 % to popularity.
- Reported: the loss by stage, served weights against the best static vector, users and items
  without a history.

`--world FILE.toml` measures that world alone, by the bars of the world that is not low-rank.
`--quick`: one seed, fewer users, a smaller training. Skipped with the reason if the data is
not available.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import deploy.simulation
from benchmarks.report import Report
from benchmarks.served.measurement import (
    BEST,
    FACTORISATION,
    ORACLE,
    PLAIN,
    POPULARITY,
    SERVED,
    measure,
)
from benchmarks.served.outcome import Outcome
from benchmarks.served.world import Size
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import DataUnavailable, MovieLens, load
from models.ranking.ple.config import RankerConfig

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHARE, WORSE, NULL_LOSS = 0.5, -2.0, -1.0
HEADLINE, MOODS, NULL = "headline", "moods", "null"
_FOLDER = Path(deploy.simulation.__file__).with_name("worlds")


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    seeds = 1 if options.quick else options.seeds
    size = Size(100, 20, 1_000) if options.quick else Size(300, 40, 3_000)
    ranker = RankerConfig(interactions=4_000 if options.quick else 12_000)
    worlds = worlds_of(options.world)
    config = {"seeds": seeds, "interactions": ranker.interactions, **asdict(size)}
    report = Report("served", config | {"worlds": {n: w.model_dump() for n, w in worlds.items()}})
    try:
        data = load()
    except DataUnavailable as reason:
        report.notes.append(f"left out: {reason}")
        return report
    for name, world in worlds.items():
        print(f"{name}:", flush=True)
        outcome = outcome_of(world, data, seeds, size, ranker)
        add_policies(report, name, outcome)
        note_stages(report, name, outcome)
        check(report, name, outcome)
    return report


def worlds_of(path: Path | None) -> dict[str, WorldConfig]:
    """The worlds to measure, by name."""
    if path is not None:
        return {path.stem: WorldConfig.load(path)}
    others = {name: WorldConfig.load(_FOLDER / f"{name}.toml") for name in (MOODS, NULL)}
    return {HEADLINE: WorldConfig.load()} | others


def outcome_of(
    world: WorldConfig, data: MovieLens, seeds: int, size: Size, ranker: RankerConfig
) -> Outcome:
    """Every policy in one world, over all seeds."""
    outcome = Outcome()
    for seed in range(seeds):
        measure(outcome, world, data, seed, size, ranker)
    return outcome


def add_policies(report: Report, world: str, outcome: Outcome) -> None:
    """One row a policy."""
    for policy in outcome.utility:
        _, low, high = outcome.difference("utility", policy, POPULARITY)
        report.add(
            world=world,
            policy=policy,
            clicks=outcome.mean("clicks", policy),
            utility=outcome.mean("utility", policy),
            over_popularity_low=low,
            over_popularity_high=high,
            share_of_way=outcome.share_of_way(policy, POPULARITY, BEST)[0],
            newcomers=outcome.mean("newcomers", policy),
            cold_slots=outcome.mean("cold_items", policy),
            cold_utility=outcome.mean("cold_utility", policy),
        )


def note_stages(report: Report, world: str, outcome: Outcome) -> None:
    """The loss by stage, one line a stage."""
    whole = outcome.mean("stages", "oracle: all items")
    for stage in outcome.stages:
        found = outcome.mean("stages", stage)
        report.notes.append(f"{world}, {stage}: utility {found:.3f}, {found / whole:.3f} of oracle")
    for name, values in outcome.figures.items():
        report.notes.append(f"{world}, {name}: {float(np.concatenate(values).mean()):,.3f}")


def check(report: Report, world: str, outcome: Outcome) -> None:
    """The world's verdicts."""
    baseline = outcome.best(PLAIN)
    _, over_baseline, _ = outcome.relative("utility", SERVED, baseline)
    if world == HEADLINE:
        share = outcome.share_of_way(SERVED, POPULARITY, BEST)[0]
        name = f"{world}: share of the way from popularity to the best policy on observables"
        report.check(name, share, f">= {SHARE}", share >= SHARE)
        plain = outcome.share_of_way(FACTORISATION, POPULARITY, BEST)[0]
        report.check(f"{world}: the same share of {FACTORISATION}", plain, "none", None)
        name = f"{world}: utility over {baseline}, lower bound %"
        report.check(name, over_baseline, "> 0", over_baseline > 0)
    if world == NULL:
        loss = outcome.relative("utility", SERVED, POPULARITY)[0]
        report.check(
            f"{world}: utility over popularity, %", loss, f">= {NULL_LOSS}", loss >= NULL_LOSS
        )
        return
    if world != HEADLINE:
        name = f"{world}: utility over {baseline}, lower bound %"
        report.check(name, over_baseline, f">= {WORSE}", over_baseline >= WORSE)
    _, clicks, _ = outcome.relative("clicks", SERVED, POPULARITY)
    report.check(f"{world}: clicks over popularity, lower bound %", clicks, "> 0", clicks > 0)
    static = outcome.mean("stages", "fused: served weights") / outcome.mean(
        "stages", "fused: best static weights"
    )
    name = f"{world}: served fusion weights over the best static vector, %"
    report.check(name, 100 * (static - 1), "none", None)
    of_oracle = outcome.mean("utility", SERVED) / outcome.mean("utility", ORACLE)
    report.check(f"{world}: utility of the oracle's", of_oracle, "none", None)
