"""Words and queries: how a text is split, which queries are legal, which number a word has.

Knows texts. Does not know events' columns (`legal` reads counts), the model or torch.
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
def words(text: str) -> tuple[str, ...]:
    """Lower-case words without the punctuation around them: "Toy Story (1995)" has three."""
    bare = (word.strip(string.punctuation) for word in text.lower().split())
    return tuple(word for word in bare if word)


@dataclass(frozen=True)
class Vocabulary:
    """Words by number. Numbers below 4 are padding, unknown, begin and end."""

    texts: tuple[str, ...]
    _number: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {text: n for n, text in enumerate(self.texts)})

    @classmethod
    def of(cls, sequences: Iterable[Sequence[str]]) -> Vocabulary:
        known = sorted({word for sequence in sequences for word in sequence})
        return cls((*_SPECIAL, *known))

    def __len__(self) -> int:
        return len(self.texts)

    def numbers(self, sequence: Sequence[str]) -> list[int]:
        return [self._number.get(word, UNKNOWN) for word in sequence]


@dataclass(frozen=True)
class QuerySet:
    """Q legal queries. Two spellings with the same words are one query.

    `texts` are what is shown, in the spelling that most people used.
    """

    texts: tuple[str, ...]
    _index: dict[tuple[str, ...], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {words(text): n for n, text in enumerate(self.texts)}
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.texts)

    def find(self, text: str) -> int | None:
        """The query's number, or None when it is not legal."""
        return self._index.get(words(text))

    def found(self, texts: Iterable[str]) -> list[int]:
        """Numbers of those texts that are legal, in order, repeats kept."""
        numbers = (self.find(text) for text in texts)
        return [number for number in numbers if number is not None]


def legal(
    askers: Iterable[tuple[str, str]], *, min_users: int, taken_down: Iterable[str] = ()
) -> QuerySet:
    """Queries that at least `min_users` distinct people used, and nobody took down.

    askers: (user_id, query) pairs. The threshold keeps one person's private words from
    being shown to others. A query without a word or of more than MAX_WORDS is not legal.
    """
    users: dict[tuple[str, ...], set[str]] = {}
    spelling: dict[tuple[str, ...], Counter[str]] = {}
    for user_id, query in askers:
        key = words(query)
        if 0 < len(key) <= MAX_WORDS and query.isprintable():
            users.setdefault(key, set()).add(user_id)
            spelling.setdefault(key, Counter())[" ".join(query.split())] += 1
    gone = {words(query) for query in taken_down}
    kept = [key for key, seen in users.items() if len(seen) >= min_users and key not in gone]
    return QuerySet(tuple(sorted(min(_most_used(spelling[key])) for key in kept)))


def _most_used(spellings: Counter[str]) -> list[str]:
    top = max(spellings.values())
    return [text for text, n in spellings.items() if n == top]
