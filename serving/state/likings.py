"""The liking factors of the live ranker, read from its bundle, for sources and the pre-rank.

Knows bundles' files by name and the user's recent engagements. Does not know stages. A request
reads the factors of the release that it is pinned to; a bundle without factors, or one that
cannot be read, gives none, and the stages then do without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from models.ids import id_hash, id_hashes
from models.ranking.ple.features import HISTORY, history_columns
from models.ranking.ple.inputs import liking_of_kinds
from models.retrieval.factorisation.factors import LikingFactors
from serving.pipeline.items import UNKNOWN, RowNumbers
from serving.pipeline.query import Query, Release

RANKER = "ranker"
_LOG = logging.getLogger(__name__)
_KEPT = 2  # the live release and the one before it, which pinned requests may still name


class _Places:
    """Where the items of some factors are in the catalogue's table, and the reverse."""

    def __init__(self, factors: LikingFactors) -> None:
        self.factors = factors
        self._numbers: RowNumbers | None = None
        self._rows = self._place = np.zeros(0, np.int64)

    def rows_in(self, numbers: RowNumbers) -> np.ndarray:
        """int64 [V]. Items of the factors get rows, whether the catalogue has them or not."""
        if self._numbers is not numbers:
            self._rows = numbers.add(self.factors.item_ids)
            self._place = np.full(self._rows.max(initial=0) + 2, UNKNOWN)
            self._place[self._rows] = np.arange(len(self._rows))
            self._numbers = numbers
        return self._rows

    def places_of(self, rows: np.ndarray, numbers: RowNumbers) -> np.ndarray:
        """int64: which items of the factors the table's rows are; -1 for others."""
        self.rows_in(numbers)
        return np.asarray(self._place[np.minimum(rows, len(self._place) - 1)])


@dataclass(frozen=True)
class UserLiking:
    """One user's factors among those of all."""

    factors: LikingFactors
    vector: np.ndarray  # float64 [k]
    places: _Places

    @cached_property
    def scores(self) -> np.ndarray:
        """float64 [V]: log-odds of a play up to a constant, of every item of the factors."""
        return self.factors.scores(self.vector)

    def best_rows(
        self, count: int, skip: np.ndarray, numbers: RowNumbers
    ) -> tuple[np.ndarray, np.ndarray]:
        """`best` as rows of the catalogue's table (int64) and their scores (float64).

        skip: int64, rows that are left out.
        """
        own, scores = self.places.rows_in(numbers), self.scores
        reach = min(count + len(skip), len(own))
        best = np.argpartition(-scores, reach - 1)[:reach] if reach else np.zeros(0, np.int64)
        best = best[np.argsort(-scores[best], kind="stable")]
        best = best[~numbers.among(own[best], skip)][:count]
        return own[best], scores[best]

    def scores_at(self, rows: np.ndarray, numbers: RowNumbers) -> np.ndarray:
        """`scores_of` items by their rows of the catalogue's table."""
        place = self.places.places_of(rows, numbers)
        return np.where(place >= 0, self.scores[place], np.nan)

    def best(self, count: int, skip: set[str]) -> list[tuple[str, float]]:
        """The `count` best items with their scores, best first, without those to skip."""
        scores, ids = self.factors.scores(self.vector), self.factors.item_ids
        reach = min(count + len(skip), len(ids))
        rows = np.argpartition(-scores, reach - 1)[:reach] if reach else np.zeros(0, np.int64)
        rows = rows[np.argsort(-scores[rows], kind="stable")].tolist()
        found = [(ids[row], float(scores[row])) for row in rows if ids[row] not in skip]
        return found[:count]

    def scores_of(self, item_ids: list[str]) -> np.ndarray:
        """float64 [C]: log-odds of a play up to a constant; NaN for items without factors."""
        hashes = id_hashes(item_ids)
        parts: np.ndarray = self.factors.parts(self.vector, hashes).sum(axis=1).astype(float)
        parts[self.factors.item_rows(hashes) < 0] = np.nan
        return parts


class Likings:
    """Factors by version of the ranker. Thread safe.

    folder: the folder of a sealed bundle, by model and version; None where there is none.
    """

    def __init__(self, folder: Callable[[str, int], Path | None] | None = None) -> None:
        self._folder = folder
        self._read: dict[int, _Places] = {}

    def load(self, release: Release) -> None:
        """Reads the factors of a release, so that no request waits for it."""
        self._places(release)

    def of(self, query: Query) -> UserLiking | None:
        """The factors of the query's user in its release; None where there are none."""
        return query.once("liking", lambda: self._of(query))

    def _of(self, query: Query) -> UserLiking | None:
        places = self._places(query.release)
        if places is None or not places.factors.item_ids:
            return None
        met, kinds = np.zeros(HISTORY, np.int64), np.zeros(HISTORY, np.int64)
        if query.user is not None:
            met, kinds = (column[0] for column in history_columns(query.user))
        vector = places.factors.vector(id_hash(query.user_id), met, liking_of_kinds(kinds))
        return UserLiking(places.factors, vector, places)

    def _places(self, release: Release) -> _Places | None:
        version = release.version(RANKER)
        if version is None:
            return None
        if version not in self._read:
            kept = dict(list(self._read.items())[1 - _KEPT :])
            self._read = kept | {version: _Places(self._from_bundle(version))}
        return self._read.get(version)

    def _from_bundle(self, version: int) -> LikingFactors:
        try:
            folder = self._folder(RANKER, version) if self._folder else None
            return LikingFactors.read(folder) if folder else LikingFactors.empty()
        except Exception as error:
            _LOG.warning("the liking factors of ranker %d cannot be read: %s", version, error)
            return LikingFactors.empty()
