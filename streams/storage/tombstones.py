"""Erased users of one folder, with the time up to which each is erased.

Knows the file `erased.json` and the columns to compare. Does not know where rows are stored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.bounds import MAX_EVENT_TIME_MS
from streams.storage.segment_files import DAMAGED, SegmentFiles
from streams.telemetry import set_aside


class Tombstones:
    """Which rows are erased: those of an erased user with any of `times` up to the erasure."""

    def __init__(self, files: SegmentFiles, times: Sequence[str]) -> None:
        """`times`: columns in ms."""
        self._files = files
        self._path = files.directory / "erased.json"
        self._times = tuple(times)
        self._erased: dict[str, int] = {}
        self._version = (0, 0)

    def add(self, user_id: str, at_ms: int) -> None:
        with self._files.rewrite_lock():
            erased = self._read()
            erased[user_id] = max(at_ms, erased.get(user_id, at_ms))
            self._files.write_atomically(self._path, json.dumps(erased).encode())

    def erased_rows(self, table: pa.Table) -> pa.Array | None:
        """A mask of the rows that are erased; None if no user is."""
        erased = self._read()
        if not erased:
            return None
        user = pc.index_in(table["user_id"], pa.array(list(erased), pa.string()))
        limits = pa.array(list(erased.values()), pa.int64()).take(user.combine_chunks())
        mask = pa.array(np.zeros(table.num_rows, dtype=bool))
        for column in self._times:
            mask = pc.or_(mask, pc.fill_null(pc.less_equal(table[column], limits), False))
        return mask

    def without_erased(self, table: pa.Table) -> pa.Table:
        mask = self.erased_rows(table)
        return table if mask is None else table.filter(pc.invert(mask))

    def _read(self) -> dict[str, int]:
        """User id -> ms; parsed again only when the file has changed."""
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            return {}
        version = (stat.st_mtime_ns, stat.st_ino)
        if version != self._version:
            self._erased = self._parse(self._path.read_bytes())
            self._version = version
        return dict(self._erased)

    def _parse(self, content: bytes) -> dict[str, int]:
        """The erasures; what is none is set aside, so that it cannot stop an append."""
        try:
            stated = dict(json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            kept = self._path.with_name(f"{self._path.name}{DAMAGED}")
            kept.write_bytes(content)  # the next erasure writes the file anew
            set_aside("damaged_file", kept, error)
            return {}
        valid = {user: at_ms for user, at_ms in stated.items() if _is_erasure(user, at_ms)}
        if len(valid) < len(stated):
            name = f"{len(stated) - len(valid)} of {len(stated)} erasures in {self._path}"
            set_aside("erasure_line", name, f"at_ms is no time from 0 to {MAX_EVENT_TIME_MS}")
        return valid


def _is_erasure(user_id: object, at_ms: object) -> bool:
    return isinstance(user_id, str) and type(at_ms) is int and 0 <= at_ms <= MAX_EVENT_TIME_MS
