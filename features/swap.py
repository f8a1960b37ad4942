"""Compare-and-set of many rows: the scripts that decide, and calls packed for them.

Knows the scripts' arguments and Feast's fields. Does not know connections nor what a row
means. A call is packed by hand because a client library's packing costs more than the
fold itself; what is short goes packed into one argument, because the server pays for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.connection import Call, bulk
from features.feast_format import BYTES_TAG, OWNER, TIMESTAMP_BYTES, RowFormat, timestamps
from features.spans import Spans, given, readable_bytes
from features.tiles import DIGEST_BYTES

# One row's share of the packed argument: the digest that must be stored (zeros for none),
# whether an owner need not ask, the length of the time, and the time in Feast's bytes.
_CONDITION = np.dtype(
    [("digest", "<u8"), ("sure", "u1"), ("length", "u1"), ("time", "u1", TIMESTAMP_BYTES)]
)

# KEYS: the project's facts, then one row each. ARGV: generation, row field, time field,
# each row's `_CONDITION` in one string, the owner's field, the caller's token, then each row's
# new value. Replies with 1 if the caller is the owner, else 0, and the rows that lost. Whoever
# is not the owner ends the owner's claim: it writes what the owner has not seen.
SWAP = f"""
local call, sub, byte = redis.call, string.sub, string.byte
local field, time, conditions = ARGV[2], ARGV[3], ARGV[4]
local facts = call('HMGET', KEYS[1], 'generation', ARGV[5])
if facts[1] ~= ARGV[1] then return {{-1}} end
local owns = facts[2] == ARGV[6]
if facts[2] and not owns then call('HDEL', KEYS[1], ARGV[5]) end
local reply, none = {{owns and 1 or 0}}, string.rep('\0', {DIGEST_BYTES})
local at = 0
for i = 2, #KEYS do
  local sure, length = byte(conditions, at + {DIGEST_BYTES + 1}, at + {DIGEST_BYTES + 2})
  local same = owns and sure == 1
  if not same then
    local now = call('HGET', KEYS[i], field)
    local wanted = sub(conditions, at + 1, at + {DIGEST_BYTES})
    same = (now and sub(now, -{DIGEST_BYTES}) or none) == wanted
  end
  if same then
    local stamp = sub(conditions, at + {DIGEST_BYTES + 3}, at + {DIGEST_BYTES + 2} + length)
    call('HSET', KEYS[i], field, ARGV[i + 5], time, stamp)
  else
    reply[#reply + 1] = i - 2
  end
  at = at + {_CONDITION.itemsize}
end
return reply
"""

# KEYS: the project's facts, then rows. ARGV: row field, the owner's field, then per row the
# digest that must still be stored.
DROP = f"""
local dropped = 0
for i = 2, #KEYS do
  local now = redis.call('HGET', KEYS[i], ARGV[1])
  if now and string.sub(now, -{DIGEST_BYTES}) == ARGV[i + 1] then
    dropped = dropped + redis.call('UNLINK', KEYS[i])
  end
end
if dropped > 0 then redis.call('HDEL', KEYS[1], ARGV[2]) end
return dropped
"""


def owner_field(layout: RowFormat) -> bytes:
    """The fact that names the owner of an entity's rows."""
    return OWNER + layout.view.encode()


class Swap:
    """Packs calls of `SWAP` for one entity's rows under one generation and the caller's token
    (empty for a caller that owns nothing)."""

    def __init__(self, layout: RowFormat, meta: bytes, generation: int, token: bytes = b"") -> None:
        self._layout, self._meta = layout, bulk(meta)
        fields = (b"%d" % generation, layout.row_field, layout.time_field)
        self._fixed = b"".join(map(bulk, fields))
        self._caller = b"".join(map(bulk, (owner_field(layout), token)))

    def calls(
        self,
        ids: Spans,
        before: np.ndarray,
        rows: Spans,
        times: np.ndarray,
        sure: np.ndarray | None,
        size: int,
    ) -> Iterator[Call]:
        """Writes `rows` with event times (int64 [N], ms) where the stored rows still have the
        digests `before` (uint64 [N], 0: none) or an owner is `sure` (bool [N]) of it; `size`
        rows by each call."""
        from features.packing import packed_values

        conditions, data = _conditions(before, times, sure), readable_bytes(rows.data)
        for start in range(0, len(ids), size):
            part = slice(start, min(start + size, len(ids)))
            bounds = slice(start, part.stop + 1)
            values = packed_values(data, given(rows.offsets[bounds]), BYTES_TAG)
            keys = self._layout.packed_keys(Spans(ids.data, ids.offsets[bounds]))
            condition, n = bulk(conditions[part].tobytes()), part.stop - start
            first = b"".join((self._meta, keys, self._fixed, condition, self._caller))
            yield Call(n + 1, 7 + 2 * n, first, memoryview(values))


def _conditions(before: np.ndarray, times: np.ndarray, sure: np.ndarray | None) -> np.ndarray:
    found = np.empty(len(before), _CONDITION)
    found["digest"], found["sure"] = before, 0 if sure is None else sure
    found["time"], found["length"] = timestamps(times)
    return found
