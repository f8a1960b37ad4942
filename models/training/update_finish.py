"""From a verdict to a release: the second half of an update, which can be repeated.

Knows what each step leaves behind, so that a process finds what a killed one has done. Does not
know how the challenger was trained and gated (`models.training.update`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.release.bundle import ReleaseError
from models.release.promotion import Promoter, successor
from models.release.store import Manifest, ReleaseStore
from models.training.update_state import (
    Attempt,
    UpdateState,
    end_attempt,
    read_state,
    staging_folder,
    write_attempt,
    write_state,
)
from streams.progress import ProgressCallback

MOST_TRIES = 3  # to make a challenger live that has passed, before its attempt counts as failed


@dataclass(frozen=True)
class UpdateOutcome:
    """The result of an update. `release` is live only when `promoted`. `resumed`: an earlier
    process had trained and gated it, and was interrupted."""

    model: str
    promoted: bool
    reasons: tuple[str, ...]
    incumbent: int
    challenger: int
    release: Manifest
    slates_since_ms: int
    resumed: bool = False


def finish_update(
    model: str,
    store: ReleaseStore,
    promoter: Promoter,
    now_ms: int,
    progress: ProgressCallback,
) -> UpdateOutcome:
    """From a verdict to a release. Each step finds what was done before, so it can be repeated."""
    with store.making_release():
        state = read_state(store, model)
        attempt = state.last
        assert attempt is not None
        known = _manifest_of(model, store, attempt)
        went_live = known is not None and store.was_live(known.release_id)
        if not went_live:
            _refuse_stale(model, store, attempt)
        state = write_attempt(store, model, state, tries=attempt.tries + 1)
        attempt = _sealed(model, store, state, now_ms)
        release = known if went_live else _proposed(model, store, attempt, known, now_ms)
        assert release is not None
        # One that went live and was rolled back since stays down.
        if attempt.promoted and (not went_live or store.current() == release):
            _go_live(model, store, promoter, release, now_ms, progress)
        _conclude(model, store, attempt, release)
    return UpdateOutcome(
        model,
        attempt.promoted,
        attempt.reasons,
        attempt.incumbent,
        attempt.version,
        release,
        attempt.since_ms,
    )


def _refuse_stale(model: str, store: ReleaseStore, attempt: Attempt) -> None:
    """Ends an attempt that passed and cannot go live any more; raises `ReleaseError` then."""
    if not attempt.promoted:
        return
    live = store.current()
    if live is None or live.models.get(model) != attempt.incumbent:
        why = f"another {model} than version {attempt.incumbent} went live meanwhile"
        end_attempt(model, store, "superseded", why)
        raise ReleaseError(f"{why}: the challenger was not compared with it; update again")
    if attempt.tries >= MOST_TRIES:
        why = f"the challenger did not go live in {attempt.tries} tries"
        end_attempt(model, store, "failed", why)
        raise ReleaseError(f"{why}; its feedback is kept")


def _sealed(model: str, store: ReleaseStore, state: UpdateState, now_ms: int) -> Attempt:
    """The attempt with its challenger sealed under its version."""
    attempt, staging = state.last, staging_folder(store, model)
    assert attempt is not None
    if not staging.is_dir():
        if store.bundle_folder(model, attempt.version) is None:
            end_attempt(model, store, "failed", "the challenger's files are gone")
            raise ReleaseError(f"the files of {model} version {attempt.version} are gone")
        return attempt
    if attempt.version in store.versions(model):  # taken by a training meanwhile
        state = write_attempt(store, model, state, version=store.next_version(model))
        assert state.last is not None
        attempt = state.last
    incumbent = store.bundle(model, attempt.incumbent)
    store.seal(
        model,
        staging,
        runtime=incumbent.runtime,
        signature=incumbent.signature,
        created_ms=now_ms,
        metrics={"parent": incumbent.version, "promoted": attempt.promoted},
        version=attempt.version,
    )
    return attempt


def _manifest_of(model: str, store: ReleaseStore, attempt: Attempt) -> Manifest | None:
    """The newest release that this attempt has proposed."""
    for each in reversed(store.manifests()):
        own = each.gate is not None and each.gate.get("model") == model
        if own and each.models.get(model) == attempt.version:
            return each
    return None


def _proposed(
    model: str, store: ReleaseStore, attempt: Attempt, known: Manifest | None, now_ms: int
) -> Manifest:
    models = successor(store, {model: attempt.version})
    if known is not None and known.models == models:
        return known
    return store.propose(models, created_ms=now_ms, gate=attempt.gate)


def _go_live(
    model: str,
    store: ReleaseStore,
    promoter: Promoter,
    release: Manifest,
    now_ms: int,
    progress: ProgressCallback,
) -> None:
    try:
        promoter.promote(release, now_ms=now_ms, progress=progress)
    except ReleaseError as error:
        last = read_state(store, model).last
        if last is not None and last.tries >= MOST_TRIES:
            end_attempt(model, store, "failed", str(error))
        raise


def _conclude(model: str, store: ReleaseStore, attempt: Attempt, release: Manifest) -> None:
    """The last write: the watermark moves with the verdict that used the feedback."""
    used = read_state(store, model).used_until_ms
    last = replace(
        attempt,
        phase="finished",
        ending="promoted" if attempt.promoted else "refused",
        release=release.release_id,
        gate={},  # the manifest has it
    )
    until = max(used, attempt.until_ms) if attempt.promoted else used
    write_state(store, model, UpdateState(until, 0, last))
