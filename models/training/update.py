"""One preference update: feedback since the watermark -> challenger -> gate -> release.

Knows the order of steps and what is written after each, so that an update killed at any moment is
finished or undone by the next one (docs/adr/0025). Does not know how a model is aligned or gated
(`models.registry` names that per model), nor which server answers.

The watermark is the time up to which feedback was used by challengers that went live. A refused
challenger is kept as a bundle and as a release that never went live, with its reasons; its feedback
is kept for the next attempt.
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
from models.release.json_files import plain
from models.release.promotion import Promoter
from models.release.store import ReleaseStore
from models.training.datasets import without_quarantine
from models.training.update_finish import UpdateOutcome, finish_update
from models.training.update_state import (
    Attempt,
    end_attempt,
    read_state,
    staging_folder,
    update_lease,
    write_attempt,
    write_state,
)
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
class UpdatePlan:
    """What the next update would read: feedback that matured in (since_ms, until_ms].

    `until_ms` is the newest maturity in the log and not its time, so that a clock that ran ahead
    cannot put the watermark before feedback that is still to come.
    """

    incumbent: Bundle
    since_ms: int
    until_ms: int
    log: TrainingLog  # its feedback is that of the interval, without quarantined rows

    @property
    def impressions(self) -> int:
        return self.log.feedback.height


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
    """Runs one update of `model`, or finishes one that was interrupted after its verdict.

    Raises:
        NotEnoughData: too little feedback has matured since the watermark.
        UpdateBusy: another process updates a model.
        ReleaseError: nothing is live yet, the live bundle has another signature, another version
            went live meanwhile, or the new release does not load. The watermark stays.
    """
    with update_lease(store, model):
        if (resumed := _resume(model, store, promoter, now_ms, progress)) is not None:
            return resumed
        plan = plan_update(model, log, store)
        trainer = challenge or challenge_of(model)
        _begin(model, store, plan, now_ms)
        _train_and_gate(model, store, plan, trainer, seed, progress)
        outcome = finish_update(model, store, promoter, now_ms, progress)
    word = "promoted" if outcome.promoted else "refused"
    progress(1.0, f"{word}: {outcome.reasons[0]}")
    return outcome


def plan_update(model: str, log: TrainingLog, store: ReleaseStore) -> UpdatePlan:
    """What an update of `model` would read now. Writes nothing.

    Raises `ReleaseError` when no bundle is live that can be updated.
    """
    incumbent = _live(store, model)
    since_ms = watermark_ms(store, model)
    matured = log.feedback.filter(pl.col("matured_at_ms") > since_ms)
    newest = cast("int | None", matured["matured_at_ms"].max())
    until_ms = since_ms if newest is None else min(newest, log.until_ms)
    fresh = replace(log, feedback=matured.filter(pl.col("matured_at_ms") <= until_ms))
    fresh = without_quarantine(fresh, store.quarantined())
    return UpdatePlan(incumbent, since_ms, until_ms, fresh)


def watermark_ms(store: ReleaseStore, model: str) -> int:
    """The moment up to which feedback has been used; 0 before the first update."""
    return read_state(store, model).used_until_ms


def _begin(model: str, store: ReleaseStore, plan: UpdatePlan, now_ms: int) -> None:
    before = read_state(store, model)
    attempt = Attempt(
        number=before.last.number + 1 if before.last is not None else 1,
        since_ms=plan.since_ms,
        until_ms=plan.until_ms,
        impressions=plan.impressions,
        started_ms=now_ms,
        incumbent=plan.incumbent.version,
    )
    # Counted at once, since a killed process cannot count itself.
    write_state(store, model, replace(before, failures=before.failures + 1, last=attempt))


def _train_and_gate(
    model: str,
    store: ReleaseStore,
    plan: UpdatePlan,
    challenge: Challenge,
    seed: int,
    progress: ProgressCallback,
) -> None:
    """Writes the challenger into its staging folder, then the verdict: the commit point."""
    staging = staging_folder(store, model)
    drop_staging(staging)
    staging.mkdir(parents=True)
    try:
        verdict = challenge.challenge(
            plan.incumbent.path,
            plan.log,
            staging,
            seed=seed,
            progress=lambda share, what: progress(0.9 * share, what),
        )
    except NotEnoughData as error:
        end_attempt(model, store, "waiting", str(error))
        raise
    except Exception as error:
        end_attempt(model, store, "failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException:
        end_attempt(model, store, "interrupted", "it was stopped")
        raise
    interval = {"model": model, "since_ms": plan.since_ms, "until_ms": plan.until_ms}
    write_attempt(
        store,
        model,
        read_state(store, model),
        phase="decided",
        promoted=verdict.promoted,
        reasons=verdict.reasons,
        gate=plain(interval | dict(verdict.as_dict())),
        version=store.next_version(model),
    )


def _resume(
    model: str,
    store: ReleaseStore,
    promoter: Promoter,
    now_ms: int,
    progress: ProgressCallback,
) -> UpdateOutcome | None:
    """Undoes an attempt that was killed before its verdict, finishes one that was killed after.

    None: nothing is left to finish.
    """
    left = read_state(store, model).unfinished
    if left is None:
        return None
    if left.phase == "training":
        end_attempt(model, store, "interrupted", "its process ended before a verdict", failed=True)
        return None
    progress(0.9, "finishing an interrupted update")
    try:
        return replace(finish_update(model, store, promoter, now_ms, progress), resumed=True)
    except ReleaseError:
        if read_state(store, model).unfinished is not None:
            raise
        return None  # given up: its feedback is free for a new attempt


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


def challenge_of(model: str) -> Challenge:
    """The model's way to train and gate; raises `NotEnoughData` where it has none."""
    spec = REGISTRY.get(model)
    if spec is None or not spec.update:
        known = ", ".join(sorted(each.name for each in REGISTRY.values() if each.update))
        what = "is not a model" if spec is None else "has no preference update yet"
        raise NotEnoughData(f"{model} {what}; these have one: {known}")
    return cast(Challenge, import_attribute(spec.update)())
