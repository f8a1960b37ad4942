"""Compare-and-set of many rows: the scripts that decide, and calls packed for them.

Knows the scripts' arguments and Feast's fields. Does not know connections nor what a row
means. A call is packed by hand because a client library's packing costs more than the
fold itself; what is short goes packed into one argument, because the server pays for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.connection import Call, bulk
from features.feast_format import BYTES_TAG, TIMESTAMP_BYTES, RowFormat, timestamps
from features.spans import Spans, readable_bytes
from features.tiles import DIGEST_BYTES, digests

# One row's share of the packed argument: the digest that must be stored (zeros for none),
# the length of the time, and the time in Feast's bytes.
_CONDITION = np.dtype(
    [("digest", "u1", DIGEST_BYTES), ("length", "u1"), ("time", "u1", TIMESTAMP_BYTES)]
)

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


class Swap:
    """Packs calls of `SWAP` for one entity's rows under one generation."""

    def __init__(self, layout: RowFormat, meta: bytes, generation: int) -> None:
        self._layout, self._meta = layout, bulk(meta)
        fields = (b"%d" % generation, layout.row_field, layout.time_field)
        self._fixed = b"".join(map(bulk, fields))

    def calls(
        self, ids: Spans, before: Spans, rows: Spans, times: np.ndarray, size: int
    ) -> Iterator[Call]:
        """Writes `rows` with event times (int64 [N], ms) where the stored rows are still
        `before` (an empty span: none); `size` rows by each call."""
        from features.packing import packed_values

        conditions, data = _conditions(before, times), readable_bytes(rows.data)
        for start in range(0, len(ids), size):
            part = slice(start, min(start + size, len(ids)))
            bounds = slice(start, part.stop + 1)
            values = packed_values(data, rows.offsets[bounds], BYTES_TAG)
            keys = self._layout.packed_keys(Spans(ids.data, ids.offsets[bounds]))
            condition, n = bulk(conditions[part].tobytes()), part.stop - start
            first = b"".join((self._meta, keys, self._fixed, condition))
            yield Call(n + 1, 5 + 2 * n, first, memoryview(values))


def _conditions(before: Spans, times: np.ndarray) -> np.ndarray:
    found = np.empty(len(before), _CONDITION)
    found["digest"] = digests(before)
    found["time"], found["length"] = timestamps(times)
    return found
