"""The floor and the baselines, each in a process of its own, quixstreams in an environment too.

Knows how each is started and what it prints. The environment is created in the cache folder
from a lock with hashes; if that fails, the reason is reported. Does not know the path.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
import venv
from dataclasses import dataclass
from pathlib import Path

import orjson

from deploy.services.cache import cache_dir, filled_once, lock_hash
from deploy.services.process import ServiceUnavailable
from deploy.services.python_packages import install_into_environment

HERE = Path(__file__).parent
LOCK = HERE / "quixstreams.lock"


@dataclass(frozen=True)
class BaselineRate:
    """Events, seconds and CPU of one baseline from its first event on."""

    events: int
    seconds: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """µs of CPU an event, in the baseline's own process."""
        return self.cpu_s / max(1, self.events) * 1e6


def measure_baseline(name: str, servers: str, partitions: int, seconds: float) -> BaselineRate:
    """Runs one baseline for so many seconds.

    Raises:
        ServiceUnavailable: it is not available here, or it failed; the message says why.
    """
    python = _quix_python() if name == "quixstreams" else Path(sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        group = f"{name}-{uuid.uuid4().hex[:8]}"
        argv = [str(python), str(HERE / "baseline.py"), name, servers, group, str(partitions),
                str(seconds), folder]  # fmt: skip
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60,
                                  check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ServiceUnavailable(f"{name} saw no event within {seconds + 60:.0f} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-6:])
        raise ServiceUnavailable(f"{name} ended with {done.returncode}:\n{last}")
    return BaselineRate(**orjson.loads(lines[-1]))


def _quix_python() -> Path:
    folder = filled_once(cache_dir() / "quixstreams" / lock_hash(LOCK), _create_environment)
    return folder / "bin" / "python"


def _create_environment(folder: Path) -> None:
    venv.EnvBuilder(with_pip=False).create(folder)
    install_into_environment(LOCK, folder / "bin" / "python")
