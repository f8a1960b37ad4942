"""The one door: which messages are events, and what is late, ancient, future or erased.

Pure: records, `now_ms` and limits in; admitted rows and refusals out. Does not know
brokers (`streams.ingest.service`), nor duplicates (`streams.ingest.sequencer`), which need memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Polled, Record, polled
from streams.codec.content_type import decode_records
from streams.codec.decode import MAX_EVENT_BYTES, Decoded, Refusal
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS
from streams.contract.schema import EVENT_SCHEMA

REPLAY_HEADER = "tidemill-replay"
"""A record with this header set to 1 is history being loaded: it arrived when it happened."""


@dataclass(frozen=True)
class AdmissionLimits:
    """Milliseconds of the stack's clock; the settings' section `admission` fills it."""

    lateness_ms: int = HOUR_MS  # older: admitted, marked late
    horizon_ms: int = 400 * DAY_MS  # older: dead letter "ancient"
    future_ms: int = 5 * MINUTE_MS  # further ahead: dead letter "future"
    duplicate_horizon_ms: int = DAY_MS  # the same (user_id, event_id) within it counts once
    max_event_bytes: int = MAX_EVENT_BYTES


@dataclass(frozen=True, slots=True)
class Admission:
    """`table` (EVENT_SCHEMA, duplicates not yet decided) holds the admitted records.

    `rows` (int64, ascending) are their indexes in the poll; `refused` names all others.
    """

    rows: npt.NDArray[np.int64]
    table: pa.Table
    refused: list[Refusal]


def admit(
    records: Sequence[Record],
    now_ms: int,
    limits: AdmissionLimits,
    erased: Mapping[str, int] | None = None,
) -> Admission:
    """Judges one poll of `behaviour`.

    `erased`: user id -> time of erasure in ms; events of that user up to it are refused.
    Replayed history is neither late nor ancient, but may not lie in the future.
    """
    poll = polled(records)
    decoded = decode_records(poll, limits.max_event_bytes)
    replayed = _replayed(poll)[decoded.rows]
    times = decoded.table["event_time_ms"].to_numpy()
    refusals = {
        "future": times > now_ms + limits.future_ms,
        "ancient": (times < now_ms - limits.horizon_ms) & ~replayed,
        "erased": _erased(decoded.table, times, erased or {}),
    }
    refused = decoded.refused + _refuse(decoded, refusals, times, now_ms)
    kept = ~np.logical_or.reduce(list(refusals.values()))
    table = _stamp(decoded, poll, replayed, now_ms, limits)
    if not kept.all():
        return Admission(decoded.rows[kept], table.filter(pa.array(kept)), refused)
    return Admission(decoded.rows, table, refused)


def _replayed(poll: Polled) -> npt.NDArray[np.bool_]:
    if not poll.any_headers:
        return np.zeros(len(poll), dtype=np.bool_)
    marked = (bool(r.headers) and r.header(REPLAY_HEADER) == b"1" for r in poll)
    return np.fromiter(marked, dtype=np.bool_, count=len(poll))


def _erased(
    table: pa.Table, times: npt.NDArray[np.int64], erased: Mapping[str, int]
) -> npt.NDArray[np.bool_]:
    if not erased:
        return np.zeros(len(times), dtype=np.bool_)
    place = pc.index_in(table["user_id"], value_set=pa.array(list(erased), pa.string()))
    until = np.append(np.fromiter(erased.values(), dtype=np.int64), np.iinfo(np.int64).min)
    return np.asarray(times <= until[pc.fill_null(place, len(erased)).to_numpy()])


def _refuse(
    decoded: Decoded,
    refusals: Mapping[str, npt.NDArray[np.bool_]],
    times: npt.NDArray[np.int64],
    now_ms: int,
) -> list[Refusal]:
    """One refusal a row, under the first cause that applies."""
    causes: dict[int, str] = {}
    for cause, mask in refusals.items():
        for place in np.flatnonzero(mask).tolist():
            causes.setdefault(place, cause)
    return [
        Refusal(int(decoded.rows[i]), cause, f"event_time_ms {times[i]}, admitted at {now_ms}")
        for i, cause in causes.items()
    ]


def _stamp(
    decoded: Decoded,
    poll: Polled,
    replayed: npt.NDArray[np.bool_],
    now_ms: int,
    limits: AdmissionLimits,
) -> pa.Table:
    """The decoded columns with what admission decides and where each row came from."""
    times = decoded.table["event_time_ms"].to_numpy()
    decided = {
        "ingested_at_ms": np.where(replayed, times, now_ms),
        "late": (times < now_ms - limits.lateness_ms) & ~replayed,
        "duplicate": np.zeros(len(times), dtype=np.bool_),
        "source_partition": poll.partitions[decoded.rows],
        "source_offset": poll.offsets[decoded.rows],
    }
    columns = [
        pa.array(decided[field.name], field.type)
        if field.name in decided
        else decoded.table[field.name]
        for field in EVENT_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)
