"""Messages to columns: a whole poll of JSON at once, row by row only where that fails.

Knows the event contract's types and bounds (`streams.contract.events`) in columnar form. Does not
know time limits (`streams.ingest.admission`) nor where a message came from.

The fast path is a compiled scan (`streams.codec.json`) that is stricter than the contract. A
row that it does not take is not refused: pydantic judges it alone. So the fast path may be
wrong in one direction only, and pydantic stays the one definition of a good event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from streams.contract import events
from streams.contract.events import EVENT, KIND_CODE, KINDS, Event
from streams.contract.schema import EVENT_SCHEMA

MAX_EVENT_BYTES = 65_536
_CHUNK_BYTES = 64 * 2**20

_NAMES = [
    "event_id",
    "user_id",
    "kind",
    "event_time_ms",
    "surface",
    "origin",
    "request_id",
    "impression",
    "video_id",
    "author_id",
    "provenance",
    "query",
    "dwell_ms",
    "amount_cents",
]
DECODED_SCHEMA = pa.schema([EVENT_SCHEMA.field(name) for name in _NAMES])
"""The columns of EVENT_SCHEMA that a producer states."""

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Judge = Callable[[bytes | None], Event | tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the message at `row` of its poll is a dead letter."""

    row: int
    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """`table` (DECODED_SCHEMA) holds the good messages; `rows` (int64, ascending) which."""

    rows: Rows
    table: pa.Table
    refused: list[Refusal]


def decode(values: Sequence[bytes | None], max_bytes: int = MAX_EVENT_BYTES) -> Decoded:
    """Every message is either a row of `table` or one `Refusal`. Raises nothing."""
    from streams.codec.json import scanned

    readable, sizes = _readable(values, max_bytes)
    parts: list[tuple[Rows, pa.Table]] = []
    doubtful = np.ones(len(values), dtype=np.bool_)
    for start, stop in _chunks(sizes):
        rows, columns = scanned(readable[start:stop], sizes[start:stop])
        rows += start
        doubtful[rows] = False
        cast = [columns[field.name].cast(field.type) for field in DECODED_SCHEMA]
        parts.append((rows, pa.Table.from_arrays(cast, schema=DECODED_SCHEMA)))
    alone = np.flatnonzero(doubtful).tolist()
    refused = judge_rows(values, alone, partial(judge, max_bytes=max_bytes), parts)
    return Decoded(*in_order(parts), refused)


def _readable(values: Sequence[bytes | None], max_bytes: int) -> tuple[Sequence[bytes], Rows]:
    """The values, and their bytes (int64 [N]); nothing where there is no value or too much."""
    try:
        sizes = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    except TypeError:  # a message without a value, which hardly ever comes
        return _readable([b"" if value is None else value for value in values], max_bytes)
    whole = cast(Sequence[bytes], values)
    if int(sizes.max(initial=0)) <= max_bytes:
        return whole, sizes
    return _readable([v if len(v) <= max_bytes else b"" for v in whole], max_bytes)


def _chunks(sizes: Rows) -> Iterator[tuple[int, int]]:
    """(start, stop) of rows that are scanned together: all of a poll, unless it is huge."""
    ends = np.cumsum(sizes)
    start = before = 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK_BYTES)))
        yield start, stop
        start, before = stop, int(ends[stop - 1])


def _kinds_with(field: str) -> Mask:
    """By kind code: whether that kind of event states `field`."""
    union = get_args(get_args(Event)[0])
    stating = {m.model_fields["kind"].default for m in union if field in m.model_fields}
    return np.array([kind in stating for kind in KINDS])


_HAS_VIDEO, _HAS_QUERY = _kinds_with("video_id"), _kinds_with("query")
_HAS_DWELL, _HAS_AMOUNT = _kinds_with("dwell_ms"), _kinds_with("amount_cents")
_ALLOWED = {
    "surface": pa.array(get_args(events.Surface)),
    "origin": pa.array(get_args(events.Origin)),
    "provenance": pa.array(get_args(events.Provenance)),
    "kind": pa.array(KINDS),
}


def vouched(table: pa.Table) -> Mask:
    """Rows that pydantic would certainly take. Lengths are in bytes, hence never too lax."""

    def text(name: str, most: int, absent: bool) -> Mask:
        length = pc.fill_null(pc.binary_length(table[name]), 1 if absent else 0).to_numpy()
        return np.asarray((length >= 1) & (length <= most))

    def number(name: str, least: int, most: int, absent: int) -> Mask:
        value = pc.fill_null(table[name], absent).to_numpy()
        return np.asarray((value >= least) & (value <= most))

    def known(name: str) -> Mask:
        column = table[name]
        allowed = pc.is_in(column, value_set=_ALLOWED[name])
        return np.asarray(pc.or_(allowed, pc.is_null(column)).to_numpy())

    kind = _codes(table)
    sound = kind < len(KINDS)
    kind = np.where(sound, kind, 0)
    sound &= text("event_id", events.MAX_ID, False) & text("user_id", events.MAX_ID, False)
    sound &= number("event_time_ms", events.MIN_EVENT_TIME_MS, events.MAX_EVENT_TIME_MS, 0)
    sound &= known("surface") & known("origin") & known("provenance")
    sound &= text("request_id", events.MAX_ID, True) & text("author_id", events.MAX_ID, True)
    sound &= text("impression", events.MAX_IMPRESSION, True)
    sound &= text("video_id", events.MAX_ID, False) | ~_HAS_VIDEO[kind]
    sound &= text("query", events.MAX_QUERY, False) | ~_HAS_QUERY[kind]
    sound &= number("dwell_ms", 0, events.MAX_DWELL_MS, 0)
    return sound & number("amount_cents", 0, events.MAX_AMOUNT_CENTS, 0)


