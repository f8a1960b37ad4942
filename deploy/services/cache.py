"""The cache of downloads: its folder, and the lock under which it is filled.

Knows folders and file locks. Does not know what they hold (Kafka's jars,
Triton's wheel, the replayed data set).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """`.cache` of the checkout, or TIDEMILL_CACHE."""
    return Path(os.environ.get("TIDEMILL_CACHE", ROOT / ".cache"))


def lock_hash(*paths: Path) -> str:
    """Twelve hex digits of the files' contents: a changed lock file gets a new folder."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the kernel frees it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def filled_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, filled by `fill(folder)` unless it exists.

    A temporary folder is filled and then renamed: the target is complete or absent, also with
    concurrent or killed processes.
    """
    if target.is_dir():
        return target
    with locked(target.parent / f".{target.name}.lock"):
        if not target.is_dir():
            _fill_temporary(target, fill)
    return target


def _fill_temporary(target: Path, fill: Callable[[Path], None]) -> None:
    for leftover in target.parent.glob(f".{target.name}.part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    try:
        fill(part)
        part.chmod(0o755)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
