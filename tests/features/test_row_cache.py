"""Laws of the row cache: it returns the last put, stays within its limit, never mixes rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.online.row_cache import RowCache
from features.rows.byte_slices import ByteSlices

row = st.binary(min_size=1, max_size=40)
# Equal low bits collide in the table.
key = st.integers(0, 30).map(lambda n: n % 3 | (n // 3) << 40)
step = st.one_of(
    st.tuples(st.just("put"), st.dictionaries(key, row, min_size=1, max_size=12)),
    st.tuples(st.just("drop"), st.sets(key, max_size=5)),
)


def keys(some):
    return np.array(list(some), np.uint64)


def put(cache, rows):
    cache.put("user", keys(rows), keys(rows), ByteSlices.from_list(list(rows.values())))


def got(cache, some, entity="user"):
    data, start, size, _ = cache.find(entity, keys(some), keys(some))
    places = zip(start.tolist(), size.tolist(), strict=True)
    return [data[at : at + n].tobytes() or None for at, n in places]


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(step, max_size=30))
def test_a_cache_within_its_limit_is_a_dictionary(steps):
    cache, wanted = RowCache(1000), {}
    for what, some in steps:
        if what == "put":
            put(cache, some)
            wanted |= some
        else:
            cache.drop("user", keys(some))
            wanted = {k: v for k, v in wanted.items() if k not in some}
        everyone = [n % 3 | (n // 3) << 40 for n in range(31)]
        assert got(cache, everyone) == [wanted.get(k) for k in everyone]


def test_rows_that_grow_and_move_stay_whole():
    """Thousands of rows, rewritten at many lengths: growth, compaction and rehashing."""
    rng, cache, wanted = np.random.default_rng(0), RowCache(10_000), {}
    for _ in range(60):
        some = rng.choice(5000, 700, replace=False)
        rows = {int(k): rng.bytes(int(rng.integers(1, 900))) for k in some}
        put(cache, rows)
        wanted |= rows
    assert got(cache, wanted) == list(wanted.values())


def test_the_rows_written_last_stay_and_no_more_than_the_limit():
    cache = RowCache(100)
    for name in range(1000):
        put(cache, {name: str(name).encode()})
    kept = got(cache, range(1000))
    assert 50 <= len([blob for blob in kept if blob is not None]) <= 100
    assert kept[-50:] == [str(name).encode() for name in range(950, 1000)]
    assert got(cache, [999], "video") == [None]


@pytest.mark.parametrize("written", [1, 120])
def test_a_dropped_row_is_not_returned(written):
    cache = RowCache(100)
    put(cache, {7: b"old"})
    put(cache, {1000 + i: b"x" for i in range(written)})
    cache.drop("user", keys([7]))
    assert got(cache, [7]) == [None]
    put(cache, {7: b"new"})
    assert got(cache, [7]) == [b"new"]


def test_a_cleared_cache_and_one_with_limit_0_hold_nothing():
    none, cleared = RowCache(0), RowCache(10)
    for cache in (none, cleared):
        put(cache, {1: b"row"})
    cleared.clear()
    assert got(none, [1]) == got(cleared, [1]) == [None]


def test_a_row_keeps_the_sequence_number_of_its_last_put():
    """Also when the older half is evicted."""
    cache = RowCache(20)
    for key in range(30):
        sequence = cache.next_sequence("user")
        put(cache, {key: b"row"})
        assert cache.find("user", keys([key]), keys([key]))[3].tolist() == [sequence]
        assert cache.next_sequence("user") > sequence
    sequences = cache.find("user", keys(range(20, 30)), keys(range(20, 30)))[3].tolist()
    assert sequences == sorted(set(sequences))


def test_two_ids_with_one_key_do_not_see_each_other_s_row():
    cache = RowCache(100)
    put(cache, {7: b"mine", 8: b"beside"})
    assert cache.find("user", keys([7]), keys([70]))[2].tolist() == [0]
    cache.put("user", keys([7]), keys([70]), ByteSlices.from_list([b"another's, and longer"]))
    assert got(cache, [7, 8]) == [None, b"beside"]


def test_ids_with_one_key_in_one_put_overwrite_no_other_row():
    """The first row is longer than the room of the last."""
    cache = RowCache(100)
    cache.put(
        "user",
        keys([7, 7, 8]),
        keys([1, 2, 8]),
        ByteSlices.from_list([b"x" * 900, b"y", b"beside"]),
    )
    data, start, size, _ = cache.find("user", keys([7, 7]), keys([1, 2]))
    assert size.tolist() == [0, 1]
    assert data[start[1] : start[1] + 1].tobytes() == b"y"
    assert got(cache, [8]) == [b"beside"]
