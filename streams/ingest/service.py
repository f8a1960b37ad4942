"""The ingest service: `behaviour` in, the users' events and dead letters out.

Knows polls, assignments and how many replicas run. Decides nothing about events itself
(`streams.ingest.admission`) and remembers none (`streams.ingest.deduplication`). A sole batcher
sees all of a user's events, so it marks duplicates at once and writes `events.by_user`. One of
several writes `events.admitted`, and the sequencer (`streams.ingest.sequencer`) marks them.

`run` starts the batcher and the loops behind it. If one fails, all stop and the process ends; the
supervisor restarts it, and it resumes at the last commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from streams.bus.consume import Input, Loop, run_loops
from streams.bus.contract import Bus, BusError, Outgoing, last_record_offsets
from streams.bus.polled import Record, polled
from streams.contract.bounds import future_limit_ms
from streams.contract.clock import Clock
from streams.contract.topics import ADMITTED, BEHAVIOUR, BEHAVIOUR_DEAD, EVENTS_BY_USER
from streams.contract.trace_headers import TRACEPARENT_HEADER
from streams.erasure import Erasures
from streams.event_log import EventLog
from streams.ingest.admission import Admission, admit
from streams.ingest.dead_letters import count_dead_letter, dead_letter_message
from streams.ingest.deduplication import SeenEvents
from streams.ingest.fanout import FanOut, fanned_out
from streams.ingest.loop import IngestConfig, IngestLoop
from streams.ingest.partitioning import (
    PartitionedRows,
    SourcedRows,
    SourcePositions,
    SourceTarget,
    partition_rows,
)
from streams.ingest.sequencer import Sequencer

_MIN_POLL_INTERVAL_S, _POLL_TIMEOUT_S = 0.05, 0.1


def run(
    bus: Bus,
    config: IngestConfig,
    *,
    clock: Clock,
    stop: threading.Event,
    log: EventLog | None = None,
) -> None:
    """Admits and sequences events, and fans them out, until `stop` is set. Blocks.

    `log`: used to detect duplicates of events published before the topics were recreated.

    Raises:
        BusError: the broker failed or another process took this one's name or partitions.
            Nothing is lost: a new process resumes at the last commit.
    """
    if config.sole_consumer:
        _finish_admitted(bus, lambda: Sequencer(bus, clock, config, log), stop)
    loops: dict[str, Callable[[], Loop]] = {"batcher": lambda: Batcher(bus, clock, config, log)}
    if not config.sole_consumer:
        loops["sequencer"] = lambda: Sequencer(bus, clock, config, log)
    if fanned_out(config.entities):
        loops["fanout"] = lambda: FanOut(bus, config)
    for own in config.own_entities:
        loops[f"fanout-{own.name}"] = partial(FanOut, bus, config, own)
    run_loops(loops, stop)


def _finish_admitted(bus: Bus, sequencer: Callable[[], Sequencer], stop: threading.Event) -> None:
    """Sequences what replicas admitted before their number was set to 1: it comes first."""
    if not (last := last_record_offsets(bus, ADMITTED)):
        return
    loop = sequencer()
    try:
        while not stop.is_set() and (loop.run_once(_POLL_TIMEOUT_S) or not loop.is_past(last)):
            pass
    finally:
        loop.close()


class Batcher(IngestLoop):
    """Admits, deduplicates (as a sole consumer) and partitions the records of `behaviour`."""

    def __init__(
        self, bus: Bus, clock: Clock, config: IngestConfig, log: EventLog | None = None
    ) -> None:
        """`log`: see `SeenEvents`."""
        self._clock, self._limits = clock, config.limits
        self._topic = EVENTS_BY_USER if config.sole_consumer else ADMITTED
        open_input = partial(Input, bus, BEHAVIOUR, min_poll_interval_s=_MIN_POLL_INTERVAL_S)
        super().__init__(bus, config, "batcher", open_input, [self._topic, BEHAVIOUR_DEAD])
        self._seen = SeenEvents(bus, config.limits, log) if config.sole_consumer else None
        self._partitions = bus.partitions(self._topic)
        self._input_partitions = bus.partitions(BEHAVIOUR)
        self._erasures = Erasures(bus, partial(future_limit_ms, clock, config.limits.future_ms))

    def close(self) -> None:
        self._erasures.close()
        super().close()

    def _on_poll(self) -> None:
        """A sole consumer must own all partitions, or it would miss duplicates.

        An empty assignment is normal while the group is joining. Erasures are read at every poll:
        without events, their consumer would lose its membership after max.poll.interval.ms.
        """
        self._erasures.refresh()
        if self._seen:
            self._seen.on_assignment(self._input.assignment_version)
            owned = len(self._input.consumer.assignment())
            if 0 < owned < self._input_partitions:
                raise BusError(
                    f"this batcher reads {owned} of the {self._input_partitions} partitions of "
                    f"{BEHAVIOUR!r}, and another process the others: stop one of them, or set "
                    "ingest.replicas (TIDEMILL_INGEST__REPLICAS) to their number, in each of them"
                )
        super()._on_poll()

    def _process(self, records: Sequence[Record]) -> list[Outgoing]:
        now_ms = self._clock.now_ms()
        admission = admit(records, now_ms, self._limits, self._erasures.until_ms)
        rows = self._partitioned(records, admission)
        out = self._seen.mark_duplicates(rows, now_ms) if self._seen else list(rows.messages())
        return out + self._dead_letters(records, admission, now_ms)

    def _partitioned(self, records: Sequence[Record], admission: Admission) -> PartitionedRows:
        table = admission.table
        source = SourcePositions(
            self._input.topic_id,
            table["source_partition"].to_numpy().astype(np.int64),
            table["source_offset"].to_numpy(),
        )
        rows = SourcedRows(table, source, _traces(records, admission.rows.tolist()))
        written = self._recovery.written
        return partition_rows(rows, "user_id", self._topic, self._partitions, written)

    def _dead_letters(
        self, records: Sequence[Record], admission: Admission, now_ms: int
    ) -> list[Outgoing]:
        """Without those that an earlier process wrote and did not commit."""
        out = []
        for refusal in sorted(admission.refused, key=lambda refusal: refusal.row):
            record = records[refusal.row]
            target: SourceTarget = (BEHAVIOUR_DEAD, 0, record.partition)
            if record.offset > self._recovery.written.get(target, -1):
                cause, topic_id = (refusal.cause, refusal.detail), self._input.topic_id
                out.append(dead_letter_message(record, *cause, topic_id, now_ms))
                count_dead_letter(BEHAVIOUR, refusal.cause)
        return out


def _traces(records: Sequence[Record], rows: Sequence[int]) -> dict[int, str]:
    """Row of the admitted table -> traceparent of its record."""
    if not polled(records).any_headers:
        return {}
    found = ((i, records[row].header(TRACEPARENT_HEADER)) for i, row in enumerate(rows))
    return {i: trace.decode("ascii", "replace") for i, trace in found if trace is not None}
