"""Words and copies in bytes for compiled code, wherever they lie, as the machine does them.

Knows LLVM. A slice and its view in compiled code count references, which costs more than
what is read through them. Nothing here checks bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types  # type: ignore[import-untyped]
from numba.extending import intrinsic  # type: ignore[import-untyped]

_intrinsic: Any = intrinsic


_copy: Any = cgutils.raw_memcpy
_declared: Any = cgutils.get_or_insert_function


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [at])


def _load(bits: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(place, ir.IntType(bits).as_pointer()), align=1)

    return codegen


@_intrinsic  # type: ignore[untyped-decorator]
def word_at(_context: Any, data: Any, _at: Any) -> Any:
    """uint64 of the eight bytes at a place of uint8 data."""
    return types.uint64(data, types.int64), _load(64)


@_intrinsic  # type: ignore[untyped-decorator]
def short_at(_context: Any, data: Any, _at: Any) -> Any:
    """uint32 of the four bytes at a place of uint8 data."""
    return types.uint32(data, types.int64), _load(32)


@_intrinsic  # type: ignore[untyped-decorator]
def high_product(_context: Any, _a: Any, _b: Any) -> Any:
    """The upper uint64 of the product of two uint64."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(factor, wide) for factor in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(_context: Any, _word: Any) -> Any:
    """How many bits of a uint64 that is not 0 lie below its lowest one."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def put_word(_context: Any, out: Any, _to: Any, _word: Any) -> Any:
    """Writes a uint64 to eight bytes of uint8 data."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *args[:2])
        word = builder.bitcast(place, ir.IntType(64).as_pointer())
        builder.store(args[2], word, align=1)
        return context.get_dummy_value()

    return types.void(out, types.int64, types.uint64), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(_context: Any, out: Any, _to: Any, data: Any, _at: Any, _size: Any) -> Any:
    """Copies bytes of uint8 data to other uint8 data."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _pointer(context, builder, signature.args[0], *args[:2])
        source = _pointer(context, builder, signature.args[2], *args[2:4])
        _copy(builder, target, source, args[4], 1)
        return context.get_dummy_value()

    return types.void(out, types.int64, data, types.int64, types.int64), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def prefetch(_context: Any, data: Any, _at: Any) -> Any:
    """Asks for the cache line of a place in uint8 data, so that it is there when it is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *args)
        kinds = [ir.IntType(32)] * 3
        function = ir.FunctionType(ir.VoidType(), [place.type, *kinds])
        ask = _declared(builder.module, function, "llvm.prefetch.p0")
        to_read, into_all_caches, data_not_code = (ir.IntType(32)(value) for value in (0, 3, 1))
        builder.call(ask, [place, to_read, into_all_caches, data_not_code])
        return context.get_dummy_value()

    return types.void(data, types.int64), codegen
