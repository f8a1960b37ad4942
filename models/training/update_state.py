"""How far the updates of each model came: one small file per model, replaced by rename.

Knows `updates/MODEL.json` of the release store and the lease `updates/lease`. Does not know what
an update does (`models.training.update`) nor when one is due (`models.training.schedule`).

The file names the interval of feedback, the challenger and the verdict of the last attempt, and the
watermark. It therefore says after a crash what to finish or to undo (docs/adr/0025).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from models.release.bundle import ReleaseError, drop_staging
from models.release.json_files import write_json
from models.release.store import ReleaseStore

Phase = Literal["training", "decided", "finished"]
Ending = Literal["", "promoted", "refused", "waiting", "failed", "interrupted", "superseded"]

_FOLDER = "updates"
_LEASE_TRIES, _LEASE_PAUSE_S = 10, 0.05  # a reader of the lease holds it for microseconds


class UpdateBusy(ReleaseError):
    """Another process updates a model now; the message names it."""


@dataclass(frozen=True)
class Attempt:
    """One update, on feedback that matured in (since_ms, until_ms].

    `decided` is the commit point: the verdict and the challenger's version are then stated, and
    whatever happens, the attempt is finished from there. Before it, the attempt is undone.
    """

    number: int
    since_ms: int
    until_ms: int
    impressions: int
    started_ms: int  # the stack's clock
    incumbent: int  # the live version that the challenger continues from
    phase: Phase = "training"
    ending: Ending = ""  # set with phase `finished`
    promoted: bool = False  # the gate's verdict
    reasons: tuple[str, ...] = ()
    gate: Mapping[str, Any] = field(default_factory=dict)  # the verdict's figures
    version: int = 0  # the challenger's, from `decided` on
    release: str = ""  # once it is proposed
    tries: int = 0  # how often finishing was begun


@dataclass(frozen=True)
class UpdateState:
    """used_until_ms: the watermark, up to which feedback was used by challengers that went live.
    failures: attempts in a row that ended without a verdict."""

    used_until_ms: int = 0
    failures: int = 0
    last: Attempt | None = None

    @property
    def unfinished(self) -> Attempt | None:
        """The attempt that a crash interrupted, or that runs now."""
        return self.last if self.last is not None and self.last.phase != "finished" else None

    @property
    def seen_until_ms(self) -> int:
        """Up to which feedback an attempt has had a verdict, or found too little to try."""
        last = self.last
        judged = last is not None and last.ending in ("promoted", "refused", "waiting")
        return max(self.used_until_ms, last.until_ms if last is not None and judged else 0)


def read_state(store: ReleaseStore, model: str) -> UpdateState:
    """The model's state; a model that was never updated has an empty one.

    Raises `ReleaseError` when the file cannot be read.
    """
    path = _path(store, model)
    if not path.is_file():
        return UpdateState(used_until_ms=store.watermarks().get(model, 0))
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        last = raw.pop("last")
        if last is not None:
            last = Attempt(**{**last, "reasons": tuple(last["reasons"])})
        return UpdateState(**raw, last=last)
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path} cannot be read: {error!r}") from error


def write_state(store: ReleaseStore, model: str, state: UpdateState) -> UpdateState:
    """Replaces the file and returns the state; the caller holds the lease."""
    write_json(_path(store, model), asdict(state), sync=True)
    return state


def write_attempt(
    store: ReleaseStore, model: str, state: UpdateState, **changes: Any
) -> UpdateState:
    """Writes the state with fields of its last attempt changed."""
    assert state.last is not None
    return write_state(store, model, replace(state, last=replace(state.last, **changes)))


def end_attempt(
    model: str, store: ReleaseStore, ending: Ending, reason: str, *, failed: bool = False
) -> None:
    """Ends the attempt without a release. Its feedback stays unused."""
    drop_staging(staging_folder(store, model))
    state = read_state(store, model)
    assert state.last is not None
    failures = state.failures
    if ending == "interrupted" and not failed:
        failures = max(failures - 1, 0)
    elif ending in ("waiting", "superseded"):
        failures = 0
    last = replace(state.last, phase="finished", ending=ending, reasons=(reason,), gate={})
    write_state(store, model, replace(state, failures=failures, last=last))


def updates_folder(store: ReleaseStore) -> Path:
    return store.folder / _FOLDER


def staging_folder(store: ReleaseStore, model: str) -> Path:
    """Where a challenger is written: always the same folder, so that it is found after a crash."""
    return store.folder / "staging" / f"{model}-update"


@contextmanager
def update_lease(store: ReleaseStore, model: str) -> Iterator[None]:
    """Held while a model is updated: one update at a time over all processes of a home.

    The kernel frees it when the process ends, however it ends: a holder that is only slow keeps it,
    which no lease with a time limit could promise.

    Raises:
        UpdateBusy: another process holds it.
    """
    path = _lease_path(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        for _ in range(_LEASE_TRIES):
            if _try_lock(file, fcntl.LOCK_EX):
                break
            time.sleep(_LEASE_PAUSE_S)
        else:
            raise UpdateBusy(f"an update runs already ({_holder(path)}): wait for its end")
        file.truncate(0)
        file.write(f"of {model}, process {os.getpid()}")
        file.flush()
        yield


def lease_holder(store: ReleaseStore) -> str:
    """Which update runs now, in words; "" while none does."""
    path = _lease_path(store)
    if not path.is_file():
        return ""
    with path.open("a+") as file:
        return "" if _try_lock(file, fcntl.LOCK_SH) else _holder(path)


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8") or "of a process that has just begun"


def _lease_path(store: ReleaseStore) -> Path:
    return updates_folder(store) / "lease"


def _path(store: ReleaseStore, model: str) -> Path:
    return updates_folder(store) / f"{model}.json"