def _codes(table: pa.Table) -> npt.NDArray[np.uint8]:
    """uint8 [N]: index into KINDS, 255 where the kind is unknown or absent."""
    found = pc.fill_null(pc.index_in(table["kind"], value_set=_ALLOWED["kind"]), 255)
    return np.asarray(found.to_numpy().astype(np.uint8))


def finish(table: pa.Table) -> pa.Table:
    """Vouched rows with the contract's defaults, and nulls where a kind states no such field."""
    kind = _codes(table)

    def only(has: Mask, column: Any) -> Any:
        mask = has[kind]
        return column if mask.all() else pc.if_else(pa.array(mask), column, None)

    filled: dict[str, Callable[[Any], Any]] = {
        "kind": lambda _: pa.array(kind),
        "surface": lambda column: pc.fill_null(column, "external"),
        "origin": lambda column: pc.fill_null(column, "live"),
        "video_id": lambda column: only(_HAS_VIDEO, column),
        "author_id": lambda column: only(_HAS_VIDEO, column),
        "provenance": lambda column: only(_HAS_VIDEO, pc.fill_null(column, "human")),
        "query": lambda column: only(_HAS_QUERY, column),
        "dwell_ms": lambda column: only(_HAS_DWELL, pc.fill_null(column, 0).cast(pa.int32())),
        "amount_cents": lambda column: only(_HAS_AMOUNT, pc.fill_null(column, 0)),
    }
    columns = [filled.get(name, lambda column: column)(table[name]) for name in _NAMES]
    return pa.Table.from_arrays(columns, schema=DECODED_SCHEMA)


def judge_rows(
    values: Sequence[bytes | None],
    rows: Sequence[int],
    judge: Judge,
    parts: list[tuple[Rows, pa.Table]],
) -> list[Refusal]:
    """The judge's verdict on each of `rows`: the good ones join `parts`."""
    refused: list[Refusal] = []
    kept: list[int] = []
    good: list[dict[str, Any]] = []
    for row in rows:
        verdict = judge(values[row])
        if isinstance(verdict, tuple):
            refused.append(Refusal(row, *verdict))
        else:
            kept.append(row)
            good.append(verdict.model_dump() | {"kind": KIND_CODE[verdict.kind]})
    if kept:
        where = np.array(kept, dtype=np.int64)
        parts.append((where, pa.Table.from_pylist(good, schema=DECODED_SCHEMA)))
    return refused


def judge(value: bytes | None, max_bytes: int = MAX_EVENT_BYTES) -> Event | tuple[str, str]:
    """The event in one message, or (cause, detail) of its refusal."""
    if value is None or len(value) > max_bytes:
        return unreadable(value, max_bytes)
    try:
        return EVENT.validate_json(value)
    except ValidationError as error:
        cause, detail = refusal_of(error)
        if cause == "not_json" and not is_text(value):
            return "undecodable", "the bytes are not UTF-8"
        return cause, detail


def unreadable(value: bytes | None, max_bytes: int) -> tuple[str, str]:
    """(cause, detail) of a message that has no value or more than `max_bytes`."""
    if value is None:
        return "null_value", "the message has no value"
    return "too_large", f"{len(value)} bytes, an event may have {max_bytes}"


_CAUSES = {
    "json_invalid": "not_json",
    "model_attributes_type": "not_an_object",
    "model_type": "not_an_object",
    "dict_type": "not_an_object",
    "union_tag_invalid": "unknown_kind",
    "union_tag_not_found": "missing_field",
    "missing": "missing_field",
    "int_type": "wrong_type",
    "int_from_float": "wrong_type",
    "string_type": "wrong_type",
    "literal_error": "unknown_value",
}


def refusal_of(error: ValidationError) -> tuple[str, str]:
    """(cause, detail) of what pydantic found first."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"][-1:])
    cause = _CAUSES.get(first["type"], "out_of_bounds")
    detail = f"{field}: {first['msg']}" if field else first["msg"]
    if field == "event_time_ms" and cause in ("out_of_bounds", "wrong_type"):
        detail += f" ({_time_fix(first['input'])})"
    return cause, detail[:300]


# How many milliseconds one of a unit has, and what a producer does about it.
_UNITS = (
    (1_000, "these look like seconds: multiply by 1000"),
    (1e-3, "these look like microseconds: divide by 1000"),
    (1e-6, "these look like nanoseconds: divide by 1000000"),
)


def _time_fix(stated: object) -> str:
    """What to do about a time that is no whole number of milliseconds since 1970."""
    if isinstance(stated, str):
        return "send a number, not a string: whole milliseconds since 1970"
    if isinstance(stated, int | float):
        for size, fix in _UNITS:
            # Not `stated * size`: an integer may be too large for a float.
            if events.MIN_EVENT_TIME_MS / size <= stated <= events.MAX_EVENT_TIME_MS / size:
                return fix
    return "send whole milliseconds since 1970"


def is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def in_order(parts: list[tuple[Rows, pa.Table]]) -> tuple[Rows, pa.Table]:
    """All parts as one table, in the order in which the messages lay."""
    if not parts:
        return np.empty(0, dtype=np.int64), DECODED_SCHEMA.empty_table()
    rows = np.concatenate([rows for rows, _ in parts])
    table = pa.concat_tables([table for _, table in parts])
    if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):
        return rows, table
    order = np.argsort(rows)
    return rows[order], table.take(pa.array(order))
