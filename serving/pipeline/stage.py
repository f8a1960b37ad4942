"""What a stage is: the contract of each kind, as a surface puts them in a row.

Knows shapes of questions and answers. Does not know how stages are run
(`serving.pipeline.runner`) nor any one of them (`serving.stages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from features.store import FeatureFrame
from serving.pipeline.query import Candidate, Pool, Query, Removal, Scored
from streams.contract.events import CatalogueItem


class QueryHydrator(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of Query that it may write."""

    def hydrate(self, query: Query) -> Query: ...


class Source(Protocol):
    @property
    def name(self) -> str: ...

    def fetch(self, query: Query) -> Sequence[Candidate]: ...


@dataclass(frozen=True)
class Hydration:
    """Columns for the pool, one row per candidate, in the candidates' order."""

    items: Sequence[CatalogueItem | None] | None = None
    videos: FeatureFrame | None = None
    authors: FeatureFrame | None = None

    def fits(self, length: int) -> bool:
        columns = (self.items, self.videos, self.authors)
        return all(column is None or len(column) == length for column in columns)


class CandidateHydrator(Protocol):
    @property
    def name(self) -> str: ...

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration: ...


class Filter(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def soft(self) -> bool:
        """A soft filter gives way when too few would be left."""

    def judge(self, query: Query, pool: Pool) -> Sequence[str | None]:
        """Per candidate the reason to remove it, or None to keep it."""


class Prerank(Protocol):
    """A light score that decides which candidates the scorer sees at all."""

    @property
    def name(self) -> str: ...

    @property
    def keep(self) -> int:
        """How many go on."""

    def worth(self, query: Query, pool: Pool) -> np.ndarray:
        """float [C], higher is better; NaN comes last."""


class Scorer(Protocol):
    @property
    def name(self) -> str: ...

    def score(self, query: Query, pool: Pool) -> Scored: ...


class Selector(Protocol):
    @property
    def name(self) -> str: ...

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]: ...


@runtime_checkable
class Explains(Protocol):
    """A selector that says what it held back, and why."""

    def held_back(
        self, query: Query, pool: Pool, items: tuple[Candidate, ...]
    ) -> Sequence[Removal]: ...
