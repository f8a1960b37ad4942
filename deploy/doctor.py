"""What this machine can run, what it lacks, and how to get that.

Knows every part's own word on its availability. Fetches nothing, starts nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from deploy.services import kafka, tansu, triton, valkey
from deploy.services.cache import ROOT, cache_dir
from deploy.services.process import PartUnavailable

NEEDED_DISK_GB = 3.0
NEEDED_MEMORY_GB = 3.0
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. `needed`: without it `tidemill up` cannot work."""

    name: str
    ok: bool
    text: str
    needed: bool = False


def examine() -> list[Finding]:
    """Every part and its state, in a fixed order."""
    return [
        _python(),
        _memory(),
        _disk(),
        _part("embedded broker", tansu.binary, needed=True),
        _part("store (Valkey)", valkey.binary, needed=True),
        _triton(),
        _kafka(),
        _chromium(),
        _docker(),
    ]


def _python() -> Finding:
    ok = sys.version_info[:2] == (3, 11)
    fix = "" if ok else ": tidemill needs 3.11 (make PYTHON=/path/to/python3.11 install)"
    return Finding("Python", ok, platform.python_version() + fix, needed=True)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / GB
    return Finding(
        "memory", free >= NEEDED_MEMORY_GB, f"{free:.1f} GB free, {NEEDED_MEMORY_GB:g} advised"
    )


def _disk() -> Finding:
    folder = cache_dir()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / GB
    return Finding("disk", free >= NEEDED_DISK_GB, f"{free:.1f} GB free under {existing}")


def _part(name: str, find: Callable[[], os.PathLike[str]], *, needed: bool) -> Finding:
    try:
        return Finding(name, True, _short(find()), needed)
    except PartUnavailable as reason:
        return Finding(name, False, str(reason), needed)


def _short(path: os.PathLike[str]) -> str:
    """The path from the checkout on, where it lies in there."""
    return os.fspath(path).removeprefix(f"{ROOT}{os.sep}")


def _triton() -> Finding:
    if reason := triton.available():
        return Finding("Triton", False, reason)
    fetched = any((cache_dir() / "triton").glob("server-*"))
    return Finding(
        "Triton", True, "fetched" if fetched else "will be fetched at the first start (50 MB)"
    )


def _kafka() -> Finding:
    try:
        java = kafka.java()
    except PartUnavailable as reason:
        return Finding("Apache Kafka", False, str(reason))
    if any((cache_dir() / "kafka").glob("[0-9]*")):
        return Finding(
            "Apache Kafka",
            True,
            f"fetched; choose it with TIDEMILL_BROKER=kafka (Java: {_short(java)})",
        )
    if shutil.which("mvn"):
        return Finding("Apache Kafka", True, "Maven will fetch it at first use (43 MB)")
    return Finding("Apache Kafka", False, "no Maven to fetch it: apt-get install maven (optional)")


def _chromium() -> Finding:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    text = found or "none: the browser tests are skipped (apt-get install chromium)"
    return Finding("Chromium", found is not None, text)


def _docker() -> Finding:
    if shutil.which("docker") is None:
        return Finding("Docker", False, "none: needed for docker-compose.yml only")
    answers = os.path.exists(os.environ.get("DOCKER_SOCKET", "/var/run/docker.sock"))
    return Finding("Docker", answers, "engine found" if answers else "client, but no engine")
