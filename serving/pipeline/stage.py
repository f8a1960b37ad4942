"""The contract of each kind of stage.

Knows what each kind takes and returns. Does not know how stages are run
(`serving.pipeline.runner`) nor any particular stage (`serving.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from features.store import FeatureFrame
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Removal, Scored
from streams.contract.events import CatalogueItem


class QueryHydrator(Protocol):
    """Fills in fields of the query."""

    @property
    def name(self) -> str: ...

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of Query that it may write."""

    def hydrate(self, query: Query) -> Query: ...


class Source(Protocol):
    """Returns candidates: objects, or `serving.pipeline.pool.CandidateRows` without any.

    A source that waits for nothing may set `in_memory = True`: it is run on the request's own
    thread, and no deadline interrupts it.
    """

    @property
    def name(self) -> str: ...

    def fetch(self, query: Query) -> Sequence[Candidate]: ...


class StreamSource(Source, Protocol):
    """A source that can also return its candidates in parts, the best first."""

    def fetch_stream(self, query: Query) -> Generator[Sequence[Candidate], None, None]:
        """What `fetch` returns, each part as soon as it is known. Closing it ends the work."""


@dataclass(frozen=True)
class Hydration:
    """Columns for the pool: one row per candidate, in the candidates' order."""

    catalogue_items: Sequence[CatalogueItem | None] | None = None
    item_features: FeatureFrame | None = None
    author_features: FeatureFrame | None = None

    def fits(self, length: int) -> bool:
        columns = (self.catalogue_items, self.item_features, self.author_features)
        return all(column is None or len(column) == length for column in columns)


class CandidateHydrator(Protocol):
    """Looks up columns for the candidates."""

    @property
    def name(self) -> str: ...

    def hydrate(self, query: Query, pool: Pool) -> Hydration: ...


class RemembersFeatures(Protocol):
    """A candidate hydrator that can often answer without waiting for a store."""

    def from_memory(self, query: Query, pool: Pool) -> Hydration | None:
        """The columns if all of them are in memory; otherwise None, and `hydrate` is called."""


@dataclass(frozen=True)
class Removed:
    """What a filter removes. `reason`: of a removed row, asked only for rows that are reported."""

    mask: np.ndarray  # bool [C]
    reason: Callable[[int], str]


class MaskFilter(Protocol):
    """A filter on columns. `soft` as in `Filter`."""

    @property
    def name(self) -> str: ...

    @property
    def soft(self) -> bool: ...

    def removed(self, query: Query, pool: Pool) -> Removed: ...


class Filter(Protocol):
    """Decides which candidates are removed, one by one."""

    @property
    def name(self) -> str: ...

    @property
    def soft(self) -> bool:
        """A soft filter keeps rejected candidates where fewer than k would be left."""

    def removal_reasons(self, query: Query, pool: Pool) -> Sequence[str | None]:
        """Per candidate the reason to remove it; None keeps it."""


AnyFilter = Filter | MaskFilter


def removed_by(stage: AnyFilter, query: Query, pool: Pool) -> Removed:
    """The filter's verdict as columns, whichever of the two forms it has.

    Raises:
        ValueError: it returned another number of candidates.
    """
    if hasattr(stage, "removed"):
        found = stage.removed(query, pool)
    else:
        reasons = stage.removal_reasons(query, pool)
        mask = np.array([reason is not None for reason in reasons], bool)
        found = Removed(mask, lambda row: str(reasons[row]))
    if len(found.mask) != len(pool):
        raise ValueError("returned another number of candidates")
    return found


class Prerank(Protocol):
    """A cheap score that limits how many candidates are hydrated and scored."""

    @property
    def name(self) -> str: ...

    @property
    def keep(self) -> int:
        """How many candidates are kept."""

    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        """float [C], higher is better; NaN sorts last."""


class Scorer(Protocol):
    """Scores every candidate of the pool. `in_memory` as in `Source`."""

    @property
    def name(self) -> str: ...

    def score(self, query: Query, pool: Pool) -> Scored: ...


class Selector(Protocol):
    """Chooses and orders at most k candidates.

    One that takes the first k as they are may set `keeps_order = True`: a streamed answer then
    gives each item as soon as its source does.
    """

    @property
    def name(self) -> str: ...

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]: ...


class ExplainsRemovals(Protocol):
    """A selector that reports which candidates it held back, and why."""

    def held_back(
        self, query: Query, pool: Pool, items: tuple[Candidate, ...]
    ) -> Sequence[Removal]: ...
