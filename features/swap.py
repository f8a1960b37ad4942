"""Compare-and-set of many rows: the scripts that decide, and calls packed for them.

Knows the scripts' arguments and Feast's fields. Does not know connections nor what a row
means. A call is packed by hand because a client library's packing costs more than the
fold itself; what is short goes packed into one argument, because the server pays for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from features.connection import Call, bulk
from features.feast_format import TIMESTAMP_BYTES, RowFormat, timestamps, wrap_head
from features.tiles import DIGEST_BYTES

# One row's share of the packed argument: the digest that must be stored (zeros for none),
# the length of the time, and the time in Feast's bytes.
_CONDITION = np.dtype(
    [("digest", f"S{DIGEST_BYTES}"), ("length", "u1"), ("time", "u1", TIMESTAMP_BYTES)]
)
_NONE = bytes(DIGEST_BYTES)

# KEYS: the project's facts, then one row each. ARGV: generation, row field, time field,
# each row's `_CONDITION` in one string, then each row's new value.
SWAP = f"""
local call, sub, byte = redis.call, string.sub, string.byte
local field, time, conditions = ARGV[2], ARGV[3], ARGV[4]
if call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return {{-1}} end
local lost, none = {{}}, string.rep('\\0', {DIGEST_BYTES})
local at = 0
for i = 2, #KEYS do
  local now = call('HGET', KEYS[i], field)
  if (now and sub(now, -{DIGEST_BYTES}) or none) == sub(conditions, at + 1, at + {DIGEST_BYTES}) then
    local length = byte(conditions, at + {DIGEST_BYTES + 1})
    local stamp = sub(conditions, at + {DIGEST_BYTES + 2}, at + {DIGEST_BYTES + 1} + length)
    call('HSET', KEYS[i], field, ARGV[i + 3], time, stamp)
  else
    lost[#lost + 1] = i - 2
  end
  at = at + {_CONDITION.itemsize}
end
return lost
"""

# KEYS: rows. ARGV: row field, then per row the digest that must still be stored.
DROP = f"""
local dropped = 0
for i = 1, #KEYS do
  local now = redis.call('HGET', KEYS[i], ARGV[1])
  if now and string.sub(now, -{DIGEST_BYTES}) == ARGV[i + 1] then
    dropped = dropped + redis.call('UNLINK', KEYS[i])
  end
end
return dropped
"""

_END = b"\r\n"


class Swap:
    """Packs calls of `SWAP` for one entity's rows under one generation."""

    def __init__(self, layout: RowFormat, meta: bytes, generation: int) -> None:
        self._key, self._meta = layout.packed_key, bulk(meta)
        fields = (b"%d" % generation, layout.row_field, layout.time_field)
        self._fixed = b"".join(map(bulk, fields))

    def call(
        self,
        ids: Sequence[str],
        before: Sequence[bytes | None],
        blobs: Sequence[bytes],
        times: Sequence[int],
    ) -> Call:
        """Writes `blobs` with event times (ms) where the stored rows are still `before`."""
        conditions = _conditions(before, times)
        values = chain.from_iterable(zip(map(_row_head, map(len, blobs)), blobs, strict=True))
        packed = b"".join(
            (self._meta, *map(self._key, ids), self._fixed, conditions, *values, _END)
        )
        return Call(len(ids) + 1, 5 + 2 * len(ids), packed)


def _conditions(before: Sequence[bytes | None], times: Sequence[int]) -> bytes:
    """A RESP bulk string but for its end, which the next word brings."""
    found = np.empty(len(before), _CONDITION)
    found["digest"] = [_NONE if row is None else row[-DIGEST_BYTES:] for row in before]
    found["time"], found["length"] = timestamps(np.asarray(times, np.int64))
    return bulk(found.tobytes())[:-2]


@lru_cache(maxsize=65_536)
def _row_head(size: int) -> bytes:
    """The end of the word before, the bulk string's length, and what Feast sets before the
    row's bytes."""
    head = wrap_head(size)
    return b"\r\n$%d\r\n%b" % (len(head) + size, head)
