"""Makes `.venv` from the lock: what `make` runs first. Standard library only.

Knows virtual environments, uv and stamp files. Runs before the project can be imported and
does not know it. What is installed already (same lock, Python and folder) is skipped, so a
second run takes milliseconds and no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
REQUIREMENTS = ROOT / "requirements.lock"
INSTALLER = ROOT / "deploy" / "installer.lock"
KERNELS = [
    *sorted((ROOT / "streams" / "kernels").glob("*.py")),
    *sorted((ROOT / "features" / "kernels").glob("*.py")),
    ROOT / "deploy" / "compile.py",
]
HEARTBEAT_S = 15.0


def main() -> int:
    os.chdir(ROOT)
    with _install_lock():
        try:
            _install()
        except subprocess.CalledProcessError as error:
            _print(
                f"installation failed (code {error.returncode}): {' '.join(map(str, error.cmd))}"
            )
            _print("see the lines above; `make` resumes where it stopped")
            return 1
    return 0


def _install() -> None:
    if not _is_usable(VENV):
        _make_environment()
    if not _stamped("packages", REQUIREMENTS):
        _get_uv()
        _print("installing the packages of requirements.lock (about 6 GB with torch, minutes)")
        # Compiled once here, not by every process at its first import.
        _run_shown(_uv("install", "--compile-bytecode", *_what_to_install()))
        _stamp("packages", REQUIREMENTS)
    if not _stamped("project", ROOT / "pyproject.toml"):
        _get_uv()
        _run_shown(_uv("install", "-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT)))
        _stamp("project", ROOT / "pyproject.toml")
        _print(f"ready: {VENV.name}/bin/tidemill --help")
    if not _stamped("kernels", *KERNELS, REQUIREMENTS):
        # Compiled once here (a minute), not by the first process that sees an event.
        _run([str(PYTHON), "-m", "deploy.compile"])
        _stamp("kernels", *KERNELS, REQUIREMENTS)


def _what_to_install() -> list[str]:
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        return ["--require-hashes", "-r", str(REQUIREMENTS)]
    _print(f"requirements.lock is for Linux x86_64; resolving again for {platform.platform()}")
    return [f"{ROOT}[dev]"]


def _is_usable(venv: Path) -> bool:
    """Whether the environment runs and is Python 3.11 (it breaks if its Python is removed)."""
    check = "import sys; sys.exit(sys.version_info[:2] != (3, 11))"
    python = venv / "bin" / "python"
    return python.exists() and subprocess.call([str(python), "-c", check]) == 0


def _make_environment() -> None:
    _print(f"creating {VENV.name} with {sys.executable}")
    if importlib.util.find_spec("ensurepip") is None:  # a package of its own in Debian
        raise SystemExit("this Python cannot create environments: apt-get install python3-venv")
    _run([sys.executable, "-m", "venv", "--clear", str(VENV)])


def _get_uv() -> None:
    """uv, pinned by hash, into the environment."""
    if UV.exists() and _stamped("uv", INSTALLER):
        return
    pip = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", "--require-hashes", "-r", str(INSTALLER)])
    _stamp("uv", INSTALLER)


def _uv(command: str, *arguments: str) -> list[str]:
    return [str(UV), "pip", command, "--python", str(PYTHON), *arguments]


def _environment() -> dict[str, str]:
    """uv uses the index and the certificates that pip is configured for."""
    env = dict(os.environ)
    env.pop("VIRTUAL_ENV", None)
    for ours, theirs in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("SSL_CERT_FILE", "PIP_CERT")):
        if theirs in env:
            env.setdefault(ours, env[theirs])
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    return env


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True, env=_environment())


def _run_shown(argv: Sequence[str]) -> None:
    """uv draws bars on a terminal; elsewhere a line every `HEARTBEAT_S` shows that it runs."""
    if sys.stderr.isatty():
        return _run(argv)
    started = time.monotonic()
    with subprocess.Popen(argv, env=_environment(), stdin=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                process.wait(HEARTBEAT_S)
            except subprocess.TimeoutExpired:
                _print(f"still installing, {time.monotonic() - started:.0f} s")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)


def _stamp_text(*paths: Path) -> str:
    digest = hashlib.sha256(f"{ROOT} {platform.platform()}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamped(name: str, *paths: Path) -> bool:
    stamp = VENV / f".{name}.stamp"
    return stamp.exists() and stamp.read_text() == _stamp_text(*paths)


def _stamp(name: str, *paths: Path) -> None:
    (VENV / f".{name}.stamp").write_text(_stamp_text(*paths))


@contextmanager
def _install_lock() -> Iterator[None]:
    """Of two concurrent `make`, the second waits for the first and then has nothing to do."""
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / "install.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _print(text: str) -> None:
    bold = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{bold[0]}tidemill{bold[1]}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
