"""The removals of one request, made into objects only when they are read.

Knows pools and reasons. Does not know why a stage removes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import overload

import numpy as np

from serving.pipeline.pool import Pool
from serving.pipeline.query import Removal

_Batch = tuple[str, int, Callable[[int], list[Removal]]]  # stage, how many, the first n of them


def _one(removal: Removal, _count: int) -> list[Removal]:
    return [removal]


class Removals(Sequence[Removal]):
    """Every removed candidate in the order of the stages, each with its reason."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def add(self, removals: Sequence[Removal]) -> None:
        self._batches += [(each.stage, 1, partial(_one, each)) for each in removals]

    def add_rows(
        self, stage: str, pool: Pool, rows: np.ndarray, reason: Callable[[int], str]
    ) -> None:
        """rows: int64, of `pool`, in the order in which they are reported."""

        def first(count: int) -> list[Removal]:
            chosen, ids, queries = rows[:count].tolist(), pool.item_ids, pool.queries
            return [Removal(ids[row], stage, reason(row), queries[row]) for row in chosen]

        self._batches.append((stage, len(rows), first))

    def count_without(self, stage: str) -> int:
        """How many were removed by other stages."""
        return sum(count for name, count, _ in self._batches if name != stage)

    def count_of(self, stage: str) -> int:
        """How many were removed by this stage."""
        return len(self) - self.count_without(stage)

    def first(self, limit: int, last: str) -> list[Removal]:
        """At most `limit` removals: those by the stage `last` after all others."""
        found: list[Removal] = []
        for _, _, first in sorted(self._batches, key=lambda batch: batch[0] == last):
            if len(found) >= limit:
                break
            found += first(limit - len(found))
        return found

    def __len__(self) -> int:
        return sum(count for _, count, _ in self._batches)

    def __iter__(self) -> Iterator[Removal]:
        for _, count, first in self._batches:
            yield from first(count)

    @overload
    def __getitem__(self, at: int) -> Removal: ...

    @overload
    def __getitem__(self, at: slice) -> list[Removal]: ...

    def __getitem__(self, at: int | slice) -> Removal | list[Removal]:
        return list(self)[at]
