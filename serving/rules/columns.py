"""What expressions read of items: a column for each field, by row of the catalogue's table.

Knows items and how a change of one reaches its columns. Does not know expressions: a mask is
computed by whatever function it is asked for (`serving.rules.predicate`).

Columns and masks are computed once for all items. When the catalogue changes, only the changed
rows are computed again, into new arrays, so that a request keeps the state that it started with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.pipeline.items import ItemTable
from serving.rules.names import ItemField, Path, RequestValues, item_field
from serving.rules.values import ABSENT, Flags, Numbers, TextColumn, TextListColumn, Texts
from streams.contract.events import CatalogueItem

MAX_MASKS = 256  # of R bytes each; the oldest is dropped, and computed again when it is asked for
Column = Flags | Numbers | TextColumn | TextListColumn


@dataclass
class ItemState:
    """The columns at one state of the catalogue. The last row is that of unknown items.

    masks: int8 [R + 1] by name: 0 false, 1 true, 2 unknown.
    """

    size: int  # R + 1
    texts: Texts
    columns: dict[Path, Column] = field(default_factory=dict)
    masks: dict[str, tuple[MaskOf, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """C items and one request, of which an expression is evaluated.

    rows: int64 [C] of the catalogue's table, -1 for unknown items. element: the distinct texts of
    lists, while a condition on these is evaluated.
    """

    items: ItemColumns
    state: ItemState
    rows: np.ndarray
    request: RequestValues | None
    element: TextColumn | None = None

    def column(self, path: Path) -> Column:
        """The field's values of the C items. `path`: after `item`."""
        return self.items.column(self.state, path).take(self.rows)

    def mask(self, name: str, compute: MaskOf) -> Flags:
        """A predicate that depends on items alone; computed once for all of them."""
        found = self.items.mask(self.state, name, compute)[self.rows]
        return Flags(found == 1, found < 2)

    def mask_holds(self, name: str, compute: MaskOf) -> np.ndarray:
        """bool [C]: where `mask` is true."""
        return np.asarray(self.items.mask(self.state, name, compute)[self.rows] == 1)


MaskOf = Callable[[Frame], Flags]


class ItemColumns:
    """The columns of a catalogue's items. Thread safe."""

    def __init__(self, table: ItemTable) -> None:
        self._table = table
        self._lock = threading.RLock()
        self._changed: set[int] = set()
        self._all_changed = False
        self._seen: list[CatalogueItem | None] = []
        self._state = ItemState(1, Texts())
        table.watchers.append(self._note_change)

    def frame(self, rows: np.ndarray, request: RequestValues | None) -> Frame:
        """A frame of these rows at the newest state."""
        return Frame(self, self._current(), rows, request)

    def column(self, state: ItemState, path: Path) -> Column:
        found = state.columns.get(path)
        if found is not None:
            return found
        with self._lock:
            found = state.columns.get(path)
            if found is None:
                found = state.columns[path] = self._read(state, path, self._seen[: state.size - 1])
            return found

    def mask(self, state: ItemState, name: str, compute: MaskOf) -> np.ndarray:
        found = state.masks.get(name)
        if found is not None:
            return found[1]
        with self._lock:
            everything = np.arange(state.size)
            found = compute, _packed(compute(Frame(self, state, everything, None)), state.size)
            state.masks[name] = found
            if len(state.masks) > MAX_MASKS:
                del state.masks[next(iter(state.masks))]
            return found[1]

    def _note_change(self, row: int | None) -> None:
        with self._lock:
            if row is None:
                self._all_changed = True
            else:
                self._changed.add(row)

    def _current(self) -> ItemState:
        numbers = self._table.numbers
        if not self._changed and not self._all_changed and len(numbers) < self._state.size:
            return self._state
        with self._lock:
            rows = self._rows_to_read(len(numbers))
            if len(rows) or len(numbers) >= self._state.size:
                self._state = self._updated(rows, len(numbers) + 1)
            return self._state

    def _rows_to_read(self, count: int) -> list[int]:
        """Rows whose item is another object than the one that the columns were read from."""
        known = len(self._seen)
        rows = range(known) if self._all_changed else sorted(self._changed)
        self._changed, self._all_changed = set(), False
        self._seen += [None] * (count - known)
        changed = []
        for row in (*(row for row in rows if 0 <= row < known), *range(known, count)):
            item = self._table.find(self._table.numbers.id_of(row))
            if item is not self._seen[row]:
                self._seen[row] = item
                changed.append(row)
        return changed

    def _updated(self, rows: Sequence[int], size: int) -> ItemState:
        before, at = self._state, np.array(rows, np.int64)
        items = [self._seen[row] for row in rows]
        state = ItemState(size, before.texts)
        for path, column in before.columns.items():
            fresh = self._read(state, path, items)
            state.columns[path] = column.updated(size, at, fresh)
        for name, (compute, mask) in before.masks.items():
            fresh_mask = _packed(compute(Frame(self, state, at, None)), len(at))
            state.masks[name] = compute, _updated_mask(mask, size, at, fresh_mask)
        return state

    def _read(self, state: ItemState, path: Path, items: Sequence[CatalogueItem | None]) -> Column:
        """The field of these items, followed by one row of an unknown item."""
        about: ItemField | None = item_field(path)
        values = [None if i is None or about is None else about.read(i) for i in items]
        values.append(None)
        kind = "string" if about is None else about.type
        if kind == "strings":
            return TextListColumn.of(values, state.texts)
        if kind == "string":
            return TextColumn.of(values, state.texts)
        return Flags.of(values) if kind == "bool" else Numbers.of(values)


def _packed(flags: Flags, count: int) -> np.ndarray:
    """int8 [count]: 0 false, 1 true, 2 unknown."""
    packed = np.where(flags.known, flags.data, np.int8(2)).astype(np.int8)
    return np.asarray(np.broadcast_to(packed, (count,)))


def _updated_mask(mask: np.ndarray, size: int, at: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """The mask with room for `size` rows; of an unknown item it says what it said."""
    found = np.full(size, mask[ABSENT], np.int8)
    found[: len(mask) - 1] = mask[:-1]
    found[at] = fresh
    return found
