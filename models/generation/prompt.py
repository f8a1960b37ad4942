"""The prompt: everything known of a request, squeezed into a short sequence of words.

Knows segments, words and their order. Numpy only: training and serving encode alike.
Does not know the network that reads it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.generation.words import PAD, Vocabulary, words

# Segment -> words it may take. The order is part of a bundle's meaning.
BUDGET: dict[str, int] = {
    "title": 8,
    "genres": 5,
    "anchors": 12,
    "user_queries": 20,
    "taste": 5,
}
PROMPT_LENGTH = 1 + sum(BUDGET.values())  # the video's own id comes first
SEGMENTS = 1 + len(BUDGET)
ANCHOR_HISTORY = 50  # clicked queries of a video that the feature keeps
USER_QUERY_HISTORY = 20
USER_HISTORY = 50


@dataclass(frozen=True)
class Context:
    """One request before it becomes numbers. Lists run newest first."""

    video_id: str
    title: str
    genres: Sequence[str]
    user_history: Sequence[str]
    user_query: Sequence[str]
    video_query: Sequence[str]


@dataclass(frozen=True)
class Prompt:
    """word, segment, place: int64 [P], P <= PROMPT_LENGTH, without padding.

    Place is the word's place within its segment. The first entry, of segment 0, stands
    for the video itself: its number is `video` (0: unknown) and its word is PAD.
    """

    word: np.ndarray
    segment: np.ndarray
    place: np.ndarray
    video: int


def encode(
    context: Context,
    vocabulary: Vocabulary,
    video_number: Mapping[str, int],
    genres_of: Mapping[str, Sequence[str]],
) -> Prompt:
    """`video_number` are the videos with an embedding of their own (from 1), `genres_of`
    the genres of every video that was in the catalogue at training."""
    texts = {
        "title": words(context.title),
        "genres": genre_words(context.genres),
        "anchors": _spread(most_frequent(context.video_query[:ANCHOR_HISTORY], 5)),
        "user_queries": _spread(list(dict.fromkeys(context.user_query[:USER_QUERY_HISTORY]))),
        "taste": taste(context.user_history[:USER_HISTORY], genres_of, BUDGET["taste"]),
    }
    rows = [(PAD, 0, 0)]
    for segment, (name, budget) in enumerate(BUDGET.items(), start=1):
        numbers = vocabulary.numbers(texts[name][:budget])
        rows += [(number, segment, place) for place, number in enumerate(numbers)]
    word, segments, places = np.array(rows, dtype=np.int64).T
    return Prompt(word, segments, places, video_number.get(context.video_id, 0))


def stack(prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """word, segment, place [B, P] padded to the longest, and video [B]. Padding has word PAD
    and a segment above 0."""
    length = max(len(prompt.word) for prompt in prompts)
    word = np.full((len(prompts), length), PAD, dtype=np.int64)
    segment, place = np.ones_like(word), np.zeros_like(word)
    for row, prompt in enumerate(prompts):
        size = len(prompt.word)
        word[row, :size], segment[row, :size] = prompt.word, prompt.segment
        place[row, :size] = prompt.place
    return word, segment, place, np.array([prompt.video for prompt in prompts], dtype=np.int64)


def most_frequent(texts: Sequence[str], n: int) -> list[str]:
    """Distinct texts, most frequent first; the newer of two equals first."""
    return [text for text, _ in Counter(texts).most_common(n)]


def taste(
    history: Sequence[str], genres_of: Mapping[str, Sequence[str]], n: int
) -> tuple[str, ...]:
    """The genres a user engages with most, most frequent first, as single words."""
    liked = itertools.chain.from_iterable(genres_of.get(video_id, ()) for video_id in history)
    seen = Counter(map(_genre_word, liked))
    return tuple(genre for genre, _ in seen.most_common(n))


def genre_words(genres: Iterable[str]) -> tuple[str, ...]:
    """A genre is one word, however it is spelt: "Film Noir" is film-noir."""
    return tuple(map(_genre_word, genres))


@lru_cache(maxsize=1 << 12)
def _genre_word(genre: str) -> str:
    return "-".join(words(genre))


def _spread(queries: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for query in queries for word in words(query))
