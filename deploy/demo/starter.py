"""Starter bundles: models that are trained once on the replayed histories and kept in the cache.

Knows which models have one, where it is kept and what makes it out of date: the data, the code
and settings that train it, the locked packages. Does not know how it goes live
(`deploy.demo.learning`). Run as `python -m deploy.demo.starter MODEL LOG BUNDLE`, it trains
`MODEL` on the tables in the folder `LOG`, so that the demo does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl

from deploy.demo.learning import LearningStatus, print_progress, run_reporting
from deploy.services.cache import ROOT, cache_dir, filled_once, lock_hash
from deploy.simulation.history import History

STARTERS = {"queries": ("models/generation", "models/layers", "models/release/canary.py")}
"""Model -> the code that trains it. The query recommender takes longest to train, and reads only
the histories, which are the same in every demo."""
EVENTS, ITEMS = "events.parquet", "items.parquet"
_TIMEOUT_S = 3_600.0  # of one training; a quiet machine takes about a minute


class StarterFailed(RuntimeError):
    """The training failed; the message names its log."""


def starter_path(model: str, past: History) -> Path:
    """Where the starter bundle of these histories is kept; it may not exist yet."""
    digest = hashlib.sha256(_code(model).encode())
    digest.update(_texts(past.frame.select("user_id", "kind", "video_id", "query")))
    digest.update(
        _texts(past.items_frame.select("video_id", "title", pl.col("genres").list.join("|")))
    )
    return cache_dir() / "starters" / f"{model}-{digest.hexdigest()[:12]}"


def train_once(model: str, past: History, report: Callable[[LearningStatus], None]) -> Path:
    """The starter bundle's folder, trained now unless it is kept.

    Raises:
        StarterFailed: the training failed or took too long.
    """

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as log:
            past.frame.write_parquet(Path(log) / EVENTS)
            past.items_frame.write_parquet(Path(log) / ITEMS)
            errors = path.with_suffix(".log")
            arguments = [model, log, str(folder)]
            if run_reporting(__name__, arguments, report, errors, _TIMEOUT_S):
                raise StarterFailed(f"training the starter bundle of {model} failed: see {errors}")

    path = starter_path(model, past)
    path.parent.mkdir(parents=True, exist_ok=True)
    return filled_once(path, fill)


def main(arguments: list[str]) -> int:
    from models.recipe import TrainingLog
    from models.registry import REGISTRY
    from streams.feedback.outcomes import FEEDBACK_SCHEMA

    model, log, bundle = arguments
    events, items = (pl.read_parquet(Path(log) / name) for name in (EVENTS, ITEMS))
    feedback = pl.DataFrame(FEEDBACK_SCHEMA.empty_table())
    until_ms = int(events["event_time_ms"].to_numpy().max()) + 1
    recipe = REGISTRY[model].load_recipe()
    training_log = TrainingLog(events, items, feedback, until_ms)
    recipe.train(training_log, Path(bundle), seed=0, progress=print_progress(model))
    return 0


def _code(model: str) -> str:
    """A hash of the training's code, settings and packages."""
    paths = [ROOT / name for name in STARTERS[model]]
    files = [file for path in paths for file in (path, *sorted(path.rglob("*.py")))]
    return lock_hash(ROOT / "requirements.lock", *(file for file in files if file.is_file()))


def _texts(frame: pl.DataFrame) -> bytes:
    return frame.write_csv().encode()


if __name__ == "__main__":
    os.nice(5)
    raise SystemExit(main(sys.argv[1:]))
