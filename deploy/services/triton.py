"""Triton Inference Server from a wheel, on the CPU, with its Python backend.

Knows how to get the server and the backend's own small environment, and how to start and
check both. Does not know what models the repository holds
(`models.release.triton_repository`): it loads all of them.

The backend was compiled against numpy 1 and silently corrupts tensors under numpy 2. It
therefore runs in an environment of its own, with numpy 1.26 in front of the project's
packages. An echo model verifies tensors at every start.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import hashlib
import os
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.services import paths
from deploy.services.cache import ROOT, cache_dir, filled_once, lock_hash
from deploy.services.process import LOOPBACK, Command, ServiceUnavailable, free_port
from deploy.services.python_packages import install_into_environment, install_into_folder

SERVER_LOCK = ROOT / "deploy" / "triton" / "server.lock"
OVERLAY_LOCK = ROOT / "deploy" / "triton" / "overlay.lock"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SHARED_MEMORY = Path("/dev/shm")
# Keep large tensors on the heap between requests: p50 of 500 candidates fell by a fifth.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Triton:
    """One server on three loopback ports. It loads the models in `repository` when it starts.

    `self_test(grpc_address)` says whether tensors arrive unchanged;
    `otlp_endpoint` ("http://host:4318") exports spans.
    """

    log_dir: Path
    repository: Path
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    otlp_endpoint: str = ""
    self_test: Callable[[str], bool] | None = None
    name: str = "triton"

    @property
    def grpc_address(self) -> str:
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def http_address(self) -> str:
        return f"{LOOPBACK}:{self.http_port}"

    @property
    def metrics_address(self) -> str:
        return f"{LOOPBACK}:{self.metrics_port}"

    def command(self) -> Command:
        server, python = server_dir(), overlay_python()
        self.repository.mkdir(parents=True, exist_ok=True)
        self.sweep()
        return Command(
            argv=[str(server / "bin" / "tritonserver"), *self._options(server)],
            log_path=self.log_dir / f"{self.name}.log",
            env=_environment(server, python),
        )

    def ready(self) -> bool:
        if not answers_http(f"http://{self.http_address}/v2/health/ready"):
            return False
        return self.self_test is None or self.self_test(self.grpc_address)

    def sweep(self) -> None:
        """Removes the shared memory and the links of a killed server of this port."""
        for region in shared_memory(self.grpc_address):
            with contextlib.suppress(OSError):
                region.unlink()
        remove_links(self.grpc_address)

    @property
    def _link_key(self) -> str:
        return _link_key(self.grpc_address)

    def _options(self, server: Path) -> list[str]:
        options = {
            "model-repository": str(paths.shell_safe(self.repository, "models", self._link_key)),
            "backend-directory": str(
                paths.shell_safe(server / "backends", "backends", self._link_key)
            ),
            "model-control-mode": "explicit",
            "exit-on-error": "false",  # a broken model must not stop the others
            "strict-readiness": "false",
            "http-address": LOOPBACK,
            "http-port": str(self.http_port),
            "grpc-address": LOOPBACK,
            "grpc-port": str(self.grpc_port),
            "metrics-address": LOOPBACK,
            "metrics-port": str(self.metrics_port),
            "allow-gpu-metrics": "false",
            "backend-config": f"python,shm-region-prefix-name={_region_prefix(self.grpc_port)}",
            "exit-timeout-secs": "5",
        }
        argv = [f"--{name}={value}" for name, value in options.items()]
        argv += [f"--load-model={name}" for name in stored_models(self.repository)]
        return argv + self._trace_options()

    def _trace_options(self) -> list[str]:
        if not self.otlp_endpoint:
            return []
        url = self.otlp_endpoint.rstrip("/") + "/v1/traces"
        configs = ["mode=opentelemetry", f"opentelemetry,url={url}", "rate=1", "level=TIMESTAMPS"]
        return [f"--trace-config={config}" for config in configs]


def shared_memory(grpc_address: str) -> list[Path]:
    """The shared memory regions of the server at that address, running or not."""
    port = grpc_address.rpartition(":")[2]
    return sorted(SHARED_MEMORY.glob(f"{_region_prefix(port)}*")) if port.isdigit() else []


def remove_links(grpc_address: str) -> None:
    """Removes the links that the server at that address was given for its paths."""
    if grpc_address.rpartition(":")[2].isdigit():
        paths.remove_links(_link_key(grpc_address))


def _link_key(grpc_address: str) -> str:
    return f"triton-{grpc_address.rpartition(':')[2]}"


def _region_prefix(grpc_port: int | str) -> str:
    return f"tidemill-{grpc_port}-"


def stored_models(repository: Path) -> list[str]:
    """Names of the models that have a configuration and a version."""
    return sorted(
        config.parent.name
        for config in repository.glob("*/config.pbtxt")
        if any(v.name.isdigit() for v in config.parent.iterdir())
    )


def answers_http(url: str, timeout_s: float = 1.0) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def available() -> str:
    """Why this machine cannot run Triton's wheel; "" if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return (
            f"Triton's wheel runs on Linux x86_64, this is {platform.system()} "
            f"{platform.machine()}: models run in process (TIDEMILL_TRITON__KIND=in_process), or "
            "name a server: TIDEMILL_TRITON__KIND=external TIDEMILL_TRITON__GRPC_ADDRESS=host:port"
        )
    if _libpython_dir() is None:
        return (
            f"Triton's Python backend needs the shared library libpython{PYTHON}.so.1.0, and this "
            f"Python was built without it: apt-get install libpython{PYTHON}, or let the models "
            "run in process (TIDEMILL_TRITON__KIND=in_process)"
        )
    return ""


