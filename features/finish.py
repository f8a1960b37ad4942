"""Finishes values when they are read: tiles and the reader's `now` in, named columns out.

Knows windows and columns. Does not know stores. The online reader, the Feast on-demand
view and the point-in-time join all call `finish`, so a value has one meaning.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from features.definitions import TILE_SIZES_MS, EntityDefinition, Window
from features.store import FeatureFrame, Status
from features.tiles import Rows, decode, split_key, tiles_of_size
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
    now_ms = now_ms if isinstance(now_ms, np.ndarray) else int(now_ms)
    with uncollected():
        columns = _counts(definition, rows, now_ms) | _lists(definition, rows, now_ms)
    last = rows.head["last_event_ms"].astype(np.int64)
    status = np.where(last == 0, Status.ABSENT, Status.PRESENT).astype(np.uint8)
    status[(last > 0) & (now_ms - last > definition.ttl_ms)] = Status.EXPIRED
    ordered = {name: columns[name] for name in definition.columns}
    return FeatureFrame(definition.name, tuple(ids), status, last, ordered)


@dataclass(frozen=True)
class _Tiles:
    """The tiles of one size: `cell` is slot * rows + row, `now` the reader's for each or for all."""

    cell: np.ndarray
    index: np.ndarray
    value: np.ndarray  # float64, exact below 2**53
    now: int | np.ndarray


def _counts(
    definition: EntityDefinition, rows: Rows, now: int | np.ndarray
) -> dict[str, np.ndarray]:
    n, slots = len(rows), len(definition.counters)
    sizes = {tile_ms: _tiles(rows, tile_ms, now) for tile_ms in TILE_SIZES_MS}
    columns: dict[str, np.ndarray] = {}
    for window, named in definition.windows:
        tiles = sizes[window.tile_ms]
        hit = np.flatnonzero(_in_window(window, tiles))
        total = np.bincount(tiles.cell[hit], tiles.value[hit], minlength=n * slots)
        by_slot = total.astype(np.int64).reshape(slots, n)
        columns.update((column, by_slot[slot]) for slot, column in named)
    return columns


def _tiles(rows: Rows, tile_ms: int, now: int | np.ndarray) -> _Tiles:
    key = rows.tile["key"]
    at = np.flatnonzero(tiles_of_size(key, TILE_SIZES_MS.index(tile_ms)))
    _, slot, index = split_key(key[at])
    row = rows.tile_row[at]
    own = now if isinstance(now, int) else now[row]
    return _Tiles(slot * len(rows) + row, index, rows.tile["value"][at].astype(np.float64), own)


def _in_window(window: Window, tiles: _Tiles) -> np.ndarray:
    """bool: the tile lies between now - window and now."""
    if not window.tile_ms:
        return np.ones(len(tiles.index), bool)
    oldest = (tiles.now - window.span_ms) // window.tile_ms
    newest = tiles.now // window.tile_ms
    return np.asarray((tiles.index >= oldest) & (tiles.index <= newest))


_KIND_NAMES = np.array(KINDS, dtype=object)


def _lists(
    definition: EntityDefinition, rows: Rows, now: int | np.ndarray
) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    begun = rows.entry["time"] <= (now if isinstance(now, int) else now[rows.entry_row])
    for place, feature in enumerate(definition.lists):
        hit = begun & (rows.entry["list"] == place)
        counts = np.bincount(rows.entry_row[hit], minlength=len(rows))
        listed = rows.text if hit.all() else rows.text.filter(pa.array(hit))
        texts = pl.Series(listed.cast(pa.large_string())).to_list()
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
