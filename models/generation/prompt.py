"""The prompt: a request as a short sequence of words in segments.

Knows segments, words and their order. Numpy only: training and serving encode alike. Does not
know the network.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.generation.words import PAD, WordVocabulary, split_words

# Segment -> maximum number of words. Bundles depend on the order.
BUDGET: dict[str, int] = {
    "title": 8,
    "genres": 5,
    "anchors": 12,
    "user_queries": 20,
    "taste": 5,
}
PROMPT_LENGTH = 1 + sum(BUDGET.values())  # the item's own id comes first
SEGMENTS = 1 + len(BUDGET)
ANCHOR_HISTORY = 50  # clicked queries of an item that the feature keeps
USER_QUERY_HISTORY = 20
USER_HISTORY = 50


@dataclass(frozen=True)
class QueryContext:
    """One request as texts. Lists run newest first."""

    item_id: str
    title: str
    genres: Sequence[str]
    user_history: Sequence[str]
    user_query: Sequence[str]
    item_query: Sequence[str]


@dataclass(frozen=True)
class Prompt:
    """word, segment, place: int64 [P], P <= PROMPT_LENGTH, without padding.

    place: the word's position within its segment. The first entry, of segment 0, stands for the
    item itself: its number is `item` (0: unknown) and its word is PAD.
    """

    word: np.ndarray
    segment: np.ndarray
    place: np.ndarray
    item: int


def encode_prompt(
    context: QueryContext,
    vocabulary: WordVocabulary,
    item_number: Mapping[str, int],
    genres_of: Mapping[str, Sequence[str]],
) -> Prompt:
    """A request as a prompt.

    item_number: items with an embedding of their own, from 1; genres_of: the genres of every
    item that was in the catalogue at training.
    """
    texts = {
        "title": split_words(context.title),
        "genres": genre_words(context.genres),
        "anchors": _all_words(most_frequent(context.item_query[:ANCHOR_HISTORY], 5)),
        "user_queries": _all_words(list(dict.fromkeys(context.user_query[:USER_QUERY_HISTORY]))),
        "taste": favourite_genres(context.user_history[:USER_HISTORY], genres_of, BUDGET["taste"]),
    }
    rows = [(PAD, 0, 0)]
    for segment, (name, budget) in enumerate(BUDGET.items(), start=1):
        numbers = vocabulary.numbers(texts[name][:budget])
        rows += [(number, segment, place) for place, number in enumerate(numbers)]
    word, segments, places = np.array(rows, dtype=np.int64).T
    return Prompt(word, segments, places, item_number.get(context.item_id, 0))


def stack_prompts(
    prompts: Sequence[Prompt],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """int64 word, segment, place [B, P] padded to the longest, and item [B].

    Padding has word PAD and a segment above 0.
    """
    length = max(len(prompt.word) for prompt in prompts)
    word = np.full((len(prompts), length), PAD, dtype=np.int64)
    segment, place = np.ones_like(word), np.zeros_like(word)
    for row, prompt in enumerate(prompts):
        size = len(prompt.word)
        word[row, :size], segment[row, :size] = prompt.word, prompt.segment
        place[row, :size] = prompt.place
    return word, segment, place, np.array([prompt.item for prompt in prompts], dtype=np.int64)


def most_frequent(texts: Sequence[str], n: int) -> list[str]:
    """Distinct texts, most frequent first; the newer first among equals."""
    return [text for text, _ in Counter(texts).most_common(n)]


def favourite_genres(
    history: Sequence[str], genres_of: Mapping[str, Sequence[str]], n: int
) -> tuple[str, ...]:
    """The genres that a user engages with most, most frequent first, as single words."""
    liked = itertools.chain.from_iterable(genres_of.get(item_id, ()) for item_id in history)
    seen = Counter(map(_genre_word, liked))
    return tuple(genre for genre, _ in seen.most_common(n))


def genre_words(genres: Iterable[str]) -> tuple[str, ...]:
    """Each genre as one word: "Film Noir" becomes "film-noir"."""
    return tuple(map(_genre_word, genres))


@lru_cache(maxsize=1 << 12)
def _genre_word(genre: str) -> str:
    return "-".join(split_words(genre))


def _all_words(queries: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for query in queries for word in split_words(query))
