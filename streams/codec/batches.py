"""Messages of the internal topics: Arrow batches, or None for what no writer of ours wrote.

Knows records, EVENT_SCHEMA and what makes a batch unreadable. Does not know what a reader does
with rows. An internal topic has no dead letters: a foreign message is named in a log line, counted
and skipped, and its offset is committed like any other. A batch of a newer version is not foreign:
its reader stops.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.polled import Record
from streams.contract.declaration import contract
from streams.contract.schema import from_ipc
from streams.contract.signals import SHIPPED
from streams.telemetry import set_aside


class NewerWriterError(RuntimeError):
    """A batch holds event kinds that this version does not know: upgrade this process.

    Nothing is wrong with the batch, so it is neither skipped nor set aside.
    """


UNREADABLE = (pa.ArrowException, ValueError, TypeError, LookupError, OSError)


def read_batch(record: Record, read: Callable[[bytes], pa.Table] = from_ipc) -> pa.Table | None:
    """The batch in a record of an internal topic; None if it is unreadable.

    Raises:
        NewerWriterError: the batch was written by a newer version.
    """
    return read_value(record.value, (record.topic, record.partition, record.offset), read)


def read_value(
    value: bytes | None, place: tuple[str, int, int], read: Callable[[bytes], pa.Table]
) -> pa.Table | None:
    """As `read_batch`, for a message's value. `place`: topic, partition and offset."""
    try:
        table = read(value or b"")
        if problem := _problem(table):
            raise ValueError(problem)
    except UNREADABLE as error:
        set_aside("batch", "/".join(map(str, place)), repr(error) if value else "it has no value")
        return None
    _check_version(table, place)
    return table


def _check_version(table: pa.Table, place: tuple[str, int, int]) -> None:
    if "kind" not in table.column_names or not table.num_rows:
        return
    newest = pc.max(table["kind"]).as_py()
    if not isinstance(newest, int) or newest < len(SHIPPED):
        return
    unknown = sorted({*pc.unique(table["kind"]).to_pylist()} - contract().signals.numbers)
    if unknown:
        raise NewerWriterError(
            f"{'/'.join(map(str, place))} holds event kind {unknown[0]}, unknown to this version: "
            "upgrade this process, or restart it with the settings that declare the signal"
        )


def _problem(table: pa.Table) -> str:
    """What readers of EVENT_SCHEMA rely on and Arrow does not check."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            return f"{field.name} has nulls"
    return ""
