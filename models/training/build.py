"""From a log to a sealed bundle: the work of `tidemill models train` and the demo.

Knows recipes by name and the release store. Does not know any one model or server.
"""

from __future__ import annotations

from collections.abc import Iterable

from models.recipe import Evaluation, TrainingLog
from models.registry import REGISTRY
from models.release.bundle import Bundle, ReleaseError, drop_staging
from models.release.store import ReleaseStore
from streams.progress import ProgressCallback, no_progress


def train_model(
    name: str,
    log: TrainingLog,
    store: ReleaseStore,
    *,
    now_ms: int,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Bundle:
    """Trains one model on `log` and seals its next version, which is not live yet.

    Raises `NotEnoughData` with what is missing; the staging folder is removed then.
    """
    entry = REGISTRY[name]
    runtime = entry.load_runtime()
    staging = store.staging(name)
    try:
        entry.load_recipe().train(log, staging, seed=seed, progress=progress)
    except BaseException:
        drop_staging(staging)
        raise
    return store.seal(
        name,
        staging,
        runtime=entry.runtime,
        signature=runtime.signature,
        created_ms=now_ms,
        metrics={"seed": seed, "events": log.events.height, "slates": log.feedback.height},
    )


def evaluate_model(
    name: str, log: TrainingLog, *, seed: int = 0, progress: ProgressCallback = no_progress
) -> Evaluation:
    """Trains on the first 80 % of the log's time and evaluates on the rest."""
    return REGISTRY[name].load_recipe().evaluate(log, seed=seed, progress=progress)


def newest_versions(store: ReleaseStore, names: Iterable[str]) -> dict[str, int]:
    """The newest sealed version of each model that has one, without challengers that a gate refused.

    Raises `ReleaseError` when none has.
    """
    found = {}
    for name in names:
        newest_first = reversed(store.versions(name))
        fit = next((v for v in newest_first if not store.bundle(name, v).refused), None)
        if fit is not None:
            found[name] = fit
    if not found:
        raise ReleaseError("no model is trained yet: `tidemill models train`")
    return found
