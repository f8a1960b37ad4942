"""Packages outside the project's environment, installed by uv if available, else by pip.

Knows lock files with hashes and target folders. Never changes the environment that this
process runs in. Does not know what the packages are for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.services.process import ServiceUnavailable

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
        raise ServiceUnavailable(
            f"installing {lock.name} took more than {INSTALL_TIMEOUT_S} s: check the network"
        ) from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise ServiceUnavailable(f"could not install {lock.name} ({' '.join(argv)}):\n{last}")


def _installer(python: Path) -> list[str]:
    uv = uv_binary()
    if uv is not None:
        return [str(uv), "pip", "install", "-q", "--python", str(python)]
    pip = [sys.executable, "-m", "pip"]
    other = [] if python == Path(sys.executable) else ["--python", str(python)]
    return [*pip, *other, "install", "-q", "--disable-pip-version-check"]


def uv_binary() -> Path | None:
    """uv of this environment, else from the PATH; None: pip is used."""
    local = Path(sys.executable).with_name("uv")
    if local.exists():
        return local
    found = shutil.which("uv")
    return Path(found) if found else None
