"""Compare-and-set of many rows: the scripts that decide, and calls packed for them.

Knows the scripts' arguments and Feast's fields. Does not know connections nor what a row
means. A call is packed by hand because a client library's packing costs more than the
fold itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from features.connection import Call, bulk
from features.feast_format import RowFormat, timestamp, wrap_head
from features.tiles import DIGEST_BYTES, digest

# KEYS: the project's facts, then one row each. ARGV: generation, row field, time field,
# then per row the digest that must be stored ("" for none), the new value and its time.
SWAP = f"""
local call, field, time = redis.call, ARGV[2], ARGV[3]
if call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return {{-1}} end
local lost = {{}}
local at = 4
for i = 2, #KEYS do
  local now = call('HGET', KEYS[i], field)
  if (now and string.sub(now, -{DIGEST_BYTES}) or '') == ARGV[at] then
    call('HSET', KEYS[i], field, ARGV[at + 1], time, ARGV[at + 2])
  else
    lost[#lost + 1] = i - 2
  end
  at = at + 3
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

_NONE, _END = bulk(b""), b"\r\n"
_DIGEST_HEAD = b"$%d\r\n" % DIGEST_BYTES


class Swap:
    """Packs calls of `SWAP` for one entity's rows under one generation."""

    def __init__(self, layout: RowFormat, meta: bytes, generation: int) -> None:
        self._key, self._meta = layout.key, bulk(meta)
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
        pieces = [self._meta, *[bulk(self._key(entity_id)) for entity_id in ids], self._fixed]
        for old, blob, time_ms in zip(before, blobs, times, strict=True):
            if old is None:
                pieces.append(_NONE)
            else:
                pieces += (_DIGEST_HEAD, digest(old), _END)
            pieces += (_row_head(len(blob)), blob, _END, bulk(timestamp(time_ms)))
        return Call(len(ids) + 1, 4 + 4 * len(ids), b"".join(pieces))


@lru_cache(maxsize=65_536)
def _row_head(size: int) -> bytes:
    """The bulk string's length, and what Feast sets before the row's bytes."""
    head = wrap_head(size)
    return b"$%d\r\n%b" % (len(head) + size, head)
