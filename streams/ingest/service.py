"""The door: `behaviour` in, the users' events and dead letters out.

Knows polls, commits, epochs and whether it is the only door. Judges nothing itself
(`streams.ingest.admission`) and remembers no events (`streams.ingest.deduplication`). The only door sees all of
a user's events, so it decides duplicates at once and writes `events.by_user`; one of many
writes `events.admitted`, and duplicates are decided behind it (`streams.ingest.sequencer`).

`run` starts the loops behind this one beside it; a loop that fails raises and its process
ends: the supervisor starts it again where it was committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np

from streams.bus.consume import Input, Loop, run_loops
from streams.bus.contract import Bus, BusError, Consumed, Outgoing, Record, last_records, polled
from streams.contract.clock import Clock
from streams.contract.topics import (
    ADMITTED,
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
)
from streams.erasure import Erasures
from streams.event_log import EventLog
from streams.ingest import dead_letters
from streams.ingest.admission import Admission, AdmissionLimits, admit
from streams.ingest.deduplication import SeenEvents
from streams.ingest.fanout import FanOut, fanned_out
from streams.ingest.partitioning import Load, Place, Placed, Source, place
from streams.ingest.recovery import Recovery
from streams.ingest.sequencer import Sequencer

_TRACEPARENT = "traceparent"
_PACE_S, _TURN_S = 0.05, 0.1


def run(
    bus: Bus,
    *,
    clock: Clock,
    limits: AdmissionLimits,
    stop: threading.Event,
    transactional: bool = True,
    group: str = "tidemill",
    instance: str = "0",
    entities: Collection[str] = tuple(ENTITY_TOPIC),
    doors: int = 1,
    log: EventLog | None = None,
) -> None:
    """Admits and sequences events, and fans them out, until `stop` is set. Blocks.

    `transactional=False` is for brokers without transactions and allows one process only.
    `doors`: how many processes run this beside each other; each must be told the same.
    `instance`: a name that this process keeps over restarts and shares with no other, so
    that its successor can end the transaction that a killed one left open. `entities`:
    whose topics are written beside the user's, where nobody reads the others. `log`: where
    copies are known from whose first was written before the topics began again.

    Raises:
        BusError: the broker failed or another process took this one's name or partitions;
            nothing is lost, and a new process goes on from the last commit.
    """

    options = (bus, clock, limits, transactional, group, instance, log)
    if doors == 1:
        _finish_admitted(bus, lambda: Sequencer(*options), stop)
    loops: dict[str, Callable[[], Loop]] = {"batcher": lambda: Batcher(*options, doors == 1)}
    if doors > 1:
        loops["sequencer"] = lambda: Sequencer(*options)
    if fanned_out(entities):
        loops["fanout"] = lambda: FanOut(bus, transactional, group, instance, entities)
    run_loops(loops, stop)


def _finish_admitted(bus: Bus, sequencer: Callable[[], Sequencer], stop: threading.Event) -> None:
    """What many doors admitted and nobody has sequenced goes before what the only one admits."""
    if not (last := last_records(bus, ADMITTED)):
        return
    loop = sequencer()
    try:
        while not stop.is_set() and (loop.turn(_TURN_S) or not loop.has_sequenced(last)):
            pass
    finally:
        loop.close()


class Batcher:
    """One consume-process-produce loop. Not thread-safe; `turn` is one round of it."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        limits: AdmissionLimits,
        transactional: bool = True,
        group: str = "tidemill",
        instance: str = "0",
        log: EventLog | None = None,
        alone: bool = True,
    ) -> None:
        """`alone`: no other process reads `behaviour`, so each user's events all come here.
        `log`: as of `SeenEvents`."""
        self._clock, self._limits = clock, limits
        self._seen = SeenEvents(bus, limits.duplicate_horizon_ms, log) if alone else None
        self._topic = EVENTS_BY_USER if alone else ADMITTED
        name = f"{group}-batcher-{instance}" if transactional else None
        self._producer = bus.producer(name)
        self._partitions = bus.partitions(self._topic)
        self._input = Input(bus, BEHAVIOUR, f"{group}-batcher", _PACE_S)
        self._every = bus.partitions(BEHAVIOUR)
        targets = [self._topic, BEHAVIOUR_DEAD]
        self._recovery = Recovery(bus, self._input, self._producer, targets, self._admitted)
        self._erasures = Erasures(bus)

    def turn(self, timeout_s: float) -> int:
        """Admits what one poll brings; returns the number of records it worked off."""
        records = self._input.poll(timeout_s)
        self._follow(self._input.generation)
        if not records:
            return 0
        out = self._admitted(records)
        self._producer.send(out, consumed=Consumed(self._input.consumer, records))
        return len(records)

    def close(self) -> None:
        self._input.consumer.close()
        self._erasures.close()
        self._producer.close()

    def _follow(self, generation: int) -> None:
        """Partitions may have changed hands; the only door must have kept all of them.

        None is no company yet: so it is while the group's members join.
        """
        if self._seen:
            self._seen.follow(generation)
            if 0 < (held := len(self._input.consumer.assignment())) < self._every:
                raise BusError(
                    f"this door reads {held} of the {self._every} partitions of {BEHAVIOUR!r}, and "
                    "another process the others: stop one of them, or set broker.doors "
                    "(TIDEMILL_BROKER__DOORS) to the number of both, for every one of them"
                )
        self._recovery.refresh()

    def _admitted(self, records: Sequence[Record]) -> list[Outgoing]:
        """The messages that these records become, dead letters included."""
        self._erasures.refresh()
        now_ms = self._clock.now_ms()
        admission = admit(records, now_ms, self._limits, self._erasures.until)
        placed = self._placed(records, admission)
        out = list(placed.messages()) if not self._seen else self._seen.sequenced(placed, now_ms)
        return out + self._dead(records, admission, now_ms)

    def _placed(self, records: Sequence[Record], admission: Admission) -> Placed:
        table = admission.table
        source = Source(
            self._input.epoch,
            table["source_partition"].to_numpy().astype(np.int64),
            table["source_offset"].to_numpy(),
        )
        load = Load(table, source, _traces(records, admission.rows.tolist()))
        return place(load, "user_id", self._topic, self._partitions, self._recovery.places)

    def _dead(self, records: Sequence[Record], admission: Admission, now_ms: int) -> list[Outgoing]:
        letters = []
        for refusal in sorted(admission.refused, key=lambda refusal: refusal.row):
            record = records[refusal.row]
            at: Place = (BEHAVIOUR_DEAD, 0, record.partition)
            if record.offset > self._recovery.places.get(at, -1):
                cause = (refusal.cause, refusal.detail)
                letters.append(dead_letters.letter(record, *cause, self._input.epoch, now_ms))
        return letters


def _traces(records: Sequence[Record], rows: Sequence[int]) -> dict[int, str]:
    """Row of the admitted table -> traceparent of the record it came from."""
    if not polled(records).any_headers:
        return {}
    found = ((i, records[row].header(_TRACEPARENT)) for i, row in enumerate(rows))
    return {i: trace.decode("ascii", "replace") for i, trace in found if trace is not None}
