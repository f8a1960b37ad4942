"""One request's way through the query recommender, whatever runs the network.

Knows contexts, pointers and the beam. Numpy only; in process and in Triton alike. Does
not know tensors' names (`runtime`) nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.generation.bundle import Lexicon
from models.generation.pointers import counts
from models.generation.prompt import ANCHOR_HISTORY, USER_QUERY_HISTORY, Context, encode
from models.layers.decode import Network, Tables, beam_search

WIDTH = 24  # the least beam; a larger k widens it


@dataclass(frozen=True)
class Suggestion:
    query: str
    score: float  # log-probability among the legal queries
    anchor: bool  # behaviour ties it to the video


def recommend(
    network: Network,
    lexicon: Lexicon,
    tables: Tables,
    context: Context,
    *,
    k: int,
    blocked: Sequence[str] = (),
) -> list[Suggestion]:
    """Up to k distinct legal queries, best first; fewer where fewer are legal."""
    pointed = pointer_counts(context, lexicon, lexicon.anchors.get(context.video_id, ()))
    found = beam_search(
        network,
        tables,
        encode(context, lexicon.vocabulary, lexicon.video_number, lexicon.genres_of),
        pointed,
        k=k,
        width=max(WIDTH, 2 * k),
        blocked=np.array(sorted(set(lexicon.queries.found(blocked))), dtype=np.int64),
    )
    texts = lexicon.queries.texts
    tied = pointed[:2].sum(axis=0) > 0
    return [Suggestion(texts[query], score, bool(tied[query])) for query, score in found]


def pointer_counts(context: Context, lexicon: Lexicon, anchors: Sequence[int]) -> np.ndarray:
    """float32 [3, Q]: counts of the pointers live, anchors and user."""
    live = lexicon.queries.found(context.video_query[:ANCHOR_HISTORY])
    own = lexicon.queries.found(context.user_query[:USER_QUERY_HISTORY])
    return counts([live, anchors, own], len(lexicon.queries))
