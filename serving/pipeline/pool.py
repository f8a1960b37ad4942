"""The candidates of one request as columns, and how sources' answers become them.

Knows rows of the catalogue's table, sources and features. Does not know stages. A `Candidate`
object is made only for what is asked for by position: the items of a slate, and those that a
stage which prefers objects looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np

from features.store import FeatureFrame
from serving.pipeline.frames import take_rows
from serving.pipeline.items import UNKNOWN, CatalogueRows, ItemTable, draw_name
from serving.pipeline.query import Candidate, RankerInputs, Scored
from streams.contract.events import CatalogueItem
from streams.contract.topics import entity_hash


@dataclass(frozen=True, eq=False)
class CandidateRows(Sequence[Candidate]):
    """What a source found, as rows of a table: a sequence of candidates without their objects.

    rows: int64 [C], none `UNKNOWN`; score: float [C], zeros where the source gives none.
    """

    table: ItemTable
    rows: np.ndarray
    source: str
    score: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Candidate: ...

    @overload
    def __getitem__(self, at: slice) -> CandidateRows: ...

    def __getitem__(self, at: int | slice) -> Candidate | CandidateRows:
        if isinstance(at, slice):
            score = None if self.score is None else self.score[at]
            return CandidateRows(self.table, self.rows[at], self.source, score)
        score_at = 0.0 if self.score is None else float(self.score[at])
        return Candidate(self.table.numbers.id_of(int(self.rows[at])), self.source, score=score_at)


@dataclass(frozen=True, eq=False)
class Pool:
    """C candidates and their columns. Row i of every column belongs to candidate i.

    table, rows: which item each is, int64 [C]; `UNKNOWN` for an item without a row, which
        `given` then names.
    sources, source: names, and int64 [C] into them. source_score: float64 [C].
    given: object [C], the candidates that sources returned as objects, else None; None where no
        source did.
    about: their catalogue items, once hydrated.
    """

    table: ItemTable | None
    rows: np.ndarray
    sources: tuple[str, ...]
    source: np.ndarray
    source_score: np.ndarray
    given: np.ndarray | None = None
    about: Sequence[CatalogueItem | None] | None = None
    item_features: FeatureFrame | None = None
    author_features: FeatureFrame | None = None
    scored: Scored | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def of(candidates: Sequence[Candidate], scored: Scored | None = None) -> Pool:
        """The pool of these candidates, and of their catalogue items if all have one."""
        pool = pool_of([candidates])
        items = [candidate.item for candidate in candidates]
        return replace(pool, scored=scored, about=items if any(items) else None)

    @cached_property
    def item_ids(self) -> list[str]:
        if self.given is None:
            return [] if self.table is None else self.table.numbers.ids_of(self.rows)
        return [self._id(row) for row in range(len(self))]

    @cached_property
    def queries(self) -> list[str | None]:
        """The recommended query of each candidate; None where an item is recommended."""
        if self.given is None:
            return [None] * len(self)
        return [None if each is None else each.query for each in self.given.tolist()]

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate as an object, for stages that look at a few or prefer objects."""
        return tuple(self.candidate(row) for row in range(len(self)))

    def candidate(self, row: int) -> Candidate:
        item = None if self.about is None else self.about[row]
        if self.given is not None and self.given[row] is not None:
            given: Candidate = self.given[row]
            return given if self.about is None else replace(given, item=item)
        source, score = self.sources[int(self.source[row])], float(self.source_score[row])
        return Candidate(self._id(row), source, score=score, item=item)

    def rows_in(self, table: ItemTable) -> np.ndarray:
        """int64 [C]: the candidates' rows of the catalogue's table; `UNKNOWN` without one."""
        return self.rows if table is self.table else table.numbers.rows_of(self.item_ids)

    def from_source(self, name: str) -> np.ndarray:
        """bool [C]"""
        if name not in self.sources:
            return np.zeros(len(self), bool)
        return np.asarray(self.source == self.sources.index(name))

    def draw_hashes(self) -> np.ndarray:
        """uint64 [C], by item and query alone."""
        if self.given is None and self.table is not None:
            return self.table.draw_hashes(self.rows)
        names = map(draw_name, self.item_ids, self.queries)
        return np.array([entity_hash(name) for name in names], np.uint64)

    def genre_shares(self) -> np.ndarray:
        """float64 [C, G], each row summing to 1, or 0 for an item without genres."""
        if isinstance(self.about, CatalogueRows):
            return self.about.table.genre_shares(self.about.rows)
        genres = [() if item is None else item.genres for item in self.about or [None] * len(self)]
        column = {name: at for at, name in enumerate(sorted({g for row in genres for g in row}))}
        shares = np.zeros((len(self), max(len(column), 1)))
        for at, names in enumerate(genres):
            for name in names:
                shares[at, column[name]] = 1.0 / len(names)
        return shares

    def take(self, rows: Sequence[int] | np.ndarray) -> Pool:
        """The pool of these rows, in this order, without scores: filters run before scorers."""
        index = np.asarray(rows, np.int64)
        items, authors = self.item_features, self.author_features
        return Pool(
            self.table,
            self.rows[index],
            self.sources,
            self.source[index],
            self.source_score[index],
            given=None if self.given is None else self.given[index],
            about=_taken(self.about, index),
            item_features=None if items is None else take_rows(items, index.tolist()),
            author_features=None if authors is None else take_rows(authors, index.tolist()),
        )

    def ranker_inputs(self, items: Sequence[Candidate]) -> RankerInputs | None:
        """The model's inputs for `items`, in their order; None unless a model scored them."""
        if self.scored is None or self.scored.inputs is None:
            return None
        row = {item_id: at for at, item_id in enumerate(self.item_ids)}
        inputs = self.scored.inputs
        return replace(inputs, item_x=inputs.item_x[[row[item.item_id] for item in items]])

    def slate_item(
        self, row: int, propensity: float, explored: bool, placed: str | None = None
    ) -> Candidate:
        """Candidate `row` with its score, P(action) and propensity filled in."""
        candidate, scored = self.candidate(row), self.scored
        score, p = candidate.score, candidate.p
        if scored is not None:
            score = float(scored.score[row])
            p = dict(zip(scored.tasks, scored.p[row].tolist(), strict=True)) or p
        return Candidate(
            candidate.item_id,
            candidate.source,
            query=candidate.query,
            score=score,
            p=p,
            notes=candidate.notes,
            propensity=float(propensity),
            explored=bool(explored),
            item=candidate.item,
            placed=placed,
        )

    def _id(self, row: int) -> str:
        given = None if self.given is None else self.given[row]
        if given is not None:
            return str(given.item_id)
        assert self.table is not None
        return self.table.numbers.id_of(int(self.rows[row]))


