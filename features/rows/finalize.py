"""Finishes values when they are read: stored rows and the reader's `now` in, named columns out.

Knows windows and columns. Does not know stores. The online reader, the Feast on-demand
view and the point-in-time join all call `finish_blobs`, so a value has one meaning; what
it is of a row's bytes, `features.kernels.finalize` says.
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
from features.rows.byte_slices import Spans
from features.store import FeatureFrame
from streams.contract.events import KINDS

_TILE_MS = np.array(TILE_SIZES_MS, np.int64)
_KIND_NAMES = np.array(KINDS, dtype=object)


def finish_blobs(
    definition: EntityDefinition,
    ids: Sequence[str],
    blobs: Sequence[bytes | None],
    now_ms: int | np.ndarray,
) -> FeatureFrame:
    """Finished features of stored rows at `now_ms`, one for all rows or int64 [N] for each its
    own. None, foreign bytes and bytes that are no whole row read as absent."""
    rows, now = Spans.of(blobs), np.empty(len(blobs), np.int64)
    now[:] = now_ms
    stored = rows.data, rows.offsets, now, definition.fingerprint
    tables, names = definition.window_tables, definition.count_columns
    status, last, counts = counted(
        *(*stored, definition.ttl_ms, _TILE_MS),
        *(tables.first, tables.span_ms, tables.column, len(names)),
    )
    columns = dict(zip(names, counts, strict=True))
    if definition.lists:
        with uncollected():
            columns |= _lists(definition, *listed(*stored, len(definition.lists)))
    return FeatureFrame(definition.name, tuple(ids), status, last, columns)


def _lists(
    definition: EntityDefinition,
    ends: np.ndarray,
    kinds: np.ndarray,
    times: np.ndarray,
    starts: np.ndarray,
    texts: np.ndarray,
) -> dict[str, np.ndarray]:
    """The last-n columns, those of texts first, of what `features.kernels.finalize.listed` gives."""
    columns: dict[str, np.ndarray] = {}
    timed: dict[str, np.ndarray] = {}
    raw = texts.tobytes()
    plain = raw.count(0) == len(kinds)  # no text holds a zero itself
    for feature, end in zip(definition.lists, ends, strict=True):
        columns[feature.column] = _texts(raw, starts, end, plain)
        part = slice(end[0], end[-1])
        if feature.kind_column is not None:
            columns[feature.kind_column] = _ragged(_KIND_NAMES[kinds[part]].tolist(), end)
        if feature.time_column is not None:
            timed[feature.time_column] = _ragged(times[part].tolist(), end)
    return columns | timed


def _texts(raw: bytes, starts: np.ndarray, ends: np.ndarray, plain: bool) -> np.ndarray:
    """object [N]: each row's texts, cut at the zeros where only those lie between texts."""
    if not plain:
        cut = pairwise(starts[ends[0] : ends[-1] + 1].tolist())
        return _ragged([raw[a : b - 1].decode() for a, b in cut], ends)
    rows = pairwise(starts[ends].tolist())
    cells = [raw[a : b - 1].decode().split("\0") if a < b else [] for a, b in rows]
    return _objects(cells, len(cells))


def _ragged(values: list[Any], ends: np.ndarray) -> np.ndarray:
    """object [N]: the values between one end and the next, as a list of its own each."""
    bounds = (ends - ends[0]).tolist()
    return _objects(map(values.__getitem__, map(slice, bounds, bounds[1:])), len(ends) - 1)


def _objects(cells: Iterable[list[Any]], n: int) -> np.ndarray:
    return np.fromiter(cells, object, n)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: it would walk every list made so far, again and again,
    and lists of texts and integers hold no cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
