"""The decorators of compiled code: they keep a function's type, which numba's own hide.

Knows numba. Does not know any kernel (`deploy.compile` compiles all of them, at installation).

Compiled code is cached beside its source. A cached function is compiled again when its own file
changes, not when a file changes from which it takes functions or constants: that is left to
`deploy.compile`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature as parameters_of
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from numba import config, njit, types
from numba.core.typing import signature as typed
from numba.extending import lower_builtin, type_callable

STALE = "compiled code is older than its source; run `python -m deploy.compile`"
Function = TypeVar("Function", bound=Callable[..., Any])
Codegen = Callable[[Any, Any, Any, Any], Any]  # context, LLVM builder, signature, arguments

_SCALARS: dict[Any, Any] = {
    **{int: types.int64, bool: types.boolean, NoneType: types.void},
    **{np.uint32: types.uint32, np.uint64: types.uint64},
}


def compiled(function: Function) -> Function:
    """Compiled, or read from the cache, at its first call with arguments of new types. It runs
    without the GIL."""
    marked: Function = njit(cache=True, nogil=True)(function)
    return marked


def borrowing(function: Function) -> Function:
    """`compiled` for what neither makes nor returns arrays: it counts no references to those that
    it is given, which would cost more than short functions do."""
    marked: Function = njit(cache=True, nogil=True, _nrt=False)(function)
    return marked


def compile_now(*functions: Any) -> None:
    """Compiles them, or reads them from the cache, for the types that their annotations state
    (see `streams.kernels.arrays`). The last line of a module: all that they call is defined, and
    no call waits for it."""
    if config.DISABLE_JIT:  # NUMBA_DISABLE_JIT=1: all runs as the Python that it is written in
        return
    for function in functions:
        hints = get_type_hints(function.py_func, include_extras=True)
        returned = numba_type(hints.pop("return"))
        try:
            function.compile(returned(*map(numba_type, hints.values())))
        except (AttributeError, ImportError) as error:  # of a cache that names what is gone
            raise RuntimeError(f"{STALE}: {error}") from error


def lowered(codegen: Codegen) -> Callable[[Function], Function]:
    """In compiled code the instructions of `codegen` stand for the function, with arguments of
    the types that it states (arrays, Any: as they come). What it says in Python is the reference."""

    def mark(function: Function) -> Function:
        hints = get_type_hints(function)
        returned = _SCALARS[hints.pop("return")]
        stated = [_SCALARS.get(hint) for hint in hints.values()]

        def typer(_context: Any) -> Any:
            def type_of(*found: Any) -> Any:
                pairs = zip(stated, found, strict=True)
                return typed(returned, *(wanted or given for wanted, given in pairs))

            type_of.pysig = parameters_of(function)  # type: ignore[attr-defined]
            return type_of

        type_callable(function)(typer)
        lower_builtin(function, types.VarArg(types.Any))(codegen)
        return function

    return mark


def numba_type(hint: Any) -> Any:
    """numba's type for an annotation: a scalar, one of `streams.kernels.arrays`, or a tuple."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    if get_origin(hint) is tuple:
        return types.Tuple([numba_type(part) for part in get_args(hint)])
    if isinstance(hint, type) and issubclass(hint, tuple):
        fields = get_type_hints(hint, include_extras=True)
        return types.BaseTuple.from_types([numba_type(part) for part in fields.values()], hint)
    return hint.__metadata__[0]
