"""Packages beside the project's own environment: installed by uv where there is one, else pip.

Knows lock files with hashes and where to put what they name. Never touches the
environment this process runs in.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.services.process import PartUnavailable

INSTALL_TIMEOUT_S = 900


def install_into_folder(lock: Path, folder: Path) -> None:
    """The lock's wheels unpacked under `folder`, without their dependencies."""
    _install(lock, ["--target", str(folder)], python=Path(sys.executable))


def install_into_environment(lock: Path, python: Path) -> None:
    """The lock's wheels installed into the virtual environment of `python`."""
    _install(lock, [], python=python)


def _install(lock: Path, options: Sequence[str], python: Path) -> None:
    argv = [*_installer(python), "--no-deps", "--require-hashes", *options, "-r", str(lock)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise PartUnavailable(
            f"installing {lock.name} took more than {INSTALL_TIMEOUT_S} s: is the network slow?"
        ) from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise PartUnavailable(f"could not install {lock.name} ({' '.join(argv)}):\n{last}")


def _installer(python: Path) -> list[str]:
    uv = uv_binary()
    if uv is not None:
        return [str(uv), "pip", "install", "-q", "--python", str(python)]
    pip = [sys.executable, "-m", "pip"]
    other = [] if python == Path(sys.executable) else ["--python", str(python)]
    return [*pip, *other, "install", "-q", "--disable-pip-version-check"]


def uv_binary() -> Path | None:
    """uv of this environment, else from the PATH; None: pip must do."""
    beside = Path(sys.executable).with_name("uv")
    if beside.exists():
        return beside
    found = shutil.which("uv")
    return Path(found) if found else None
