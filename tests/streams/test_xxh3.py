"""The compiled XXH3-64 is the library's, of every length, wherever the bytes lie."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.kernels import xxh3
from streams.kernels.xxh3 import hashes, joined_hashes

WORDS = st.lists(st.binary(max_size=300), max_size=12)


def _random(lengths: range, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(length) for length in lengths]


def _digests(words: list[bytes]) -> list[int]:
    return [xxhash.xxh3_64_intdigest(word) for word in words]


@pytest.mark.parametrize("seed", range(5))
def test_every_length_hashes_as_the_librarys(seed: int) -> None:
    words = _random(range(301), seed)
    assert hashes(pa.array(words, pa.binary())).tolist() == _digests(words)


@pytest.mark.parametrize("seed", range(5))
def test_every_length_of_a_pair_hashes_as_the_librarys(seed: int) -> None:
    first, second = _random(range(301), seed), _random(range(300, -1, -1), seed)
    for lists in ((first, second), (first, first), (second[-20:], first[:20])):
        left, right = (pa.chunked_array([words], pa.binary()) for words in lists)
        pairs = [a + b"\0" + b for a, b in zip(*lists, strict=True)]
        assert joined_hashes(left, right).tolist() == _digests(pairs)


@settings(deadline=None)  # the first call compiles
@given(words=WORDS, cut=st.integers(0, 12), skipped=st.integers(0, 3))
def test_chunks_and_slices_do_not_matter(words: list[bytes], cut: int, skipped: int) -> None:
    whole = pa.array(words, pa.binary())
    chunks = pa.chunked_array([whole[:cut], whole[cut:]])
    assert hashes(whole[skipped:]).tolist() == _digests(words[skipped:])
    assert hashes(chunks).tolist() == _digests(words)
    others = pa.chunked_array([whole[skipped:], whole[:skipped]])
    pairs = [a + b"\0" + b for a, b in zip(words, words[skipped:] + words[:skipped], strict=True)]
    assert joined_hashes(chunks, others).tolist() == _digests(pairs)


@settings(deadline=None)
@given(words=st.lists(st.text(max_size=30), max_size=12))
def test_strings_hash_as_their_utf8(words: list[str]) -> None:
    assert hashes(pa.array(words, pa.string())).tolist() == _digests([w.encode() for w in words])


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.large_binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)  # fmt: skip
def test_other_layouts_of_strings_hash_alike(kind: pa.DataType) -> None:
    """Polars gives offsets of 64 bits, or views."""
    words = ["", "a", "ab" * 9, "ä" * 200]
    there = pa.array(words).cast(kind)
    assert hashes(there[1:]).tolist() == _digests([w.encode() for w in words[1:]])
    pairs = [f"{word}\0{word}".encode() for word in words]
    columns = pa.chunked_array([there]), pa.chunked_array([pa.array(words)])
    assert joined_hashes(*columns).tolist() == _digests(pairs)


def test_of_nothing_there_are_no_hashes() -> None:
    assert len(hashes(pa.chunked_array([], pa.string()))) == 0
    assert len(joined_hashes(*[pa.chunked_array([], pa.string())] * 2)) == 0


def test_no_array_makes_it_compile_again() -> None:
    """What `python -m deploy.compile` compiled is enough, whatever owns the bytes."""
    own = np.frombuffer(bytearray(b"ab"), np.uint8), np.array([0, 1, 2], np.int32)
    buffers = [None, pa.py_buffer(own[1]), pa.py_buffer(own[0])]
    writable = pa.Array.from_buffers(pa.string(), 2, buffers)
    for words in (writable, pa.array(["a", "b"]), pa.array(["a", "b"]).take(pa.array([1, 0]))):
        hashes(words)
        joined_hashes(pa.chunked_array([words]), pa.chunked_array([words]))
    assert len(xxh3._hash_each.signatures) == len(xxh3._hash_pairs.signatures) == 1
