"""The arrays that compiled code is given and gives back: aliases that state dtype and shape.

Knows numpy's arrays as numba types them. `streams.kernels.compile.kernel` reads these types
from a function's annotations; mypy sees plain arrays. All are contiguous.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numba import types


def _read_only(dtype: types.Type, dimensions: int = 1) -> types.Type:
    return types.Array(dtype, dimensions, "C", readonly=True)


# Read-only: one type, whatever owns the memory (Arrow's is read-only anyway).
Bools = Annotated[np.ndarray, _read_only(types.boolean)]
Uint8s = Annotated[np.ndarray, _read_only(types.uint8)]
Int32s = Annotated[np.ndarray, _read_only(types.int32)]
Int64s = Annotated[np.ndarray, _read_only(types.int64)]
Uint64s = Annotated[np.ndarray, _read_only(types.uint64)]
BoolTable = Annotated[np.ndarray, _read_only(types.boolean, 2)]
Uint8Table = Annotated[np.ndarray, _read_only(types.uint8, 2)]
Int64Table = Annotated[np.ndarray, _read_only(types.int64, 2)]
Uint64Table = Annotated[np.ndarray, _read_only(types.uint64, 2)]

MutableBools = Annotated[np.ndarray, types.boolean[::1]]
MutableUint8s = Annotated[np.ndarray, types.uint8[::1]]
MutableUint32s = Annotated[np.ndarray, types.uint32[::1]]
MutableInt64s = Annotated[np.ndarray, types.int64[::1]]
MutableUint64s = Annotated[np.ndarray, types.uint64[::1]]
MutableBoolTable = Annotated[np.ndarray, types.boolean[:, ::1]]
MutableUint8Table = Annotated[np.ndarray, types.uint8[:, ::1]]
MutableInt32Table = Annotated[np.ndarray, types.int32[:, ::1]]
MutableInt64Table = Annotated[np.ndarray, types.int64[:, ::1]]


def read_only(array: np.ndarray) -> np.ndarray:
    """The array contiguous and read-only, as kernels take it; copies nothing that is contiguous."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
