"""Words and queries: splitting of texts, legal queries, numbers of words.

Knows texts. Does not know events' columns, the network or torch.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

PAD, UNKNOWN, BEGIN, END = range(4)
_SPECIAL = ("<pad>", "<unknown>", "<begin>", "<end>")
MAX_WORDS = 8  # of a legal query


@lru_cache(maxsize=1 << 16)
def split_words(text: str) -> tuple[str, ...]:
    """Lower-case words without the punctuation around them: "Toy Story (1995)" has three."""
    bare = (word.strip(string.punctuation) for word in text.lower().split())
    return tuple(word for word in bare if word)


@dataclass(frozen=True)
class WordVocabulary:
    """Words by number. Numbers below 4 are padding, unknown, begin and end."""

    texts: tuple[str, ...]
    _number: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {text: n for n, text in enumerate(self.texts)})

    @classmethod
    def of(cls, sequences: Iterable[Sequence[str]]) -> WordVocabulary:
        """The vocabulary of all words of the sequences."""
        known = sorted({word for sequence in sequences for word in sequence})
        return cls((*_SPECIAL, *known))

    def __len__(self) -> int:
        return len(self.texts)

    def numbers(self, sequence: Sequence[str]) -> list[int]:
        """Each word's number; UNKNOWN for a word that is not in the vocabulary."""
        return [self._number.get(word, UNKNOWN) for word in sequence]


@dataclass(frozen=True)
class QuerySet:
    """Q legal queries. Two spellings with the same words are one query.

    `texts` are shown as they are, in the spelling that most users typed.
    """

    texts: tuple[str, ...]
    _index: dict[tuple[str, ...], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {split_words(text): n for n, text in enumerate(self.texts)}
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.texts)

    def find(self, text: str) -> int | None:
        """The query's number; None when it is not legal."""
        return self._index.get(split_words(text))

    def found(self, texts: Iterable[str]) -> list[int]:
        """Numbers of the legal ones among the texts, in order, with repeats."""
        numbers = (self.find(text) for text in texts)
        return [number for number in numbers if number is not None]


def legal_queries(
    askers: Iterable[tuple[str, str]], *, min_users: int, taken_down: Iterable[str] = ()
) -> QuerySet:
    """Queries that at least `min_users` distinct users typed and that were not taken down.

    askers: (user_id, query) pairs. The threshold keeps one user's private words from being shown
    to others. A query without a word, or of more than MAX_WORDS, is not legal.
    """
    users: dict[tuple[str, ...], set[str]] = {}
    spelling: dict[tuple[str, ...], Counter[str]] = {}
    for user_id, query in askers:
        key = split_words(query)
        if 0 < len(key) <= MAX_WORDS and query.isprintable():
            users.setdefault(key, set()).add(user_id)
            spelling.setdefault(key, Counter())[" ".join(query.split())] += 1
    removed = {split_words(query) for query in taken_down}
    kept = [key for key, seen in users.items() if len(seen) >= min_users and key not in removed]
    return QuerySet(tuple(sorted(min(_most_used(spelling[key])) for key in kept)))


def _most_used(spellings: Counter[str]) -> list[str]:
    top = max(spellings.values())
    return [text for text, n in spellings.items() if n == top]
