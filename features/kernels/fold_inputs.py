"""What a fold is given and gives back, as tables of numbers for compiled code.

Knows dtypes and shapes. Does not know declarations (`features.rows.aggregate` fills the tables)
or how events are folded (`features.kernels.fold`). One entity's events are M, its lists L.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streams.kernels.arrays import (
    BoolTable,
    Int64s,
    Int64Table,
    MutableInt64s,
    MutableUint8s,
    MutableUint64s,
    Uint8s,
    Uint64s,
)


class RowBuffers(NamedTuple):
    """Row `place[k]` of the batch lies as `size[k]` bytes (0: none) at `start[k]` of `cached`
    and, from its end on, of `read`."""

    cached: Uint8s
    read: Uint8s
    start: Int64s
    size: Int64s
    place: Int64s  # ascending


class Events(NamedTuple):
    """Row r's events are `order[first[r]:first[r + 1]]`, all of one partition."""

    first: Int64s  # [rows + 1]
    order: Int64s  # [M]
    row: Int64s  # [M]
    time: Int64s  # [M], ms
    kind: Uint8s  # [M]
    hash: Uint64s  # [M], of (user id, event id)
    offset: Int64s  # [M], of the message that brought the event
    partition: Uint64s  # [M], of the message
    addend: Int64Table  # [sources, M], what each event adds to a sum; ones to a count
    text_bytes: Int64Table  # [L, M], -1: nothing for this list
    text_start: Int64Table  # [L, M], in `text`
    text: Uint8s


class Rules(NamedTuple):
    """What one entity's declarations say.

    Kind k adds by the rules `first[k]` to `first[k + 1]`. A tile that ends `keep_ms` before the
    row's newest event is left out.
    """

    fingerprint: np.uint64
    recent: int  # ids of events that a row keeps
    first: Int64s  # [257]
    key: Uint64s  # of the tile at index 0
    tile_ms: Int64s  # 0: one tile for all time
    source: Int64s  # row of `Events.addend`
    keep_ms: Int64Table  # [tile sizes, counters]
    size_ms: Int64s  # [tile sizes]
    list_takes: BoolTable  # [L, 256], by kind
    list_keeps: Int64s  # [L], entries


class Origin(NamedTuple):
    """Of all events of a batch and of the rows that it makes."""

    topic_id: np.uint64
    rebuild_id: np.uint64  # rows of another count as empty, but for their erasure


class FoldOutput(NamedTuple):
    """The C rows that a batch changes."""

    changed: MutableInt64s  # [C], places in `RowBuffers.place`
    data: MutableUint8s
    offsets: MutableInt64s  # [C + 1], of the rows in `data`
    digest_before: MutableUint64s  # [C], of the bytes that a row was made of; 0: no row
    newest_ms: MutableInt64s  # [C]
    foreign: int  # rows, changed or not, of this rebuild that follow other declarations