def pool_of(found: Sequence[Sequence[Candidate]]) -> Pool:
    """The sources' answers as one pool, in their order."""
    tables = [each.table for each in found if isinstance(each, CandidateRows)]
    table = tables[0] if tables else None
    names: dict[str, int] = {}
    parts = [_columns(each, table, names) for each in found if len(each)]
    if not parts:
        none = np.zeros(0, np.int64)
        return Pool(table, none, (), none, np.zeros(0))
    rows, source, score, given = zip(*parts, strict=True)
    has_given = any(each is not None for each in given)
    objects = [
        np.full(len(r), None, object) if g is None else g for g, r in zip(given, rows, strict=True)
    ]
    return Pool(
        table,
        np.concatenate(rows),
        tuple(names),
        np.concatenate(source),
        np.concatenate(score),
        given=np.concatenate(objects) if has_given else None,
    )


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def _columns(
    found: Sequence[Candidate], table: ItemTable | None, names: dict[str, int]
) -> _Columns:
    """rows, source, score and objects of one source's answer; adds its source to `names`."""
    count = len(found)
    if isinstance(found, CandidateRows) and found.table is table:
        code = names.setdefault(found.source, len(names))
        score = np.zeros(count) if found.score is None else found.score.astype(np.float64)
        return found.rows, np.full(count, code), score, None
    given = np.empty(count, object)
    given[:] = list(found)
    source = np.array([names.setdefault(each.source, len(names)) for each in found], np.int64)
    score = np.array([each.score for each in found], np.float64)
    rows = np.full(count, UNKNOWN)
    if table is not None:
        rows = table.numbers.rows_of(each.item_id for each in found)
    return rows, source, score, given


def _taken(
    about: Sequence[CatalogueItem | None] | None, index: np.ndarray
) -> Sequence[CatalogueItem | None] | None:
    if isinstance(about, CatalogueRows):
        return CatalogueRows(about.table, about.rows[index])
    return None if about is None else [about[row] for row in index.tolist()]
