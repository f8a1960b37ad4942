"""The feed's pipeline with liking factors as a further source, and as its scorer.

Knows stages and factors. Does not know worlds. Not served yet: the benchmark shows what each
step would bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.retrieval.factorisation.factors import LikingFactors
from serving.pipeline.query import Candidate, Pool, Query, Scored
from serving.pipeline.runner import Pipeline

WITH_SOURCE = "served, with liking factors as a source"
WITH_SCORER = "served, with liking factors as source and scorer"
_LIMIT = 150  # the user's own items are among them, and are filtered later


@dataclass(frozen=True)
class LikingSource:
    """The items with the best liking and popularity."""

    factors: LikingFactors
    limit: int = _LIMIT
    name: str = "liking"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        best = self.factors.best(query.user_id, self.limit)
        return [Candidate(item_id, self.name) for item_id in best]


@dataclass(frozen=True)
class LikingScorer:
    """Scores by liking and popularity; no P(action)."""

    factors: LikingFactors
    name: str = "liking"

    def score(self, query: Query, pool: Pool) -> Scored:
        scores = self.factors.scores(query.user_id)
        row = {item_id: at for at, item_id in enumerate(self.factors.item_ids)}
        found = [scores[row[candidate.item_id]] for candidate in pool.candidates]
        return Scored(np.array(found, np.float32), np.zeros((len(pool), 0), np.float32))


def with_factors(usual: Pipeline, factors: LikingFactors) -> dict[str, Pipeline]:
    """The two pipelines by the name of their policy."""
    wider = replace(usual, sources=[*usual.sources, LikingSource(factors)])
    return {
        WITH_SOURCE: wider,
        WITH_SCORER: replace(wider, scorer=LikingScorer(factors)),
    }
