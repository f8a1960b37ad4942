"""The liking factors of the live ranker, read from its bundle, for sources and the pre-rank.

Knows bundles' files by name and the user's recent engagements. Does not know stages. A request
reads the factors of the release that it is pinned to; a bundle without factors, or one that
cannot be read, gives none, and the stages then do without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.ids import id_hash, id_hashes
from models.ranking.ple.features import HISTORY, history_columns
from models.ranking.ple.inputs import liking_of_kinds
from models.retrieval.factorisation.factors import LikingFactors
from serving.pipeline.query import Query, Release

RANKER = "ranker"
_LOG = logging.getLogger(__name__)
_KEPT = 2  # the live release and the one before it, which pinned requests may still name


@dataclass(frozen=True)
class UserLiking:
    """One user's factors among those of all."""

    factors: LikingFactors
    vector: np.ndarray  # float64 [k]

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
        self._read: dict[int, LikingFactors] = {}

    def load(self, release: Release) -> None:
        """Reads the factors of a release, so that no request waits for it."""
        self._factors(release)

    def of(self, query: Query) -> UserLiking | None:
        """The factors of the query's user in its release; None where there are none."""
        factors = self._factors(query.release)
        if not factors.item_ids:
            return None
        met, kinds = np.zeros(HISTORY, np.int64), np.zeros(HISTORY, np.int64)
        if query.user is not None:
            met, kinds = (column[0] for column in history_columns(query.user))
        vector = factors.vector(id_hash(query.user_id), met, liking_of_kinds(kinds))
        return UserLiking(factors, vector)

    def _factors(self, release: Release) -> LikingFactors:
        version = release.version(RANKER)
        if version is None:
            return LikingFactors.empty()
        if version not in self._read:
            kept = dict(list(self._read.items())[1 - _KEPT :])
            self._read = kept | {version: self._from_bundle(version)}
        return self._read.get(version) or LikingFactors.empty()

    def _from_bundle(self, version: int) -> LikingFactors:
        try:
            folder = self._folder(RANKER, version) if self._folder else None
            return LikingFactors.read(folder) if folder else LikingFactors.empty()
        except Exception as error:
            _LOG.warning("the liking factors of ranker %d cannot be read: %s", version, error)
            return LikingFactors.empty()
