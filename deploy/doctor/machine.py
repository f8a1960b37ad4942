"""What this machine can run, what is missing, and how to get it.

Knows how each service is checked. Fetches nothing, starts nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable

import psutil

from deploy.doctor.finding import Finding
from deploy.services import kafka, tansu, triton, valkey
from deploy.services.cache import ROOT, cache_dir
from deploy.services.process import ServiceUnavailable

NEEDED_DISK_GB = 3.0
NEEDED_MEMORY_GB = 3.0
GB = 1e9


def examine() -> list[Finding]:
    """Every component and its state, in a fixed order."""
    return [
        _python(),
        _memory(),
        _disk(),
        _service("embedded broker", tansu.binary, needed=bool(kafka.available())),
        _service("store (Valkey)", valkey.binary, needed=True),
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
        "memory",
        free >= NEEDED_MEMORY_GB,
        f"{free:.1f} GB free, {NEEDED_MEMORY_GB:g} GB recommended",
    )


def _disk() -> Finding:
    folder = cache_dir()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / GB
    return Finding("disk", free >= NEEDED_DISK_GB, f"{free:.1f} GB free under {existing}")


def _service(name: str, find: Callable[[], os.PathLike[str]], *, needed: bool) -> Finding:
    try:
        return Finding(name, True, _short(find()), needed)
    except ServiceUnavailable as reason:
        return Finding(name, False, str(reason), needed)


def _short(path: os.PathLike[str]) -> str:
    """The path relative to the checkout, if it lies inside."""
    return os.fspath(path).removeprefix(f"{ROOT}{os.sep}")


def _triton() -> Finding:
    if reason := triton.available():
        return Finding("Triton", False, reason)
    fetched = any((cache_dir() / "triton").glob("server-*"))
    return Finding(
        "Triton", True, "downloaded" if fetched else "will be downloaded at the first start (50 MB)"
    )


def _kafka() -> Finding:
    if reason := kafka.available():
        return Finding(
            "Apache Kafka",
            False,
            f"{reason}. Until then the embedded broker runs: in memory only, "
            "and librdkafka 2.0 (Debian 12's kcat) cannot talk to it",
        )
    if kafka.downloaded():
        return Finding("Apache Kafka", True, f"downloaded (Java: {_short(kafka.java())})")
    return Finding("Apache Kafka", True, "Maven will download it at the first start (43 MB)")


def _chromium() -> Finding:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    text = found or "not found: the browser tests are skipped (apt-get install chromium)"
    return Finding("Chromium", found is not None, text)


def _docker() -> Finding:
    if shutil.which("docker") is None:
        return Finding("Docker", False, "not found: needed only for docker-compose.yml")
    answers = os.path.exists(os.environ.get("DOCKER_SOCKET", "/var/run/docker.sock"))
    return Finding("Docker", answers, "engine found" if answers else "client found, no engine")
