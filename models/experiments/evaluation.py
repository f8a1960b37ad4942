"""Evaluates running experiments on the stored feedback, and stops those that their guard stops.

Knows feedback, the store of experiments and the file of results. Does not know the statistics
(`models.experiments.results`). Of several processes, the one that holds the lock evaluates.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from models.experiments.definition import Experiment
from models.experiments.results import Results, results
from models.experiments.store import ExperimentStore
from models.release.json_files import write_json
from streams.contract.clock import Clock
from streams.contract.impression import HOLDOUT_ARM
from streams.feedback.store import read_served

EVERY_S = 5.0
LARGEST_SHARE = 0.05  # of a processor that evaluating may take
_LOG = logging.getLogger(__name__)


@dataclass
class Evaluator:
    """Writes the results of the experiments to `store.results_path`.

    A stopped experiment is evaluated until its last evaluation is one of after its end, plus the
    time that actions take: `settle_ms` (1 h).
    """

    store: ExperimentStore
    feedback_dir: Path
    clock: Clock
    settle_ms: int = 3_600_000
    _found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, stop: threading.Event, every_s: float = EVERY_S) -> None:
        """Evaluates now and then until `stop`, in the one process that gets the lock."""
        path = self.store.path
        if path is None:
            return
        with path.with_name(f".{path.name}.evaluating").open("w") as lock:
            pause_s = every_s
            while not stop.wait(pause_s):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                started = time.perf_counter()
                try:
                    self.evaluate()
                except Exception:
                    _LOG.exception("the experiments could not be evaluated")
                pause_s = max(every_s, (time.perf_counter() - started) / LARGEST_SHARE)

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """The results by experiment; those whose guard asks for it are stopped."""
        now_ms, known = self.clock.now_ms(), read_results(self.store.results_path)
        self._found = known | self._found
        changed = False
        for each in self.store.all():
            if not self._is_due(each, now_ms):
                continue
            found = evaluate(each, self.feedback_dir)
            self._found[each.name] = {"evaluated_ms": now_ms, **found.to_json()}
            changed = True
            if each.running and found.harmed:
                why = "guard: " + "; ".join(reason for _, reason in found.harmed)
                _LOG.warning("experiment %s is stopped by its %s", each.name, why)
                self.store.stop(each.name, at_ms=now_ms, reason=why)
        if changed and self.store.results_path is not None:
            write_json(self.store.results_path, self._found)
        return self._found

    def _is_due(self, found: Experiment, now_ms: int) -> bool:
        if found.stopped_ms is None:
            return True
        last_ms = int(self._found.get(found.name, {}).get("evaluated_ms", 0))
        return last_ms < found.stopped_ms + self.settle_ms and last_ms < now_ms


def evaluate(found: Experiment, feedback_dir: Path) -> Results:
    """The results so far, of every slate that its user saw while the experiment ran."""
    return results(found, seen_slates(found, feedback_dir))


def seen_slates(found: Experiment, feedback_dir: Path) -> pl.DataFrame:
    """One row per slate: arm, user_id, reward, guarded, won; see `models.experiments.results`.

    Actions count as they are attributed so far: a slate's reward may still grow.
    """
    held_out = (pl.col("arm") == HOLDOUT_ARM) & pl.col("experiment").is_null()
    if found.stopped_ms is not None:
        held_out &= pl.col("served_at_ms") <= found.stopped_ms
    wanted = (pl.col("surface") == found.surface) & (
        (pl.col("experiment") == found.name) | held_out
    )
    rows = read_served(feedback_dir, wanted, found.started_ms)
    reward = _task(rows, found.reward)
    guarded = _task(rows, found.guard.metric if found.guard else found.reward)
    credit = pl.when(pl.col("team") == "b").then(reward).when(pl.col("team") == "a").then(-reward)
    return (
        rows.filter(pl.col("shown_at_ms").is_not_null())
        .group_by("request_id")
        .agg(
            pl.col("arm", "user_id").first(),
            reward=reward.sum(),
            guarded=guarded.sum(),
            won=credit.sum().sign(),
        )
    )


def _task(rows: pl.DataFrame, task: str) -> pl.Expr:
    known = task in rows.columns and rows.schema[task] == pl.Boolean
    return pl.col(task).fill_null(False).cast(pl.Int64) if known else pl.lit(0, pl.Int64)


def read_results(path: Path | None) -> dict[str, Any]:
    """The last evaluation's results by experiment; {} before the first."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def described(
    store: ExperimentStore, found: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Every experiment as JSON with its results, newest first. found: default, the file's."""
    from models.experiments.definition import to_json

    known = read_results(store.results_path) if found is None else found
    return [
        to_json(each) | {"running": each.running, "results": known.get(each.name)}
        for each in reversed(store.all())
    ]
