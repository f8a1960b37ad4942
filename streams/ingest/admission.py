"""Admission: which messages are events, and which are late, ancient, future or erased.

Knows limits and clocks: records, `now_ms` and limits in; admitted rows and refusals out. Pure.
Does not know brokers (`streams.ingest.service`) nor duplicates (`streams.ingest.deduplication`),
which need memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.polled import Polled, Record, polled
from streams.codec.content_type import decode_records
from streams.codec.decode import MAX_EVENT_BYTES, Decoded, RejectedMessage
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS
from streams.contract.schema import event_schema

REPLAY_HEADER = "tidemill-replay"
"""A record with this header set to 1 is replayed history: it arrived at its event time."""


@dataclass(frozen=True)
class AdmissionLimits:
    """Milliseconds of the stack's clock; the settings' section `admission` fills it."""

    lateness_ms: int = HOUR_MS  # older: admitted, marked late
    horizon_ms: int = 400 * DAY_MS  # older: dead letter "ancient"
    future_ms: int = 5 * MINUTE_MS  # further ahead: dead letter "future"
    duplicate_horizon_ms: int = DAY_MS  # the same (user_id, event_id) within it counts once
    max_event_bytes: int = MAX_EVENT_BYTES
    # Caps of one user (`streams.ingest.caps`). Off here, since tests count every event.
    idempotent: tuple[str, ...] = ()  # of an item, these count once within the duplicate horizon
    actions_a_minute: int | None = None  # deliberate actions of one user; None: no limit


@dataclass(frozen=True, slots=True)
class Admission:
    """`table` (`event_schema`, duplicates not yet decided) holds the admitted records.

    `rows` (int64, ascending) are their indexes in the poll; `refused` names all others.
    """

    rows: npt.NDArray[np.int64]
    table: pa.Table
    refused: list[RejectedMessage]


def admit(
    records: Sequence[Record],
    now_ms: int,
    limits: AdmissionLimits,
    erased: Mapping[str, int] | None = None,
) -> Admission:
    """Admits or refuses each record of one poll of `behaviour`.

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
    refused = decoded.rejected + _refuse(decoded, refusals, times, now_ms)
    kept = ~np.logical_or.reduce(list(refusals.values()))
    table = _stamp(decoded, poll, replayed, now_ms, limits)
    if not kept.all():
        return Admission(decoded.rows[kept], table.filter(pa.array(kept)), refused)
    return Admission(decoded.rows, table, refused)


def _replayed(poll: Polled) -> npt.NDArray[np.bool_]:
    if not poll.any_headers:
        return np.zeros(len(poll), dtype=np.bool_)
    replayed = (bool(r.headers) and r.header(REPLAY_HEADER) == b"1" for r in poll)
    return np.fromiter(replayed, dtype=np.bool_, count=len(poll))


def _erased(
    table: pa.Table, times: npt.NDArray[np.int64], erased: Mapping[str, int]
) -> npt.NDArray[np.bool_]:
    if not erased:
        return np.zeros(len(times), dtype=np.bool_)
    user = pc.index_in(table["user_id"], value_set=pa.array(list(erased), pa.string()))
    until = np.append(np.fromiter(erased.values(), dtype=np.int64), np.iinfo(np.int64).min)
    return np.asarray(times <= until[pc.fill_null(user, len(erased)).to_numpy()])


def _refuse(
    decoded: Decoded,
    refusals: Mapping[str, npt.NDArray[np.bool_]],
    times: npt.NDArray[np.int64],
    now_ms: int,
) -> list[RejectedMessage]:
    """One refusal per row, with the first cause that applies."""
    causes: dict[int, str] = {}
    for cause, mask in refusals.items():
        for row in np.flatnonzero(mask).tolist():
            causes.setdefault(row, cause)
    return [
        RejectedMessage(
            int(decoded.rows[i]), cause, f"event_time_ms {times[i]}, admitted at {now_ms}"
        )
        for i, cause in causes.items()
    ]


def _stamp(
    decoded: Decoded,
    poll: Polled,
    replayed: npt.NDArray[np.bool_],
    now_ms: int,
    limits: AdmissionLimits,
) -> pa.Table:
    """The decoded columns, plus what admission decides and each row's source."""
    times = decoded.table["event_time_ms"].to_numpy()
    stamped = {
        "ingested_at_ms": np.where(replayed, times, now_ms),
        "late": (times < now_ms - limits.lateness_ms) & ~replayed,
        "duplicate": np.zeros(len(times), dtype=np.bool_),
        "source_partition": poll.partitions[decoded.rows],
        "source_offset": poll.offsets[decoded.rows],
    }
    schema = event_schema()
    columns = [
        pa.array(stamped[field.name], field.type)
        if field.name in stamped
        else decoded.table[field.name]
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
