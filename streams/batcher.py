"""The loop behind the door: `behaviour` in, `events.admitted` and dead letters out.

Knows polls, commits and epochs. Judges nothing itself (`streams.admission`) and decides no
duplicates (`streams.sequencer`). `run` starts the loops behind this one beside it; a loop
that fails raises and its process ends: the supervisor starts it again where it was committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np

from streams import dead_letters
from streams.admission import Admission, AdmissionLimits, admit
from streams.bus import Bus, Consumed, Outgoing, Record, polled
from streams.clock import Clock
from streams.erasure import Erasures
from streams.fanout import FanOut, fanned_out
from streams.loop import Input, Loop, run_loops
from streams.sequencer import Sequencer
from streams.shuffle import Load, Place, Source, Written, shuffle
from streams.topics import ADMITTED, BEHAVIOUR, BEHAVIOUR_DEAD, ENTITY_TOPIC

_TRACEPARENT = "traceparent"
_PACE_S = 0.02


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
) -> None:
    """Admits and sequences events, and fans them out, until `stop` is set. Blocks.

    `transactional=False` is for brokers without transactions and allows one process only.
    `instance`: a name that this process keeps over restarts and shares with no other, so
    that its successor can end the transaction that a killed one left open. `entities`:
    whose topics are written beside the user's, where nobody reads the others.

    Raises:
        BusError: the broker failed or another process took this one's name or partitions;
            nothing is lost, and a new process goes on from the last commit.
    """

    def batcher() -> Loop:
        return Batcher(bus, clock, limits, transactional, group, instance)

    def sequencer() -> Loop:
        return Sequencer(bus, clock, limits, transactional, group, instance)

    def fanout() -> Loop:
        return FanOut(bus, transactional, group, instance, entities)

    loops: dict[str, Callable[[], Loop]] = {"batcher": batcher, "sequencer": sequencer}
    run_loops(loops | ({"fanout": fanout} if fanned_out(entities) else {}), stop)


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
    ) -> None:
        self._clock, self._limits = clock, limits
        name = f"{group}-batcher-{instance}" if transactional else None
        self._producer = bus.producer(name)
        self._partitions = len(bus.ends(ADMITTED))
        self._input = Input(bus, BEHAVIOUR, f"{group}-batcher", _PACE_S)
        targets = [] if transactional else [ADMITTED, BEHAVIOUR_DEAD]
        self._written = Written(bus, targets, self._input.epoch)
        self._erasures = Erasures(bus)

    def turn(self, timeout_s: float) -> int:
        """Admits what one poll brings; returns the number of records it worked off."""
        records = self._input.poll(timeout_s)
        if not records:
            return 0
        self._written.refresh(self._input.generation)
        self._erasures.refresh()
        now_ms = self._clock.now_ms()
        admission = admit(records, now_ms, self._limits, self._erasures.until)
        out = [*self._admitted(records, admission), *self._dead(records, admission, now_ms)]
        self._producer.send(out, consumed=Consumed(self._input.consumer, records))
        return len(records)

    def close(self) -> None:
        self._input.consumer.close()
        self._erasures.close()
        self._producer.close()

    def _admitted(self, records: Sequence[Record], admission: Admission) -> list[Outgoing]:
        table = admission.table
        source = Source(
            self._input.epoch,
            table["source_partition"].to_numpy().astype(np.int64),
            table["source_offset"].to_numpy(),
        )
        load = Load(table, source, _traces(records, admission.rows.tolist()))
        written = self._written.places
        return list(shuffle(load, "user_id", ADMITTED, self._partitions, written))

    def _dead(self, records: Sequence[Record], admission: Admission, now_ms: int) -> list[Outgoing]:
        letters = []
        for refusal in sorted(admission.refused, key=lambda refusal: refusal.row):
            record = records[refusal.row]
            place: Place = (BEHAVIOUR_DEAD, 0, record.partition)
            if record.offset > self._written.places.get(place, -1):
                cause = (refusal.cause, refusal.detail)
                letters.append(dead_letters.letter(record, *cause, self._input.epoch, now_ms))
        return letters


def _traces(records: Sequence[Record], rows: Sequence[int]) -> dict[int, str]:
    """Row of the admitted table -> traceparent of the record it came from."""
    if not polled(records).any_headers:
        return {}
    found = ((i, records[row].header(_TRACEPARENT)) for i, row in enumerate(rows))
    return {i: trace.decode("ascii", "replace") for i, trace in found if trace is not None}
