"""The files of a stack in its home folder, for its processes and for other commands.

Knows `lock`, `stack.json`, `services.json`, `keys.json` and the folder `run/`. Does not start
anything. The supervising process holds the lock; the kernel frees it when the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from deploy.settings import Settings, from_stored, load

START_SLACK_S = 0.05  # two reads of one process's start time differ by rounding
DEMO = "demo"  # the demo's own home, a folder of the home
EXPERIMENT_FILE = "experiment.json"  # figures of the feed's arms, written by what evaluates them


class AlreadyRunning(RuntimeError):
    """A stack of this home runs already; the message says how to stop it."""


class NotRunning(RuntimeError):
    """No stack of this home runs; the message says how to start one."""


@dataclass(frozen=True)
class ServiceRecord:
    """One supervised process as another terminal sees it. `started_s` detects a reused
    pid."""

    name: str
    phase: str
    pid: int | None
    restarts: int
    started_s: float = 0.0


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """Atomically, and readable by the owner only: the file may hold keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.rename(path)


@contextlib.contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Locks the home for one stack.

    Raises:
        AlreadyRunning: another process holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a") as handle:
        if not _try_lock(handle):
            raise AlreadyRunning(_running_stack(home))
        yield


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _running_stack(home: Path) -> str:
    with contextlib.suppress(NotRunning):
        pid, settings = supervisor_pid(home), read_settings(home)
        page = settings.gateway.url
        return f"a stack runs in {home} already (process {pid}, {page}): `tidemill down` stops it"
    return f"a stack is starting in {home} already: `tidemill status` shows it"


def home_is_locked(home: Path) -> bool:
    """Whether a process holds the lock now."""
    path = home / "lock"
    if not path.exists():
        return False
    with path.open("a") as handle:
        return not _try_lock(handle)


def settings_in_use() -> Settings:
    """The running stack's settings, else those of files and environment."""
    settings = load()
    try:
        return read_settings(home_in_use(settings.home))
    except NotRunning:
        return settings


def home_in_use(home: Path) -> Path:
    """`home`, or the demo's home in it if only the demo's stack runs."""
    demo = home / DEMO
    return demo if not home_is_locked(home) and home_is_locked(demo) else home


def write_settings(settings: Settings) -> None:
    """Writes `stack.json`: the settings with chosen ports and keys."""
    body = {"pid": os.getpid(), "settings": settings.model_dump(mode="json")}
    _write(settings.home / "stack.json", json.dumps(body, indent=1))


def read_settings(home: Path) -> Settings:
    """The resolved settings of the stack that runs (or last ran) in `home`.

    Raises:
        NotRunning: there is no `stack.json`.
    """
    return from_stored(cast("dict[str, Any]", _stack(home)["settings"]))


def supervisor_pid(home: Path) -> int:
    return int(str(_stack(home)["pid"]))


def _stack(home: Path) -> dict[str, object]:
    try:
        found = json.loads((home / "stack.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise NotRunning(f"no stack runs in {home}: `tidemill up` starts one") from None
    return dict(found)


def forget_stack(home: Path) -> None:
    """Removes the files of a running stack; data and keys stay."""
    for name in ("stack.json", "services.json"):
        (home / name).unlink(missing_ok=True)


def write_services(home: Path, records: Sequence[ServiceRecord]) -> None:
    _write(home / "services.json", json.dumps([asdict(record) for record in records]))


def read_services(home: Path) -> list[ServiceRecord]:
    try:
        found = json.loads((home / "services.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return []
    return [ServiceRecord(**record) for record in found]


def started_s(pid: int | None) -> float:
    """When a process started (seconds since the epoch); 0 when there is none."""
    if pid is None:
        return 0.0
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def reap(home: Path) -> list[str]:
    """Ends the processes of a killed stack; returns their names.

    A process is ended only if its id and its start time are the recorded ones. Its children
    share its session and end too, even if the process itself is gone: the kernel does not
    reuse a session's id while it has members.
    """
    reaped = []
    for record in read_services(home):
        if record.pid and _is_ours(record) and _session_members(record.pid):
            reaped.append(record.name)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.pid, signal.SIGKILL)
    return reaped


def _is_ours(record: ServiceRecord) -> bool:
    began_s = started_s(record.pid)
    return not began_s or abs(began_s - record.started_s) < START_SLACK_S


def _session_members(session: int) -> list[int]:
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session:
                members.append(pid)
    return members


def stop_supervisor(home: Path, timeout_s: float = 60.0) -> bool:
    """Stops the stack's supervising process; kills it after the timeout. False: none ran."""
    if not home_is_locked(home):
        return False
    process = psutil.Process(supervisor_pid(home))
    process.terminate()
    deadline = time.monotonic() + timeout_s
    while home_is_locked(home):
        if time.monotonic() > deadline:
            process.kill()
            deadline = time.monotonic() + timeout_s
        time.sleep(0.1)
    return True


def impression_key(home: Path) -> str:
    """The key that signs impressions (64 hex digits), created at the first start."""
    path = home / "keys.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["impression_key"])
    except (OSError, json.JSONDecodeError, KeyError):
        key = secrets.token_hex(32)
        _write(path, json.dumps({"impression_key": key}))
        return key


def mark_ready(home: Path, name: str) -> None:
    """Called by a process when it is ready."""
    _write(home / "run" / f"{name}.ready", str(os.getpid()))


def unmark_ready(home: Path, name: str) -> None:
    (home / "run" / f"{name}.ready").unlink(missing_ok=True)


def is_ready(home: Path, name: str) -> bool:
    return (home / "run" / f"{name}.ready").exists()
