"""Laws of rows' bytes: sealed with XXH64, found whole again, keys as Feast spells them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import DEFINITIONS
from features.kernels import packing
from features.kernels.layout import DIGEST_BYTES, HEAD, TILE, VERSION, split_key, tile_key
from features.online.connection import bulk_string
from features.online.feast_keys import RowFormat, encode_timestamp, metadata_key
from features.online.optimistic_transaction import pack_command
from features.online.redis_store import FeastFeatureStore
from features.rows.aggregate import fold_events, group_by_entity
from features.rows.byte_slices import ByteSlices, readonly_bytes
from features.rows.decode import decode, digests, readable, tombstone
from features.store import DefinitionChanged
from streams.bus.contract import Stamp

NOW = 1_700_000_000_000
words = st.lists(st.binary(max_size=100), max_size=12)


@settings(deadline=None)  # the first call compiles
@given(data=st.binary(max_size=300), start=st.integers(0, 9))
def test_the_compiled_hash_is_xxh64(data, start):
    start = min(start, len(data))
    array = readonly_bytes(np.frombuffer(data, np.uint8))
    assert int(packing.xxh64(array, start, len(data))) == xxhash.xxh64_intdigest(data[start:])


@settings(deadline=None)  # the first call compiles
@given(words=words)
def test_hashes_are_each_spans_own(words):
    spans = ByteSlices.from_list(words)
    found = packing.hashes(readonly_bytes(spans.data), spans.offsets)
    assert found.tolist() == [xxhash.xxh64_intdigest(word) for word in words]


def rows_of(event_table, users):
    events = [
        {"kind": "play", "event_time_ms": NOW + i, "event_id": f"e{i}", "user_id": f"u{i % users}",
         "video_id": f"v{i}" * (i % 4), "dwell_ms": 2**30 * (i % 2)}
        for i in range(3 * users)
    ]  # fmt: skip
    batch = group_by_entity(DEFINITIONS["user"], event_table(events))
    rows = fold_events(
        DEFINITIONS["user"], ByteSlices.from_list([None] * users), batch, Stamp("e", 0, 0)
    ).rows
    return rows.to_list()


@pytest.mark.parametrize("users", [0, 1, 7])
def test_a_row_ends_with_the_hash_of_all_before_and_is_read_as_it_was_written(event_table, users):
    blobs = rows_of(event_table, users)
    assert len(blobs) == users
    for blob in blobs:
        sealed = xxhash.xxh64_intdigest(blob[:-DIGEST_BYTES]).to_bytes(DIGEST_BYTES, "little")
        assert blob[-DIGEST_BYTES:] == sealed
        assert readable(blob)
    rows = decode(blobs)
    assert rows.head["tiles"].sum() + rows.head["wide"].sum() == len(rows.tile)
    assert rows.entry["length"].sum() == rows.head["text_bytes"].sum()


def test_bytes_that_are_no_row_read_as_empty_rows_beside_whole_ones(event_table):
    whole = rows_of(event_table, 2)
    broken = [None, b"", b"x", whole[0][:-1], whole[0] + b"y", b"\xff" * 200]
    rows = decode([whole[0], *broken, whole[1]])
    assert (rows.head["version"] == [VERSION, *[0] * len(broken), VERSION]).all()
    assert set(rows.tile_row) == {0, len(broken) + 1}
    assert decode(broken).tile.size == 0


def test_digests_are_the_last_bytes_and_zeros_for_no_row(event_table):
    blobs = rows_of(event_table, 2)
    found = digests(ByteSlices.from_list([blobs[1], None, blobs[0]]))
    wanted = [blobs[1][-DIGEST_BYTES:], bytes(DIGEST_BYTES), blobs[0][-DIGEST_BYTES:]]
    assert [row.tobytes() for row in found] == wanted


def test_a_tombstone_is_sealed_like_any_row():
    blob = tombstone(NOW, 7, 9)
    assert blob[-DIGEST_BYTES:] == xxhash.xxh64(blob[:-DIGEST_BYTES]).digest()[::-1]
    assert readable(blob)


@settings(deadline=None)  # the first call compiles
@given(ids=st.lists(st.text(max_size=40), min_size=1, max_size=9), skipped=st.integers(0, 3))
def test_packed_keys_are_the_keys_one_by_one(ids, skipped):
    layout = RowFormat(DEFINITIONS["query"], "a project")
    names = pa.array(["skipped"] * skipped + ids).slice(skipped)
    wanted = b"".join(bulk_string(layout.key(entity_id)) for entity_id in ids)
    assert layout.packed_keys(ByteSlices.from_arrow(names)) == wanted


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.text(max_size=40), st.binary(max_size=300)), min_size=1, max_size=9),
    time_ms=st.integers(0, 2**42) | st.sampled_from([999, 10**6 * 1000 - 1, 2**53]),
)
def test_packed_sets_are_the_commands_one_by_one(rows, time_ms):
    from feast.protos.feast.types.Value_pb2 import Value

    layout = RowFormat(DEFINITIONS["query"], "a project")
    names, blobs = zip(*rows, strict=True)
    times = time_ms + np.arange(len(rows))
    found = layout.packed_sets(
        ByteSlices.from_arrow(pa.array(names)), ByteSlices.from_list(blobs), times
    )
    wanted = b"".join(
        pack_command(
            *(b"HSET", layout.key(name), layout.row_field),
            Value(bytes_val=blob).SerializeToString(),
            *(layout.time_field, encode_timestamp(int(at))),
        )
        for (name, blob), at in zip(rows, times, strict=True)
    )
    assert bytes(found) == wanted


def test_rows_of_an_earlier_layout_are_refused_with_the_way_to_rebuild_them(online, event_table):
    event = {"kind": "like", "event_time_ms": NOW, "event_id": "e"}
    online.fold("user", event_table([event]), Stamp("one", 0, 0))
    client, meta = online.connection.client, metadata_key(online.project)
    stored = client.hget(meta, "fingerprints")
    client.hset(meta, "fingerprints", stored.replace(b'"row":%d' % VERSION, b'"row":1'))
    again = FeastFeatureStore(online.connection.address, online.connection.db, online.project)
    with pytest.raises(DefinitionChanged, match="backfill --rebuild"):
        again.rebuild_id()


@given(
    size=st.integers(0, 3),
    slot=st.integers(0, 2**16 - 1),
    index=st.lists(st.integers(0, 2**40 - 1), max_size=9),
)
def test_a_tile_s_key_is_split_into_what_it_was_made_of(size, slot, index):
    parts = split_key(tile_key(size, slot, np.array(index, np.int64)))
    n = len(index)
    assert [part.tolist() for part in parts] == [[size] * n, [slot] * n, index]


tile = st.tuples(st.integers(0, 2), st.integers(0, 2**62), st.integers(-(2**40), 2**40))
small_tile = st.tuples(st.integers(0, 2), st.integers(0, 2**32), st.integers(0, 2**32))


@given(tiles=st.lists(tile | small_tile, max_size=20, unique_by=lambda t: t[:2]))
def test_tiles_of_any_key_and_value_are_read_in_order(tiles):
    """Also those that eight bytes do not hold, between those that they do."""
    rows = decode([as_row([t[1:] for t in sorted(tiles) if t[0] == row]) for row in range(3)])
    columns = (rows.tile_row, rows.tile["key"], rows.tile["value"])
    found = zip(*(column.tolist() for column in columns), strict=True)
    assert list(found) == sorted(tiles)


def as_row(tiles):
    """A row of these (key, value) alone, as its layout says."""
    small = [(key, value) for key, value in tiles if key < 2**32 and 0 <= value < 2**32]
    wide = [pair for pair in tiles if pair not in small]
    head = np.zeros(1, HEAD)
    head["version"], head["tiles"], head["wide"] = VERSION, len(small), len(wide)
    narrow = np.array([key << 32 | value for key, value in small], np.uint64)
    body = head.tobytes() + narrow.tobytes() + np.array(wide, TILE).tobytes()
    return body + xxhash.xxh64(body).digest()[::-1]
