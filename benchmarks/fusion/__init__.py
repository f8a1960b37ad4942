"""Per-user fusion weights compared with one vector for all users, in worlds of known truth.

Claims and bars, from docs/worlds/ranking.md, set before any method was tuned: in the
headline world >= 65 % of (ceiling - best static), lower 95 % bound >= 50 %, >= 3 % over
best static (moonshot 85 %); low-predictability >= 60 %, non-linear >= 50 %, drifting above
static; a paired interval above 0 in each; in the null world no more than 0.5 % is lost and
nothing gained. Directions (headline): over LTR only, regression, Gaussian exploration,
REINFORCE; and over its own dense prior served alone, which is a regression too, and the
strongest. Ablations: Gaussian draws more invalid weights; posterior-only has gained less
after a quarter of the updates; prior-only raises plays and lowers orders.

Best static is searched on true utility. The ceiling is the better, on validation users, of a
regressor of true w* and a policy trained on true utility. Intervals are paired over test
users, seeds pooled. Seeds 0 and 1 were used while methods were tuned: results are from
seeds 2 on.

`--quick`: seeds 0 and 1, a fifth of the users, under half of the updates, headline and
null; its figures are lower and not claimed. The full form caches each finished (world, seed)
under .cache/ and resumes from there; cached results belong to their code and constants.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.__main__ import Options
from benchmarks.fusion.methods import run_methods
from benchmarks.fusion.outcome import METHODS, Outcome
from benchmarks.report import Report, config_hash
from benchmarks.worlds.ranking.config import WORLDS, RankingWorld
from deploy.console import track

FIRST_SEED = 2
ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "benchmarks" / "fusion"
QUICK_SCALE = 0.2
MADE_BY = ("benchmarks/fusion/*.py", "benchmarks/worlds/ranking/*.py", "models/ranking/grade*.py")


def run(options: Options) -> Report:
    worlds = [RankingWorld.load(options.world)] if options.world else _worlds(options.quick)
    seeds = range(2) if options.quick else range(FIRST_SEED, FIRST_SEED + options.seeds)
    report = Report("fusion", {"seeds": list(seeds), "worlds": [w.model_dump() for w in worlds]})
    outcomes = {world.name: Outcome() for world in worlds}
    for name, piece in _outcomes(worlds, list(seeds), QUICK_SCALE if options.quick else 1.0):
        outcomes[name].add(piece)
    for world in worlds:
        _table(report, world, outcomes[world.name])
        _check_bars(report, world, outcomes[world.name])
    return report


def _worlds(quick: bool) -> list[RankingWorld]:
    first = ["headline", "null"] if quick else ["headline"]
    rest = [] if quick else sorted(p.stem for p in WORLDS.glob("*.toml") if p.stem != "headline")
    return [RankingWorld.named(name) for name in first + rest]


def _outcomes(
    worlds: list[RankingWorld], seeds: list[int], scale: float
) -> Iterator[tuple[str, Outcome]]:
    """Every world and seed in a fixed order, computed by one process a core and cached."""
    paths = {
        (world.name, seed): _cache_path(world, seed, scale) for world in worlds for seed in seeds
    }
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_jobs(), mp_context=spawn, initializer=_one_thread) as pool:
        jobs = [
            pool.submit(_make, world, seed, scale, paths[world.name, seed])
            for world in worlds
            for seed in seeds
            if not paths[world.name, seed].exists()
        ]
        for done in track(as_completed(jobs), "worlds and seeds", len(jobs)):
            done.result()
    yield from ((name, Outcome.load(path)) for (name, _), path in paths.items())


def _make(world: RankingWorld, seed: int, scale: float, path: Path) -> None:
    smaller = world.scaled(scale) if scale < 1 else world
    run_methods(smaller, seed, scale**0.5).save(path)


def _jobs() -> int:
    """One thread each: networks this small do not profit from more. A job takes about 3 GB."""
    return int(os.environ.get("TIDEMILL_BENCH_JOBS") or os.cpu_count() or 1)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _cache_path(world: RankingWorld, seed: int, scale: float) -> Path:
    made_by = config_hash({"world": world.model_dump(), "scale": scale, "code": _code_hash()})
    return CACHE / made_by / f"{world.name}-{seed}.npz"


def _code_hash() -> str:
    files = sorted(path for pattern in MADE_BY for path in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _table(report: Report, world: RankingWorld, outcome: Outcome) -> None:
    for method in METHODS:
        mean, low, high = outcome.gain(method)
        report.add(
            world=world.name,
            method=method,
            over_static_pct=100 * mean,
            low=100 * low,
            high=100 * high,
            share_of_ceiling=outcome.share(method)[0],
            share_of_oracle=outcome.share(method, "oracle")[0],
            cosine=outcome.figure(f"cosine {method}"),
            plays=outcome.figure(f"plays {method}"),
            orders=outcome.figure(f"orders {method}"),
        )


def _check_bars(report: Report, world: RankingWorld, outcome: Outcome) -> None:
    bars, name = world.bars, world.name
    mean, low, high = outcome.gain("GRADE")
    share, share_low, _ = outcome.share("GRADE")
    if bars.gain is not None:
        report.check(f"{name}: gain over static", mean, f">= {bars.gain}", mean >= bars.gain)
    if bars.share is not None:
        report.check(f"{name}: share", share, f">= {bars.share}", share >= bars.share)
    if bars.share_low is not None:
        ok = share_low >= bars.share_low
        report.check(f"{name}: share, lower bound", share_low, f">= {bars.share_low}", ok)
    if bars.above_static:
        report.check(f"{name}: gain, lower bound", low, "> 0", low > 0)
    if bars.loss is not None:
        report.check(
            f"{name}: gain is a loss of at most", mean, f">= -{bars.loss}", mean >= -bars.loss
        )
        report.check(f"{name}: no gain", high, "<= 0.001", high <= 0.001)
    if name == "headline":
        _check_directions(report, outcome)


def _check_directions(report: Report, outcome: Outcome) -> None:
    for baseline in ("LTR only", "regression", "Gaussian exploration", "REINFORCE"):
        low = outcome.gain("GRADE", baseline)[1]
        report.check(f"GRADE over {baseline}, lower bound", low, "> 0", low > 0)
    alone = outcome.gain("GRADE", "dense prior alone")[1]
    report.check("GRADE over its dense prior served alone, lower bound", alone, "> 0", alone > 0)
    more = outcome.figure("invalid Gaussian exploration") - outcome.figure("invalid GRADE")
    report.check("Gaussian: invalid vectors beyond Dirichlet's", more, "> 0", more > 0)
    early = outcome.figure("quarter GRADE") - outcome.figure("quarter posterior-only")
    report.check("posterior-only: behind after a quarter", early, "> 0", early > 0)
    plays = outcome.figure("plays prior-only") - outcome.figure("plays GRADE")
    orders = outcome.figure("orders prior-only") - outcome.figure("orders GRADE")
    report.check("prior-only: plays beyond GRADE's", plays, "> 0", plays > 0)
    report.check("prior-only: orders beyond GRADE's", orders, "< 0", orders < 0)
