"""Confluent's framing: a zero byte and a schema id before the message that a serializer writes.

Knows the frame's bytes, and the list of message indexes that follows it before Protobuf. Does not
look a schema up: events have this project's own contract, whatever a registry calls it.

The first byte alone decides. No JSON text begins with a zero byte, and no Protobuf message does: it
would be the tag of field number 0, which no schema can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = 0
HEADER_BYTES = 5  # the magic byte, and the schema id as a big-endian int32
_MAX_VARINT_BYTES = 5  # indexes are int32

Ints = npt.NDArray[np.int64]


class TornFrameError(ValueError):
    """The message ends inside its frame."""


class Frame(NamedTuple):
    """What a serializer wrote: the id that a registry gave the schema, and the message."""

    schema_id: int
    payload: bytes


def is_framed(value: bytes) -> bool:
    return value[:1] == b"\0"


def read_frame(value: bytes) -> Frame:
    """The frame of a value for which `is_framed` holds.

    Raises:
        TornFrameError: nothing follows the frame, or it is cut off.
    """
    if len(value) <= HEADER_BYTES:
        raise TornFrameError(
            f"a Confluent frame is {HEADER_BYTES} bytes (0 and a schema id) with a message behind "
            f"them; this value has {len(value)} bytes in all"
        )
    return Frame(int.from_bytes(value[1:HEADER_BYTES], "big"), value[HEADER_BYTES:])


def without_indexes(payload: bytes) -> bytes:
    """A framed Protobuf payload without its list of message indexes, which names the message in the
    producer's .proto file: their count and each of them as zigzag varints; a single 0 means [0].

    Raises:
        TornFrameError: the list is cut off, or it states a negative count.
    """
    count, at = _zigzag(payload, 0)
    if count < 0:
        raise TornFrameError(f"the frame states {count} message indexes")
    for _ in range(count):
        _, at = _zigzag(payload, at)
    return payload[at:]


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    """The number of a zigzag varint, and the place behind it."""
    number = 0
    for i, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number >> 1 ^ -(number & 1), at + i + 1
    raise TornFrameError("the frame's list of message indexes is cut off")


def framed_rows(data: npt.NDArray[np.uint8], starts: Ints, sizes: Ints) -> Ints:
    """The indexes of values with a whole frame. Value r is `sizes[r]` bytes of `data` from
    `starts[r]`; of an empty one, the byte there is read too."""
    return np.flatnonzero((data[starts] == MAGIC) & (sizes > HEADER_BYTES))


def without_frames(
    values: Sequence[bytes], sizes: Ints, framed: Ints
) -> tuple[Sequence[bytes], Ints]:
    """The values and sizes, those at `framed` without their frames."""
    bare, bare_sizes = list(values), sizes.copy()
    for row in framed.tolist():
        bare[row] = bare[row][HEADER_BYTES:]
    bare_sizes[framed] -= HEADER_BYTES
    return bare, bare_sizes
