"""Finalization at read time: stored rows and the reader's `now` in, named columns out.

Knows windows and columns. Does not know stores, or how values are read from a row's bytes
(`features.kernels.finalize`). The online reader, Feast's on-demand views and the point-in-time
replay all call `finalize_rows`, so a value means the same everywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from features.definitions import TILE_SIZES_MS, EntityDefinition
from features.kernels.finalize import counted, listed
from features.rows.byte_slices import ByteSlices
from features.rows.derived import derived_columns
from features.store import FeatureFrame
from streams.contract.declaration import contract

_TILE_MS = np.array(TILE_SIZES_MS, np.int64)


def finalize_rows(
    definition: EntityDefinition,
    ids: Sequence[str],
    blobs: Sequence[bytes | None],
    now_ms: int | np.ndarray,
) -> FeatureFrame:
    """Features of N stored rows at `now_ms`: one time for all rows, or int64 [N].

    None, rows of other declarations and bytes that are no whole row read as absent.
    """
    rows, now = ByteSlices.from_list(blobs), np.empty(len(blobs), np.int64)
    now[:] = now_ms
    stored = rows.data, rows.offsets, now, definition.fingerprint
    tables, names = definition.window_tables, definition.counted_columns
    shape = (tables.first, tables.span_ms, tables.column, len(names))
    status, last, counts = counted(*stored, (_TILE_MS, *shape, definition.ttl_ms))
    columns = dict(zip(names, counts, strict=True))
    if definition.lists:
        with gc_disabled():
            columns |= _list_columns(definition, *listed(*stored, len(definition.lists)))
    if definition.derived:
        columns |= dict(derived_columns(definition, columns, now))
        columns = {name: columns[name] for name in definition.columns}
    return FeatureFrame(definition.name, tuple(ids), status, last, columns)


def _list_columns(
    definition: EntityDefinition,
    ends: np.ndarray,
    kinds: np.ndarray,
    times: np.ndarray,
    starts: np.ndarray,
    texts: np.ndarray,
) -> dict[str, np.ndarray]:
    """The last-n columns, text columns first, from what `features.kernels.finalize` returns."""
    columns: dict[str, np.ndarray] = {}
    timed: dict[str, np.ndarray] = {}
    kind_names = np.array(contract().signals.name, dtype=object)
    raw = texts.tobytes()
    plain = raw.count(0) == len(kinds)  # no text contains a NUL
    for feature, end in zip(definition.lists, ends, strict=True):
        columns[feature.column] = _split_texts(raw, starts, end, plain)
        part = slice(end[0], end[-1])
        if feature.kind_column is not None:
            columns[feature.kind_column] = _ragged(kind_names[kinds[part]].tolist(), end)
        if feature.time_column is not None:
            timed[feature.time_column] = _ragged(times[part].tolist(), end)
    return columns | timed


def _split_texts(raw: bytes, starts: np.ndarray, ends: np.ndarray, plain: bool) -> np.ndarray:
    """object [N]: each row's texts; split at NUL if no text contains one (`plain`)."""
    if not plain:
        bounds = pairwise(starts[ends[0] : ends[-1] + 1].tolist())
        return _ragged([raw[a : b - 1].decode() for a, b in bounds], ends)
    rows = pairwise(starts[ends].tolist())
    cells = [raw[a : b - 1].decode().split("\0") if a < b else [] for a, b in rows]
    return _object_array(cells, len(cells))


def _ragged(values: list[Any], ends: np.ndarray) -> np.ndarray:
    """object [N]: the values between each end and the next, as lists."""
    bounds = (ends - ends[0]).tolist()
    return _object_array(map(values.__getitem__, map(slice, bounds, bounds[1:])), len(ends) - 1)


def _object_array(cells: Iterable[list[Any]], n: int) -> np.ndarray:
    return np.fromiter(cells, object, n)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disables garbage collection: while many lists are built it would walk all of them again
    and again, and lists of texts and integers hold no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
