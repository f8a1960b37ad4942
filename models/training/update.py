"""One preference update: feedback since the watermark -> challenger -> gate -> release.

Knows the order of steps and their records. Does not know how a model is aligned or gated
(`models.registry` names that per model), nor which server answers.

The watermark is the time up to which feedback had matured at the last update. It advances
whether or not the challenger passed, so the same feedback never decides twice. A refused
challenger is kept as a bundle and as a release that never went live, with its reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import polars as pl

from models.recipe import NotEnoughData, TrainingLog
from models.registry import REGISTRY, import_attribute
from models.release.bundle import Bundle, ReleaseError, drop_staging, signature_mismatch
from models.release.promotion import Promoter, successor
from models.release.store import Manifest, ReleaseStore
from models.training.datasets import without_quarantine
from streams.progress import ProgressCallback, no_progress


class ChallengeResult(Protocol):
    """A gate's decision."""

    @property
    def promoted(self) -> bool: ...

    @property
    def reasons(self) -> tuple[str, ...]: ...

    def as_dict(self) -> Mapping[str, Any]: ...


class Challenge(Protocol):
    """How one model trains and gates a challenger."""

    def challenge(
        self,
        incumbent: Path,
        log: TrainingLog,
        bundle: Path,
        *,
        seed: int,
        progress: ProgressCallback,
    ) -> ChallengeResult:
        """Writes a complete bundle into `bundle` and returns the gate's decision.

        Raises `NotEnoughData` with what is missing.
        """


@dataclass(frozen=True)
class UpdateOutcome:
    """The result of an update. `release` is live only when `promoted`."""

    model: str
    promoted: bool
    reasons: tuple[str, ...]
    incumbent: int
    challenger: int
    release: Manifest
    slates_since_ms: int


def update_model(
    model: str,
    log: TrainingLog,
    store: ReleaseStore,
    promoter: Promoter,
    *,
    now_ms: int,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
    challenge: Challenge | None = None,
) -> UpdateOutcome:
    """Runs one update of `model`; `log` reaches until `now_ms`.

    Raises:
        NotEnoughData: too little feedback has matured since the last update; the watermark
            stays.
        ReleaseError: nothing is live yet, the live bundle has another signature, or the new
            release does not load.
    """
    live = _live(store, model)
    since = watermark_ms(store, model)
    fresh = without_quarantine(_since(log, since), store.quarantined())
    staging = store.staging(model)
    try:
        verdict = (challenge or _challenge_of(model)).challenge(
            live.path, fresh, staging, seed=seed, progress=lambda s, w: progress(0.9 * s, w)
        )
    except BaseException:
        drop_staging(staging)
        raise
    sealed = _seal(store, live, staging, verdict, now_ms)
    gate = {"model": model, "since_ms": since, "until_ms": log.until_ms} | dict(verdict.as_dict())
    release = store.propose(successor(store, {model: sealed.version}), created_ms=now_ms, gate=gate)
    store.set_watermark(model, log.until_ms)
    if verdict.promoted:
        promoter.promote(release, now_ms=now_ms, progress=progress)
    word = "promoted" if verdict.promoted else "refused"
    progress(1.0, f"{word}: {verdict.reasons[0]}")
    return UpdateOutcome(
        model, verdict.promoted, verdict.reasons, live.version, sealed.version, release, since
    )


def watermark_ms(store: ReleaseStore, model: str) -> int:
    """The moment up to which feedback has been used; 0 before the first update."""
    return store.watermarks().get(model, 0)


def _seal(
    store: ReleaseStore, live: Bundle, staging: Path, verdict: ChallengeResult, now_ms: int
) -> Bundle:
    return store.seal(
        live.model,
        staging,
        runtime=live.runtime,
        signature=live.signature,
        created_ms=now_ms,
        metrics={"parent": live.version, "promoted": verdict.promoted},
    )


def _live(store: ReleaseStore, model: str) -> Bundle:
    current = store.current()
    if current is None or model not in current.models:
        raise ReleaseError(
            f"no release with {model} is live: `tidemill models train {model}`, then "
            "`tidemill models promote`"
        )
    bundle = store.bundle(model, current.models[model])
    if why := signature_mismatch(bundle):
        raise ReleaseError(f"the live bundle cannot be updated: {why}")
    return bundle


def _since(log: TrainingLog, since_ms: int) -> TrainingLog:
    return replace(log, feedback=log.feedback.filter(pl.col("matured_at_ms") > since_ms))


def _challenge_of(model: str) -> Challenge:
    spec = REGISTRY.get(model)
    if spec is None or not spec.update:
        known = ", ".join(sorted(each.name for each in REGISTRY.values() if each.update))
        what = "is not a model" if spec is None else "has no preference update yet"
        raise NotEnoughData(f"{model} {what}; these have one: {known}")
    return cast(Challenge, import_attribute(spec.update)())
