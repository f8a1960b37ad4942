"""Writes of many rows: the scripts that compare and set, calls packed for them, and the plain
commands of an owner.

Knows the scripts' arguments and Feast's fields. Does not know connections nor what a row
means. A call is packed by hand because a client library's packing costs more than the
fold itself; what is short goes packed into one argument, because the server pays for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.kernels.layout import DIGEST_BYTES
from features.online.connection import Call, bulk
from features.online.feast_keys import BYTES_TAG, TIMESTAMP_BYTES, RowFormat, timestamps
from features.rows.byte_slices import Spans, given, readable_bytes

SET_ROWS, SET_BYTES = 256, 1 << 20  # at once: what is queued should stay in the server's caches

# One row's share of the packed argument: the digest that must be stored (zeros for none),
# the length of the time, and the time in Feast's bytes.
_CONDITION = np.dtype([("digest", "<u8"), ("length", "u1"), ("time", "u1", TIMESTAMP_BYTES)])

# KEYS: the project's facts, the owner's key, then one row each. ARGV: generation, row field,
# time field, each row's `_CONDITION` in one string, the caller's token, then each row's new
# value. Replies with 1 if the caller is the owner, else 0, and the rows that lost. Whoever
# is not the owner ends the owner's claim: it writes what the owner has not seen.
SWAP = f"""
local call, sub, byte = redis.call, string.sub, string.byte
local field, time, conditions = ARGV[2], ARGV[3], ARGV[4]
if call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return {{-1}} end
local owner = call('GET', KEYS[2])
local owns = owner == ARGV[5]
if owner and not owns then call('UNLINK', KEYS[2]) end
local reply, none = {{owns and 1 or 0}}, string.rep('\0', {DIGEST_BYTES})
local at = 0
for i = 3, #KEYS do
  local now = call('HGET', KEYS[i], field)
  local wanted = sub(conditions, at + 1, at + {DIGEST_BYTES})
  if (now and sub(now, -{DIGEST_BYTES}) or none) == wanted then
    local length = byte(conditions, at + {DIGEST_BYTES + 1})
    local stamp = sub(conditions, at + {DIGEST_BYTES + 2}, at + {DIGEST_BYTES + 1} + length)
    call('HSET', KEYS[i], field, ARGV[i + 3], time, stamp)
  else
    reply[#reply + 1] = i - 3
  end
  at = at + {_CONDITION.itemsize}
end
return reply
"""

# KEYS: the owner's key, then rows. ARGV: row field, then per row the digest that must still
# be stored.
DROP = f"""
local dropped = 0
for i = 2, #KEYS do
  local now = redis.call('HGET', KEYS[i], ARGV[1])
  if now and string.sub(now, -{DIGEST_BYTES}) == ARGV[i] then
    dropped = dropped + redis.call('UNLINK', KEYS[i])
  end
end
if dropped > 0 then redis.call('UNLINK', KEYS[1]) end
return dropped
"""


class Swap:
    """Packs calls of `SWAP` for one entity's rows under one generation and the caller's token
    (empty for a caller that owns nothing)."""

    def __init__(self, layout: RowFormat, meta: bytes, generation: int, token: bytes = b"") -> None:
        self._layout, self._keys = layout, bulk(meta) + bulk(layout.owner_key)
        fields = (b"%d" % generation, layout.row_field, layout.time_field)
        self._fixed, self._token = b"".join(map(bulk, fields)), bulk(token)

    def calls(
        self,
        ids: Spans,
        before: np.ndarray,
        rows: Spans,
        times: np.ndarray,
        size: int,
    ) -> Iterator[Call]:
        """Writes `rows` with event times (int64 [N], ms) where the stored rows still have the
        digests `before` (uint64 [N], 0: none); `size` rows by each call."""
        from features.kernels.packing import packed_values

        conditions, data = _conditions(before, times), readable_bytes(rows.data)
        for start in range(0, len(ids), size):
            part = slice(start, min(start + size, len(ids)))
            bounds = slice(start, part.stop + 1)
            values = packed_values(data, given(rows.offsets[bounds]), BYTES_TAG)
            keys = self._layout.packed_keys(Spans(ids.data, ids.offsets[bounds]))
            condition, n = bulk(conditions[part].tobytes()), part.stop - start
            first = b"".join((self._keys, keys, self._fixed, condition, self._token))
            yield Call(n + 2, 7 + 2 * n, first, memoryview(values))


def plain_sets(
    layout: RowFormat, ids: Spans, rows: Spans, times: np.ndarray
) -> Iterator[tuple[int, memoryview]]:
    """Commands that write `rows` with event times (int64 [N], ms), so many rows each, in order."""
    n = len(ids)
    step = max(1, min(SET_ROWS, SET_BYTES * n // max(1, len(rows.data))))
    for a in range(0, n, step):
        b = min(a + step, n)
        yield b - a, layout.packed_sets(ids.part(a, b), rows.part(a, b), times[a:b])


def _conditions(before: np.ndarray, times: np.ndarray) -> np.ndarray:
    found = np.empty(len(before), _CONDITION)
    found["digest"], (found["time"], found["length"]) = before, timestamps(times)
    return found
