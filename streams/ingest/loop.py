"""What the loops of the ingest service share: configuration, input, transactions, recovery.

Knows consumer groups and transactional ids. Does not know what a loop makes of its records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from streams.bus.consume import ConsumeLoop, Input
from streams.bus.contract import Bus, Outgoing
from streams.bus.polled import Record
from streams.bus.transaction import InputTransactions
from streams.contract.topics import ENTITY_TOPIC, OwnEntity
from streams.ingest.admission import AdmissionLimits
from streams.ingest.recovery import Recovery


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How an ingest process runs.

    `transactional`: False for brokers without transactions; then only one process may run.
    `instance`: this process's name, unique among the replicas and the same after a restart: a
    successor aborts the transaction that its killed predecessor left open.
    `entities`: whose topics are written besides the user's; leave out those without a reader.
    `own_entities`: an owner's, each written by a loop of its own.
    `replicas`: how many ingest processes run in parallel; the same number for each.
    """

    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    transactional: bool = True
    group: str = "tidemill"
    instance: str = "0"
    entities: Collection[str] = tuple(ENTITY_TOPIC)
    own_entities: Collection[OwnEntity] = ()
    replicas: int = 1

    @property
    def sole_consumer(self) -> bool:
        """No other process reads `behaviour`, so this one sees all of a user's events."""
        return self.replicas == 1

    def consumer_group(self, role: str) -> str:
        return f"{self.group}-{role}"

    def transactional_id(self, role: str) -> str | None:
        return f"{self.group}-{role}-{self.instance}" if self.transactional else None


class IngestLoop(ABC):
    """One consume-process-produce loop. Not thread-safe."""

    def __init__(
        self,
        bus: Bus,
        config: IngestConfig,
        role: str,
        open_input: Callable[[str], Input],
        targets: Collection[str],
        row_bits: int = 0,
    ) -> None:
        """`open_input` takes the consumer group. `targets`: all topics that the loop writes to.
        `row_bits`: see `Recovery`."""
        # First: it fences a predecessor that still runs.
        self._producer = bus.producer(config.transactional_id(role))
        self._input = open_input(config.consumer_group(role))
        self._transactions = InputTransactions(self._producer, self._input.consumer)
        self._recovery = Recovery(
            bus, self._input, self._transactions, targets, self._process, row_bits
        )
        self._loop = ConsumeLoop(
            self._input.poll, self._process, self._transactions.send, self._on_poll
        )

    def run_once(self, timeout_s: float) -> int:
        """Processes one poll; returns its record count, or 0 after `timeout_s`."""
        return self._loop.run_once(timeout_s)

    def close(self) -> None:
        self._input.consumer.close()
        self._producer.close()

    @abstractmethod
    def _process(self, records: Sequence[Record]) -> list[Outgoing]:
        """The messages that these records become."""

    def _on_poll(self) -> None:
        """Partitions may have been reassigned."""
        self._recovery.refresh()
