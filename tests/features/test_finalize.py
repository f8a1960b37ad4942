"""Laws of finalization: the compiled code reads what plain Python reads from the same bytes."""

from __future__ import annotations

import struct
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import (
    TILE_SIZES_MS,
    WINDOWS,
    Count,
    EntityDefinition,
    LastN,
    Sum,
)
from features.kernels.layout import VERSION, tile_key
from features.rows.decode import tombstone
from features.rows.finalize import finalize_rows
from features.store import Status
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.events import KINDS

T0 = 1_700_000_000_000
TTL_MS = 30 * DAY_MS
LISTS = (
    LastN("seen", "video_id", ("play",), 9, "seen_kind", "seen_time_ms"),
    LastN("asked", "query", ("search",), 9),
    LastN("late", "video_id", ("play",), 9, time_column="late_time_ms"),
)
edges = st.builds(  # of windows, seen from T0 and from a tile beside it
    lambda window, tiles, by: T0 - window.span_ms + tiles * window.tile_ms + by,
    st.sampled_from(WINDOWS),
    st.integers(-1, 1),
    st.integers(-1, 1),
)
moments = st.one_of(st.just(T0), edges, st.integers(T0 - 40 * DAY_MS, T0 + 2 * HOUR_MS))
windows = st.sets(st.sampled_from(WINDOWS), min_size=1).map(lambda w: tuple(sorted(w, key=repr)))
bytes_of_any_kind = st.one_of(st.none(), st.binary(max_size=120))


@st.composite
def definitions(draw):
    """Up to 36 counters: those above the 32nd do not fit a narrow tile."""
    counters = [Count(f"k{i}", draw(windows)) for i in range(draw(st.sampled_from([1, 3, 35])))]
    counters.append(Sum("dwell_ms", ("play",), draw(windows)))
    lists = LISTS[: draw(st.integers(0, len(LISTS)))]
    return EntityDefinition("user", "user_id", tuple(counters), lists, TTL_MS, 8)


@st.composite
def tiles(draw, counters):
    size, value = draw(st.integers(0, 3)), draw(st.integers(-5, 2**40))
    slot = draw(st.integers(0, counters - 1))
    width = TILE_SIZES_MS[size]
    index = draw(moments) // width if width else draw(st.integers(0, 2**40 - 1))
    return int(tile_key(size, slot, np.array([index]))[0]), value


entries = st.tuples(
    moments,
    st.integers(0, 3),  # a list more than any definition has
    st.integers(0, len(KINDS) - 1),
    st.one_of(st.text(max_size=6), st.sampled_from(["v1", "", "a\0b", "\0"])),
)


def packed(fingerprint, last, tiles, entries, *, version=VERSION, source_offsets=2, recent=3):
    """A row's bytes; the parts that no reader uses are filled with ones."""
    narrow = [(k, v) for k, v in tiles if 0 <= v < 2**32 and k < 2**32]
    wide = [tile for tile in tiles if tile not in narrow]
    texts = [text.encode() for *_, text in entries]
    text = b"".join(texts)
    parts = [
        struct.pack("<HHII", version, source_offsets, fingerprint, 7),
        struct.pack("<IIIII", len(narrow), len(entries), recent, len(text), len(wide)),
        struct.pack("<qq", last, 5) + b"\1" * 24 * source_offsets,
        *(struct.pack("<Q", k << 32 | v) for k, v in narrow),
        *(struct.pack("<Qq", k, v) for k, v in wide),
        *(
            struct.pack("<qQBBI", time, 1, place, kind, len(raw))
            for (time, place, kind, _), raw in zip(entries, texts, strict=True)
        ),
    ]
    return b"".join((*parts, b"\1" * 16 * recent, text, b"\1" * 8))


@st.composite
def rows(draw, definition):
    tile = tiles(len(definition.counters))
    last = draw(st.one_of(st.just(0), moments))
    whole = packed(
        definition.fingerprint,
        last,
        draw(st.lists(tile, max_size=12)),
        draw(st.lists(entries, max_size=8)),
        source_offsets=draw(st.integers(0, 3)),
        recent=draw(st.integers(0, 3)),
    )
    spoilt = (
        st.just(whole[:-1]),
        st.just(whole + b"\0"),
        st.integers(0, len(whole)).map(lambda n: whole[:n]),
        st.just(packed(definition.fingerprint ^ 1, last, [], [])),
        st.just(packed(definition.fingerprint, last, [], [], version=VERSION + 1)),
        st.just(tombstone(T0, 3, definition.fingerprint)),
        bytes_of_any_kind,
    )
    return draw(st.one_of(st.just(whole), st.just(whole), *spoilt))


@st.composite
def reads(draw):
    """A definition, stored rows, and the reader's `now`: one for all rows or one each."""
    definition = draw(definitions())
    blobs = draw(st.lists(rows(definition), max_size=5))
    asked = st.one_of(moments, moments, st.sampled_from([0, -1, T0 + 400 * DAY_MS]))
    if draw(st.booleans()):
        return definition, blobs, draw(asked)
    each = draw(st.lists(asked, min_size=len(blobs), max_size=len(blobs)))
    return definition, blobs, np.array(each, np.int64)


