"""Packed writes of many rows: compare-and-set scripts, and plain commands under a lease.

Knows the scripts' arguments and Feast's fields. Does not know connections or what a row
means. Calls are packed here because a client library's packing costs more than the fold
itself. Short values share one argument because the server pays for each argument.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.kernels.layout import DIGEST_BYTES
from features.online.connection import ScriptCall, bulk_string
from features.online.feast_keys import BYTES_TAG, TIMESTAMP_BYTES, RowFormat, encode_timestamps
from features.rows.byte_slices import ByteSlices, readonly_bytes, readonly_view

SET_ROWS, SET_BYTES = 256, 1 << 20  # per transaction: its queue should fit the server's caches

# One row's part of the shared argument: the digest that must be stored (zeros for none), the
# length of the time, and the time in Feast's bytes.
_CONDITION = np.dtype([("digest", "<u8"), ("length", "u1"), ("time", "u1", TIMESTAMP_BYTES)])

# KEYS: the project's metadata, the lease, then one row each. ARGV: rebuild id, row field, time
# field, each row's `_CONDITION` in one string, the caller's lease token, then each row's new
# value. Replies with 1 if the caller holds the lease, else 0, and the places of the rows that
# lost; with -1 under another rebuild id. A caller without the lease deletes it, because it
# writes what the holder has not seen.
COMPARE_AND_SET_SCRIPT = f"""
local call, sub, byte = redis.call, string.sub, string.byte
local field, time, conditions = ARGV[2], ARGV[3], ARGV[4]
if call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return {{-1}} end
local holder = call('GET', KEYS[2])
local owns = holder == ARGV[5]
if holder and not owns then call('UNLINK', KEYS[2]) end
local reply, none = {{owns and 1 or 0}}, string.rep('\0', {DIGEST_BYTES})
local at = 0
for i = 3, #KEYS do
  local now = call('HGET', KEYS[i], field)
  local expected = sub(conditions, at + 1, at + {DIGEST_BYTES})
  if (now and sub(now, -{DIGEST_BYTES}) or none) == expected then
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

# KEYS: the lease, then rows. ARGV: row field, then each row's expected digest. Replies with
# the number of rows deleted.
DELETE_IF_UNCHANGED_SCRIPT = f"""
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


class CompareAndSet:
    """Packs calls of `COMPARE_AND_SET_SCRIPT` for one entity's rows under one rebuild id.

    `token`: the caller's lease; empty for a caller without one.
    """

    def __init__(
        self, layout: RowFormat, metadata_key: bytes, rebuild_id: int, token: bytes = b""
    ) -> None:
        self._layout = layout
        self._keys = bulk_string(metadata_key) + bulk_string(layout.lease_key)
        fields = (b"%d" % rebuild_id, layout.row_field, layout.time_field)
        self._fixed, self._token = b"".join(map(bulk_string, fields)), bulk_string(token)

    def calls(
        self,
        ids: ByteSlices,
        expected_digest: np.ndarray,
        rows: ByteSlices,
        times: np.ndarray,
        size: int,
    ) -> Iterator[ScriptCall]:
        """Calls of `size` rows each that write every row whose stored digest is the expected one.

        Args:
            expected_digest: uint64 [N]; 0: no row is stored.
            times: event times, int64 [N], ms.
        """
        from features.kernels.packing import packed_values

        conditions = _conditions(expected_digest, times)
        data = readonly_bytes(rows.data)
        for start in range(0, len(ids), size):
            part = slice(start, min(start + size, len(ids)))
            bounds = slice(start, part.stop + 1)
            values = packed_values(data, readonly_view(rows.offsets[bounds]), BYTES_TAG)
            keys = self._layout.packed_keys(ByteSlices(ids.data, ids.offsets[bounds]))
            condition, n = bulk_string(conditions[part].tobytes()), part.stop - start
            first = b"".join((self._keys, keys, self._fixed, condition, self._token))
            yield ScriptCall(n + 2, 7 + 2 * n, first, values.data)


def unconditional_sets(
    layout: RowFormat, ids: ByteSlices, rows: ByteSlices, times: np.ndarray
) -> Iterator[tuple[int, memoryview]]:
    """(row count, packed commands) that write `rows` in order, with event times (int64 [N], ms)."""
    n = len(ids)
    step = max(1, min(SET_ROWS, SET_BYTES * n // max(1, len(rows.data))))
    for a in range(0, n, step):
        b = min(a + step, n)
        yield b - a, layout.packed_sets(ids.slice(a, b), rows.slice(a, b), times[a:b])


def _conditions(expected_digest: np.ndarray, times: np.ndarray) -> np.ndarray:
    found = np.empty(len(expected_digest), _CONDITION)
    found["digest"] = expected_digest
    found["time"], found["length"] = encode_timestamps(times)
    return found
