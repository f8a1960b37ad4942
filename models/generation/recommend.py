"""One request of the query recommender: prompt, pointers, beam search.

Knows contexts, pointers and the beam. Numpy only. Does not know tensor names (`runtime`) or
whether torch or ONNX Runtime runs the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.generation.bundle import Lexicon
from models.generation.prompt import (
    ANCHOR_HISTORY,
    USER_QUERY_HISTORY,
    Prompt,
    QueryContext,
    encode_prompt,
)
from models.generation.words import BEGIN
from models.layers.decode import DecoderNetwork, DecodeTables, beam_search_parts
from models.layers.pointers import query_counts

MIN_BEAMS = 24  # a larger k takes 2 * k


class QueryNetwork(DecoderNetwork, Protocol):
    """The exported or the torch network."""

    def read(self, prompt: Prompt) -> tuple[np.ndarray, ...]:
        """The prompt's keys, values and mask, computed once per request."""


@dataclass(frozen=True)
class Suggestion:
    """One recommended query."""

    query: str
    score: float  # log-probability among the legal queries
    anchor: bool  # whether it was clicked under the item


def recommend_queries(
    network: QueryNetwork,
    lexicon: Lexicon,
    tables: DecodeTables,
    context: QueryContext,
    *,
    k: int,
    blocked: Sequence[str] = (),
) -> list[Suggestion]:
    """Up to k distinct legal queries, best first; fewer where fewer are legal."""
    parts = recommend_in_parts(network, lexicon, tables, context, k=k, blocked=blocked)
    return [suggestion for part in parts for suggestion in part]


def recommend_in_parts(
    network: QueryNetwork,
    lexicon: Lexicon,
    tables: DecodeTables,
    context: QueryContext,
    *,
    k: int,
    blocked: Sequence[str] = (),
) -> Iterator[list[Suggestion]]:
    """What `recommend_queries` returns, in parts, each as soon as it is decided."""
    pointed = pointer_counts(context, lexicon, lexicon.anchors.get(context.item_id, ()))
    prompt = encode_prompt(context, lexicon.vocabulary, lexicon.item_number, lexicon.genres_of)
    parts = beam_search_parts(
        network,
        tables,
        network.read(prompt),
        pointed,
        begin=BEGIN,
        k=k,
        width=max(MIN_BEAMS, 2 * k),
        blocked=np.array(sorted(set(lexicon.queries.found(blocked))), dtype=np.int64),
    )
    texts = lexicon.queries.texts
    anchored = pointed[:2].sum(axis=0) > 0
    for part in parts:
        yield [Suggestion(texts[query], score, bool(anchored[query])) for query, score in part]


def pointer_counts(context: QueryContext, lexicon: Lexicon, anchors: Sequence[int]) -> np.ndarray:
    """float32 [3, Q]: counts of the pointers live, anchors and user."""
    live = lexicon.queries.found(context.item_query[:ANCHOR_HISTORY])
    own = lexicon.queries.found(context.user_query[:USER_QUERY_HISTORY])
    return query_counts([live, anchors, own], len(lexicon.queries))