def read_plainly(definition, blob, now):
    """(status, last event, columns) of one row, part by part."""
    columns = dict.fromkeys(definition.count_columns, 0)
    columns |= {name: [] for name in definition.columns if name not in columns}
    absent = (Status.ABSENT, 0, columns)
    if blob is None or len(blob) < 56:
        return absent
    version, source_offsets, fingerprint, _ = struct.unpack_from("<HHII", blob)
    narrow, listed, recent, text_bytes, wide, last = struct.unpack_from("<IIIIIq", blob, 12)
    sizes = [
        48,
        24 * source_offsets,
        8 * narrow,
        16 * wide,
        22 * listed,
        16 * recent,
        text_bytes,
        8,
    ]
    if (version, fingerprint) != (VERSION, definition.fingerprint) or sum(sizes) != len(blob):
        return absent
    _, narrow_at, wide_at, entry_at, _, text_at, *_ = accumulate(sizes)
    found = [divmod(struct.unpack_from("<Q", blob, narrow_at + 8 * i)[0], 2**32)
             for i in range(narrow)]  # fmt: skip
    found += [struct.unpack_from("<Qq", blob, wide_at + 16 * i) for i in range(wide)]
    for key, value in found:
        size, slot = key >> 30 & 3, (key >> 25 & 31) + 32 * (key >> 47)
        index = key % 2**25 + 2**25 * (key >> 32 & (2**15 - 1))
        for window in definition.counters[slot].windows:
            width = TILE_SIZES_MS[size]
            if width == window.tile_ms and (
                not width or (now - window.span_ms) // width <= index <= now // width
            ):
                columns[definition.counters[slot].column(window)] += value
    for i in range(listed):
        time, _, place, kind, length = struct.unpack_from("<qQBBI", blob, entry_at + 22 * i)
        if time <= now and place < len(definition.lists):
            feature = definition.lists[place]
            columns[feature.column].append(blob[text_at : text_at + length].decode())
            if feature.kind_column:
                columns[feature.kind_column].append(KINDS[kind])
            if feature.time_column:
                columns[feature.time_column].append(time)
        text_at += length
    expired = last > 0 and now - last > definition.ttl_ms
    return (Status.EXPIRED if expired else Status.PRESENT if last else Status.ABSENT), last, columns


@settings(deadline=None, max_examples=300)
@given(asked=reads())
def test_finalization_equals_reading_each_row_in_plain_python(asked):
    definition, blobs, now = asked
    ids = [f"u{i}" for i in range(len(blobs))]
    frame = finalize_rows(definition, ids, blobs, now)
    moments = np.broadcast_to(now, len(blobs)).tolist()
    wanted = [read_plainly(definition, b, t) for b, t in zip(blobs, moments, strict=True)]
    assert frame.ids == tuple(ids)
    assert frame.status.tolist() == [status for status, _, _ in wanted]
    assert frame.last_event_ms.tolist() == [last for _, last, _ in wanted]
    assert tuple(frame.columns) == definition.columns
    for name, column in frame.columns.items():
        assert column.dtype == (np.int64 if name in definition.count_columns else object)
        assert column.tolist() == [columns[name] for _, _, columns in wanted], name


def test_a_row_expires_when_it_is_older_than_its_ttl():
    definition = EntityDefinition("user", "user_id", (Count("k"),), (), TTL_MS, 8)
    blob = packed(definition.fingerprint, T0, [], [])
    now = T0 + TTL_MS + np.array([0, 1])
    frame = finalize_rows(definition, ["u", "v"], [blob, blob], now)
    assert frame.status.tolist() == [Status.PRESENT, Status.EXPIRED]


@pytest.mark.parametrize("value", [2**53 + 1, 2**62 - 1, -(2**53) - 1])
def test_sums_beyond_the_range_of_doubles_are_exact(value):
    definition = EntityDefinition("user", "user_id", (Count("k", WINDOWS),), (), TTL_MS, 8)
    key = int(tile_key(0, 0, np.zeros(1, np.int64))[0])
    blob = packed(definition.fingerprint, T0, [(key, value), (key, 1)], [])
    frame = finalize_rows(definition, ["u"], [blob], T0)
    assert frame.columns["k_count_all"].tolist() == [value + 1]


def test_a_row_with_truncated_texts_reads_no_bytes_after_them():
    definition = EntityDefinition("user", "user_id", (Count("k"),), LISTS[1:2], TTL_MS, 8)
    blob = bytearray(packed(definition.fingerprint, T0, [], [(T0, 0, 0, "abc"), (T0, 0, 0, "d")]))
    at = blob.index(b"abcd") - 3 * 16 - 2 * 22 + 18
    struct.pack_into("<I", blob, at, 2**31)
    frame = finalize_rows(definition, ["u", "v"], [bytes(blob), bytes(blob)], T0)
    assert frame.columns["asked"].tolist() == [["abcd", ""]] * 2
