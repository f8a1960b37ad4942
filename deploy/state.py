"""What a running stack writes down in its home folder, and what is made of it later.

Knows the files `lock`, `stack.json`, `services.json`, `keys.json` and the folder
`run/`. Does not start anything. The lock is held by the supervising process and
freed by the kernel when that ends, however it ends.
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
from typing import IO

import psutil

from deploy.settings import Settings, load

START_SLACK_S = 0.05  # two reads of one process's start time differ by rounding only

DEMO = "demo"  # the folder of a home in which the demo keeps its own


class AlreadyRunning(RuntimeError):
    """A stack of this home runs already; the message names it and the way to stop it."""


class NotRunning(RuntimeError):
    """No stack of this home runs; the message says how to start one."""


@dataclass(frozen=True)
class ServiceRecord:
    """One supervised process as another terminal sees it. `started_s` tells pid reuse apart."""

    name: str
    phase: str
    pid: int | None
    restarts: int
    started_s: float = 0.0


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """Whole or not at all, and readable by the owner only: it may hold keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.rename(path)


@contextlib.contextmanager
def claimed(home: Path) -> Iterator[None]:
    """Holds the home for one stack.

    Raises:
        AlreadyRunning: another process holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a") as handle:
        if not _try_lock(handle):
            raise AlreadyRunning(_who_runs(home))
        yield


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _who_runs(home: Path) -> str:
    with contextlib.suppress(NotRunning):
        pid, settings = supervisor_pid(home), read_settings(home)
        page = f"http://{settings.gateway.host}:{settings.gateway.port}"
        return f"a stack runs in {home} already (process {pid}, {page}): `tidemill down` stops it"
    return f"a stack is starting in {home} already: `tidemill status` shows it"


def is_claimed(home: Path) -> bool:
    """Whether some process holds the home now."""
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
    """Where the stack runs that a command means: in `home`, else the demo's beneath it."""
    demo = home / DEMO
    return demo if not is_claimed(home) and is_claimed(demo) else home


def write_settings(settings: Settings) -> None:
    """`stack.json`: what the stack's processes read, ports and keys resolved."""
    body = {"pid": os.getpid(), "settings": settings.model_dump(mode="json")}
    _write(settings.home / "stack.json", json.dumps(body, indent=1))


def read_settings(home: Path) -> Settings:
    """The resolved settings of the stack that runs (or last ran) in `home`.

    Raises:
        NotRunning: none ever did.
    """
    return Settings.model_validate(_stack(home)["settings"])


def supervisor_pid(home: Path) -> int:
    return int(str(_stack(home)["pid"]))


def _stack(home: Path) -> dict[str, object]:
    try:
        found = json.loads((home / "stack.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise NotRunning(f"no stack runs in {home}: `tidemill up` starts one") from None
    return dict(found)


def forget_stack(home: Path) -> None:
    """Removes what only a running stack has; its data and keys stay."""
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
    """Ends processes that a killed stack left behind; returns their names.

    A process counts as ours only when both its id and its start time are the
    recorded ones. What it had started shares its session and ends too, also when it
    is gone itself: a session's id is not given out again while it has members.
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


def stop_supervisor(home: Path, patience_s: float = 60.0) -> bool:
    """Asks the stack's supervising process to end, and makes sure. False: none ran."""
    if not is_claimed(home):
        return False
    process = psutil.Process(supervisor_pid(home))
    process.terminate()
    deadline = time.monotonic() + patience_s
    while is_claimed(home):
        if time.monotonic() > deadline:
            process.kill()
            deadline = time.monotonic() + patience_s
        time.sleep(0.1)
    return True


def impression_key(home: Path) -> str:
    """The key that signs impressions (64 hex digits), made at the first start and kept."""
    path = home / "keys.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["impression_key"])
    except (OSError, json.JSONDecodeError, KeyError):
        key = secrets.token_hex(32)
        _write(path, json.dumps({"impression_key": key}))
        return key


def mark_ready(home: Path, name: str) -> None:
    """A process says that it is set up and has begun its work."""
    _write(home / "run" / f"{name}.ready", str(os.getpid()))


def unmark_ready(home: Path, name: str) -> None:
    (home / "run" / f"{name}.ready").unlink(missing_ok=True)


def is_ready(home: Path, name: str) -> bool:
    return (home / "run" / f"{name}.ready").exists()