def server_dir(report: Report | None = None) -> Path:
    """The unpacked server (bin, backends, libs), downloaded once (50 MB). ServiceUnavailable."""
    if reason := available():
        raise ServiceUnavailable(reason)

    def fill(folder: Path) -> None:
        if report:
            report("downloading Triton Inference Server")
        install_into_folder(SERVER_LOCK, folder)
        triton = folder / "pytriton" / "tritonserver"
        stub = triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
        shutil.copy2(stub, triton / "backends" / "python" / stub.name)

    top = filled_once(cache_dir() / "triton" / f"server-{lock_hash(SERVER_LOCK)}", fill)
    return top / "pytriton" / "tritonserver"


def overlay_python(report: Report | None = None) -> Path:
    """The backend's python: numpy 1.26 first, the project's packages and checkout behind it."""

    def fill(folder: Path) -> None:
        if report:
            report("creating the model backend's environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        install_into_environment(OVERLAY_LOCK, folder / "bin" / "python")
        packages = folder / "lib" / f"python{PYTHON}" / "site-packages"
        (packages / "tidemill.pth").write_text("\n".join(_backend_path()) + "\n")

    seen = hashlib.sha256("\n".join([sys.version, *_backend_path()]).encode())
    name = f"overlay-{lock_hash(OVERLAY_LOCK)}-{seen.hexdigest()[:8]}"
    return filled_once(cache_dir() / "triton" / name, fill) / "bin" / "python"


def _backend_path() -> list[str]:
    return [*site.getsitepackages(), str(ROOT)]


def _environment(server: Path, python: Path) -> dict[str, str]:
    libs = [str(server.parent.parent / "nvidia_pytriton.libs"), str(_libpython_dir())]
    return {
        **MALLOC,
        "LD_LIBRARY_PATH": ":".join(libs),
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _libpython_dir() -> Path | None:
    name = f"libpython{PYTHON}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders += [f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/usr/lib64", "/usr/lib"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    found = ctypes.util.find_library(f"python{PYTHON}")
    return Path(found).parent if found and found.startswith("/") else None
