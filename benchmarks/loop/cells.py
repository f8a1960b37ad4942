"""The cells of the benchmark, one an arm and seed in one world, computed once and kept.

Knows files, and which code and constants a result belongs to. Does not know verdicts.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import torch

from benchmarks.loop.arms import STACKED, ArmRun, Learning, direct_arm, run_arm, stack_arm
from benchmarks.loop.arms import train_prior as train_ranker
from benchmarks.loop.world import DriftingWorld, LoopSize, make
from benchmarks.report import config_hash
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import load

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "benchmarks" / "loop"
MADE_BY = (
    "benchmarks/loop/*.py",
    "deploy/simulation/*.py",
    "models/alignment/*.py",
    "models/ranking/*/*.py",
    "models/training/*.py",
    "serving/stages/*.py",
    "serving/state/*.py",
    "streams/feedback/*.py",
)
DRIFTING, NULL = "drifting", "null"


@dataclass(frozen=True)
class Cell:
    world: str
    arm: str
    seed: int


def run_cells(cells: Iterable[Cell], size: LoopSize, learning: Learning) -> dict[Cell, ArmRun]:
    """Every cell's result, in order; those that are kept from an earlier run are read."""
    folder = CACHE / _made_by(size, learning)
    folder.mkdir(parents=True, exist_ok=True)
    cells = list(cells)
    seeds = dict.fromkeys((cell.world, cell.seed) for cell in cells)
    groups = [[c for c in cells if (c.world, c.seed) == each] for each in seeds]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_jobs(), mp_context=spawn, initializer=_one_thread) as pool:
        jobs = [pool.submit(_make, group, size, learning, folder) for group in groups]
        for job in jobs:
            job.result()
    return {cell: _read(_path(folder, cell)) for cell in cells}


def _make(cells: list[Cell], size: LoopSize, learning: Learning, folder: Path) -> None:
    """The cells of one world and seed, which share the first training."""
    missing = [cell for cell in cells if not _path(folder, cell).exists()]
    if not missing:
        return
    world = world_of(missing[0].world, size, missing[0].seed)
    with tempfile.TemporaryDirectory() as home:
        prior = Path(home) / "prior"
        if any(cell.arm in STACKED for cell in missing):
            train_ranker(world, prior, learning)
        for number, cell in enumerate(missing):
            if cell.arm in STACKED:
                own = Path(home) / str(number)
                with stack_arm(world, cell.arm, prior, own, learning) as arm:
                    run = run_arm(world, arm)
            else:
                run = run_arm(world, direct_arm(world, cell.arm))
            _write(_path(folder, cell), run)
            print(
                f"{cell}: {run.reward.mean():.3f}, CPU {sum(run.cpu_s.values()):.0f} s", flush=True
            )


def world_of(name: str, size: LoopSize, seed: int) -> DriftingWorld:
    config = WorldConfig.load()
    return make(config.null() if name == NULL else config, load(), size, seed)


def _jobs() -> int:
    return int(os.environ.get("TIDEMILL_BENCH_JOBS") or os.cpu_count() or 1)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _made_by(size: LoopSize, learning: Learning) -> str:
    files = sorted(path for pattern in MADE_BY for path in ROOT.glob(pattern))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return config_hash({"size": asdict(size), "learning": str(learning), "code": code})


def _path(folder: Path, cell: Cell) -> Path:
    name = cell.arm.replace(" ", "_").replace(",", "")
    return folder / f"{cell.world}-{cell.seed}-{name}.npz"


def _write(path: Path, run: ArmRun) -> None:
    stated = orjson.dumps({"cpu_s": run.cpu_s, "verdicts": run.verdicts})
    temporary = path.with_suffix(".writing.npz")
    np.savez(temporary, reward=run.reward, by_step=run.by_step, stated=np.frombuffer(stated, "u1"))
    temporary.replace(path)


def _read(path: Path) -> ArmRun:
    with np.load(path) as kept:
        stated = orjson.loads(kept["stated"].tobytes())
        return ArmRun(kept["reward"], kept["by_step"], stated["cpu_s"], stated["verdicts"])
