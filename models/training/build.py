"""From a log to a sealed bundle: what `tidemill models train` and the demo call.

Knows recipes by name and the release store. Does not know any one model, nor servers.
"""

from __future__ import annotations

from collections.abc import Iterable

from models.recipe import Evaluation, Progress, TrainingLog
from models.registry import CATALOG
from models.release.bundle import Bundle, ReleaseError, ReleaseStore, drop_staging
from models.release.promotion import quiet


def train(
    name: str,
    log: TrainingLog,
    store: ReleaseStore,
    *,
    now_ms: int,
    seed: int = 0,
    progress: Progress = quiet,
) -> Bundle:
    """Trains one model on `log` and seals its next version. It is not live yet.

    Raises `NotEnoughData` with what is missing; nothing is left behind then.
    """
    entry = CATALOG[name]
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


def evaluate(
    name: str, log: TrainingLog, *, seed: int = 0, progress: Progress = quiet
) -> Evaluation:
    """Trains anew on the log's first 80 % in time and judges on the rest."""
    return CATALOG[name].load_recipe().evaluate(log, seed=seed, progress=progress)


def newest(store: ReleaseStore, names: Iterable[str]) -> dict[str, int]:
    """The newest sealed version of each model that has one.

    Raises `ReleaseError` when none has.
    """
    found = {name: versions[-1] for name in names if (versions := store.versions(name))}
    if not found:
        raise ReleaseError("nothing is trained yet: `tidemill models train`")
    return found
