"""Words and copies in bytes for compiled code, wherever they lie, as the machine does them.

Knows LLVM. A slice and its view in compiled code count references, which costs more than
what is read through them. Compiled, nothing here checks bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from streams.kernels.compile import Codegen, lowered


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [at])


def _load(bits: int) -> Codegen:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(place, ir.IntType(bits).as_pointer()), align=1)

    return codegen


def _multiply_high(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    wide = ir.IntType(128)
    product = builder.mul(*(builder.zext(factor, wide) for factor in args))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))


def _count_trailing_zeros(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))


def _to_int64(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return context.cast(builder, args[0], signature.args[0], types.int64)


def _store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = _pointer(context, builder, signature.args[0], *args[:2])
    builder.store(args[2], builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
    return context.get_dummy_value()


def _copy(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    target = _pointer(context, builder, signature.args[0], *args[:2])
    source = _pointer(context, builder, signature.args[2], *args[2:4])
    cgutils.raw_memcpy(builder, target, source, args[4], 1)
    return context.get_dummy_value()


def _prefetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = _pointer(context, builder, signature.args[0], *args)
    function = ir.FunctionType(ir.VoidType(), [place.type, *[ir.IntType(32)] * 3])
    declared = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    to_read, into_all_caches, data_not_code = (ir.IntType(32)(value) for value in (0, 3, 1))
    builder.call(declared, [place, to_read, into_all_caches, data_not_code])
    return context.get_dummy_value()


@lowered(_load(64))
def word_at(data: np.ndarray, at: int) -> np.uint64:
    """uint64 of the eight bytes at a place of uint8 data."""
    word: np.uint64 = data[at : at + 8].view(np.uint64)[0]
    return word


@lowered(_load(32))
def short_at(data: np.ndarray, at: int) -> np.uint32:
    """uint32 of the four bytes at a place of uint8 data."""
    word: np.uint32 = data[at : at + 4].view(np.uint32)[0]
    return word


@lowered(_multiply_high)
def high_product(a: np.uint64, b: np.uint64) -> np.uint64:
    """The upper uint64 of the product of two uint64."""
    return np.uint64(int(a) * int(b) >> 64)


@lowered(_count_trailing_zeros)
def trailing_zeros(word: np.uint64) -> np.uint64:
    """How many bits of a uint64 that is not 0 lie below its lowest one."""
    return np.uint64((int(word) & -int(word)).bit_length() - 1)


@lowered(_to_int64)
def signed(number: Any) -> int:
    """int64 of an integer; of a uint64, the same bits."""
    return int(np.asarray(number).astype(np.int64))


@lowered(_store)
def put_word(out: np.ndarray, to: int, word: np.uint64) -> None:
    """Writes a uint64 to eight bytes of uint8 data."""
    out[to : to + 8].view(np.uint64)[0] = word


@lowered(_copy)
def copy_bytes(out: np.ndarray, to: int, data: np.ndarray, at: int, size: int) -> None:
    """Copies bytes of uint8 data to other uint8 data."""
    out[to : to + size] = data[at : at + size]


@lowered(_prefetch)
def prefetch(data: np.ndarray, at: int) -> None:
    """Asks for the cache line of a place in uint8 data, so that it is there when it is read.
    Without effect on values."""
