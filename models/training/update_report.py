"""What a person is told of the updates: what runs, what is next, how the last one ended.

Knows the files that the updater and its child write for readers. They decide nothing: the state of
an update is `models.training.update_state`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.release.bundle import ReleaseError
from models.release.json_files import write_json
from models.release.store import ReleaseStore
from models.training.update_state import lease_holder, read_state, updates_folder

HEARTBEAT_S = 10.0
STALE_S = 60.0  # an updater that has written nothing for so long does not run
PROGRESS_EVERY_S = 0.5

Phase = str
"""waiting, due, running, retrying, or "not scheduled"."""


@dataclass(frozen=True)
class ScheduledUpdate:
    """What the updater knows of one model. Times are the stack's; `problem` is "" while all is
    well."""

    phase: Phase
    why: str
    next_due_ms: int | None = None
    impressions: int = 0  # matured since the last attempt
    failures: int = 0  # in a row
    problem: str = ""


def write_scheduled(store: ReleaseStore, updates: Mapping[str, ScheduledUpdate]) -> None:
    write_json(_scheduled_path(store), {name: asdict(each) for name, each in updates.items()})


def forget_scheduled(store: ReleaseStore) -> None:
    """Called when the updater ends: nothing is scheduled then."""
    _scheduled_path(store).unlink(missing_ok=True)


def progress_writer(
    store: ReleaseStore, model: str, monotonic_s: Callable[[], float] = time.monotonic
) -> Callable[[float, str], None]:
    """A progress callback that leaves share and step where `update_reports` finds them."""
    written_s = -PROGRESS_EVERY_S

    def progress(share: float, step: str) -> None:
        nonlocal written_s
        if monotonic_s() - written_s >= PROGRESS_EVERY_S:
            written_s = monotonic_s()
            write_json(_progress_path(store), {"model": model, "share": share, "step": step})

    return progress


def update_reports(store: ReleaseStore) -> dict[str, dict[str, Any]]:
    """By model, for those that are scheduled or were updated: JSON types, times in stack ms."""
    scheduled = _scheduled(store)
    running = _progress(store) if lease_holder(store) else {}
    names = {*scheduled, *_updated(store)}
    return {name: _report(store, name, scheduled.get(name), running) for name in sorted(names)}


def _report(
    store: ReleaseStore,
    model: str,
    scheduled: Mapping[str, Any] | None,
    running: Mapping[str, Any],
) -> dict[str, Any]:
    report = dict(scheduled or {"phase": "not scheduled", "why": "", "next_due_ms": None})
    if running.get("model") == model:
        report |= {"phase": "running", "share": running["share"], "step": running["step"]}
    try:
        state = read_state(store, model)
    except ReleaseError as error:
        return report | {"problem": str(error), "used_until_ms": None, "last": None}
    last = None
    if state.last is not None:
        last = asdict(state.last)
        last = {name: value for name, value in last.items() if name not in ("gate", "tries")}
    return report | {"used_until_ms": state.used_until_ms, "last": last}


def _updated(store: ReleaseStore) -> list[str]:
    shown = {_scheduled_path(store).name, _progress_path(store).name}
    folder = updates_folder(store)
    found = folder.glob("*.json") if folder.is_dir() else iter(())
    return [path.stem for path in found if path.name not in shown and path.name[0] != "."]


def _scheduled(store: ReleaseStore) -> dict[str, dict[str, Any]]:
    path = _scheduled_path(store)
    try:
        if abs(time.time() - path.stat().st_mtime) > STALE_S:
            return {}
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _progress(store: ReleaseStore) -> dict[str, Any]:
    try:
        return dict(json.loads(_progress_path(store).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _scheduled_path(store: ReleaseStore) -> Path:
    return updates_folder(store) / "scheduled.json"


def _progress_path(store: ReleaseStore) -> Path:
    return updates_folder(store) / "progress.json"
