"""The experiments of a stack in one JSON file that all its processes share.

Knows that file, one running experiment per surface, and the holdout. Does not know how an arm is
served nor judged.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.experiments.definition import (
    HELD_OUT,
    Assignment,
    Experiment,
    ExperimentError,
    checked,
    from_json,
    in_holdout,
    to_json,
)
from models.release.json_files import write_json

_LOG = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]
RESULTS = "experiment_results.json"  # beside the experiments' file


class ExperimentStore:
    """Thread safe; a change by another process is seen at the next call.

    path: the file; None keeps experiments in memory.
    configured: the settings' experiment, which runs on its surface while no other does.
    holdout_share: of each surface's users, whatever experiment runs.
    """

    def __init__(
        self,
        path: Path | None = None,
        configured: Experiment | None = None,
        holdout_share: float = 0.0,
    ) -> None:
        self.path, self._configured, self.holdout_share = path, configured, holdout_share
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._found: tuple[Experiment, ...] = ()
        self._running: dict[str, Experiment] = self._by_surface(())
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def results_path(self) -> Path | None:
        """Where the last evaluation lies (`models.experiments.evaluation`)."""
        return None if self.path is None else self.path.with_name(RESULTS)

    def all(self) -> tuple[Experiment, ...]:
        """Every experiment ever started, oldest first, and the settings' one if it runs."""
        self._refresh()
        listed = self._found
        own = self._configured
        if own is not None and self._running.get(own.surface) is own:
            listed = (*listed, own)
        return listed

    def running(self) -> tuple[Experiment, ...]:
        """Those that are served now, at most one per surface."""
        self._refresh()
        return tuple(self._running.values())

    def releases(self) -> frozenset[str]:
        """The releases that running experiments serve beside the live one."""
        return frozenset(
            release for each in self.running() for arm in each.arms for release in arm.releases
        )

    def assign(self, surface: str, user_id: str) -> Assignment | None:
        """What the user is served on the surface; None: the live models, outside any arm."""
        self._refresh()
        if in_holdout(surface, user_id, self.holdout_share):
            return HELD_OUT
        running = self._running.get(surface)
        arm = None if running is None else running.arm_of(user_id)
        if running is None or arm is None:
            return None
        return Assignment(arm, running.name)

    def start(self, found: Experiment) -> None:
        """Starts an experiment for good: it is kept after it was stopped.

        Raises:
            ExperimentError: it cannot be served, its name was used, or its surface is taken.
            OSError: the file cannot be written.
        """
        checked(found)

        def add(known: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
            if any(each.name == found.name for each in known):
                # The name salts the hash and marks the feedback.
                raise ExperimentError(f"the name {found.name} was used: take another")
            taken = [e.name for e in known if e.running and e.surface == found.surface]
            if taken:
                raise ExperimentError(
                    f"{taken[0]} runs on {found.surface}: `tidemill experiments stop {taken[0]}`"
                )
            return (*known, found)

        self._change(add)

    def stop(self, name: str, *, at_ms: int, reason: str = "by hand") -> bool:
        """Ends an experiment: its users are served by the live models from the next request on.

        False if it had been stopped before. Raises `ExperimentError` for an unknown name.
        """
        changed = False

        def end(known: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
            nonlocal changed
            if all(each.name != name for each in known):
                raise ExperimentError(f"no experiment {name!r} was started here")
            changed = any(each.name == name and each.running for each in known)
            return tuple(
                each.stopped(at_ms, reason) if each.name == name and each.running else each
                for each in known
            )

        self._change(end)
        return changed

    def _change(self, change: Callable[[tuple[Experiment, ...]], tuple[Experiment, ...]]) -> None:
        with self._lock, self._locked_file():
            self._read()
            found = change(self._found)
            if self.path is not None:
                write_json(self.path, {"experiments": [to_json(e) for e in found]}, sync=True)
                self._stamp = _stamp(self.path)
            self._set(found)

    @contextmanager
    def _locked_file(self) -> Iterator[None]:
        """Held while the file is read, changed and written as one step."""
        if self.path is None:
            yield
            return
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _refresh(self) -> None:
        if self.path is not None and _stamp(self.path) != self._stamp:
            with self._lock:
                self._read()

    def _read(self) -> None:
        """Reads the file. One that cannot be read is named, and the experiments so far stay."""
        if self.path is None:
            return
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            stated = json.loads(self.path.read_text(encoding="utf-8")) if stamp else {}
            self._set(tuple(from_json(each) for each in stated.get("experiments", ())))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _LOG.error("the experiments in %s cannot be read: %s", self.path, error)

    def _set(self, found: tuple[Experiment, ...]) -> None:
        self._running, self._found = self._by_surface(found), found

    def _by_surface(self, found: tuple[Experiment, ...]) -> dict[str, Experiment]:
        own = self._configured
        configured = {} if own is None else {own.surface: own}
        return configured | {each.surface: each for each in found if each.running}


def _stamp(path: Path) -> _Stamp | None:
    """Differs after the file was replaced; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
