"""Compiled code does what it says as Python: every kernel, run both ways, gives the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.kernels.layout import split_key, tile_key
from features.kernels.tile_keys import index_part, split_one
from streams.kernels import raw
from streams.kernels.arrays import MutableUint8s, Uint8s, read_only
from streams.kernels.compile import compile_now, compiled

ROOT = Path(__file__).resolve().parents[2]
WORDS = st.integers(0, 2**64 - 1).map(np.uint64)


def test_every_kernel_gives_what_it_gives_uncompiled() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kernel_outputs.py")), "0", "1", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env | more)
        for more in ({}, {"NUMBA_DISABLE_JIT": "1"})
    ]
    compiled_run, plain_run = (run.communicate()[0] for run in runs)
    assert compiled_run.count("\n") == 18
    assert compiled_run == plain_run


@compiled
def read_and_write(data: Uint8s, out: MutableUint8s, at: int) -> tuple[int, int, int, int]:
    """What `streams.kernels.raw` makes of some places of 40 bytes."""
    word = raw.word_at(data, at)
    raw.prefetch(data, at)
    raw.put_word(out, at + 1, raw.high_product(word, raw.word_at(data, 2)))
    raw.copy_bytes(out, at + 12, data, 3, at)
    zeros = raw.trailing_zeros(word | np.uint64(2**63))
    return (
        raw.signed(word),
        raw.signed(raw.short_at(data, at)),
        raw.signed(zeros),
        raw.signed(data[at]),
    )


compile_now(read_and_write)


@settings(deadline=None)
@given(data=st.binary(min_size=40, max_size=40), at=st.integers(0, 12))
def test_words_in_bytes_are_those_of_numpy(data: bytes, at: int) -> None:
    array = read_only(np.frombuffer(data, np.uint8))
    found, wanted = np.zeros(40, np.uint8), np.zeros(40, np.uint8)
    assert read_and_write(array, found, at) == read_and_write.py_func(array, wanted, at)
    assert found.tolist() == wanted.tolist()


@settings(deadline=None)
@given(size=st.integers(0, 3), slot=st.integers(0, 2**16 - 1), index=st.integers(0, 2**40 - 1))
def test_one_tile_key_is_split_as_many_are(size: int, slot: int, index: int) -> None:
    key = tile_key(size, slot, np.array([index]))
    assert split_one(int(key[0])) == (size, slot, index)
    assert [int(part[0]) for part in split_key(key)] == [size, slot, index]
    assert tile_key(size, slot, np.zeros(1, np.int64))[0] | index_part(np.uint64(index)) == key[0]
