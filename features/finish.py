"""Finishes values when they are read: tiles and the reader's `now` in, named columns out.

Knows windows and columns. Does not know stores. The online reader, the Feast on-demand
view and the point-in-time join all call `finish`, so a value has one meaning.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from features.definitions import TILE_SIZES_MS, EntityDefinition, Window
from features.store import FeatureFrame, Status
from features.tiles import Rows, decode, split_key
from streams.events import KINDS


def finish_blobs(
    definition: EntityDefinition,
    ids: Sequence[str],
    blobs: Sequence[bytes | None],
    now_ms: int | np.ndarray,
) -> FeatureFrame:
    """Finished features of stored rows; None and foreign bytes read as absent."""
    rows = decode(blobs)
    foreign = rows.head["fingerprint"] != definition.fingerprint
    if foreign.any():
        rows = decode([None if f else b for f, b in zip(foreign, blobs, strict=True)])
    return finish(definition, ids, rows, now_ms)


def finish(
    definition: EntityDefinition, ids: Sequence[str], rows: Rows, now_ms: int | np.ndarray
) -> FeatureFrame:
    """Finished features at `now_ms`, one for all rows or int64 [N] for each its own."""
    now = np.broadcast_to(np.asarray(now_ms, np.int64), (len(rows),))
    columns = _counts(definition, rows, now) | _lists(definition, rows, now)
    last = rows.head["last_event_ms"].astype(np.int64)
    status = np.where(last == 0, Status.ABSENT, Status.PRESENT).astype(np.uint8)
    status[(last > 0) & (now - last > definition.ttl_ms)] = Status.EXPIRED
    ordered = {name: columns[name] for name in definition.columns}
    return FeatureFrame(definition.name, tuple(ids), status, last, ordered)


def _counts(definition: EntityDefinition, rows: Rows, now: np.ndarray) -> dict[str, np.ndarray]:
    n, slots = len(rows), len(definition.counters)
    size, slot, index = split_key(rows.tile["key"])
    cell = rows.tile_row * slots + slot
    value = rows.tile["value"].astype(np.float64)  # exact below 2**53
    columns: dict[str, np.ndarray] = {}
    for window, named in definition.windows:
        hit = _in_window(window, size, index, now[rows.tile_row])
        total = np.bincount(cell[hit], value[hit], minlength=n * slots).astype(np.int64)
        by_slot = np.ascontiguousarray(total.reshape(n, slots).T)
        columns.update((column, by_slot[slot]) for slot, column in named)
    return columns


def _in_window(window: Window, size: np.ndarray, index: np.ndarray, now: np.ndarray) -> np.ndarray:
    """bool: the tile has the window's size and lies between now - window and now."""
    hit = size == TILE_SIZES_MS.index(window.tile_ms)
    if not window.tile_ms:
        return np.asarray(hit)
    oldest, newest = (now - window.span_ms) // window.tile_ms, now // window.tile_ms
    return np.asarray(hit & (index >= oldest) & (index <= newest))


_KIND_NAMES = np.array(KINDS, dtype=object)


def _lists(definition: EntityDefinition, rows: Rows, now: np.ndarray) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    begun = rows.entry["time"] <= now[rows.entry_row]
    for place, feature in enumerate(definition.lists):
        hit = begun & (rows.entry["list"] == place)
        counts = np.bincount(rows.entry_row[hit], minlength=len(rows))
        texts = rows.text.filter(pa.array(hit)).cast(pa.large_string()).to_pylist()
        columns[feature.column] = _ragged(texts, counts)
        if feature.kind_column is not None:
            kinds = _KIND_NAMES[rows.entry["kind"][hit]].tolist()
            columns[feature.kind_column] = _ragged(kinds, counts)
        if feature.time_column is not None:
            columns[feature.time_column] = _ragged(rows.entry["time"][hit].tolist(), counts)
    return columns


def _ragged(values: list[str] | list[int], counts: np.ndarray) -> np.ndarray:
    """object [N]: each row's slice of `values` as a list of its own."""
    stops = np.cumsum(counts)
    slices = map(slice, (stops - counts).tolist(), stops.tolist())
    with uncollected():
        return np.fromiter(map(values.__getitem__, slices), object, len(counts))


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
