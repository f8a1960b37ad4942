"""Values of an expression as columns: flags, numbers, texts and lists of texts.

Knows arrays, missing values and codes for texts. Does not know where the values come from
(`serving.rules.columns`) nor which operations there are (`serving.rules.predicate`).

A value has one entry for each item, or a single one for all of them. What is missing is unknown,
as is everything that is computed from it; `known` says which entries are not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ABSENT = -1  # the code of a missing text, and the row of an unknown item
NOT_STORED = -2  # the code of a text that no item has


class Texts:
    """Codes of the texts that items have. Thread safe; never shrinks."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}
        self._texts: list[str] = []
        self._lock = threading.Lock()

    def find(self, text: str) -> int:
        return self._code.get(text, NOT_STORED)

    def text(self, code: int) -> str:
        return self._texts[code]

    def add(self, text: str | None) -> int:
        if text is None:
            return ABSENT
        with self._lock:
            code = self._code.get(text)
            if code is None:
                code = len(self._texts)
                self._texts.append(text)  # first, so that a code that is found has a text
                self._code[text] = code
            return code


@dataclass(frozen=True)
class Flags:
    """bool [C] or [1]. Where `known` is false, `data` is false too."""

    data: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(values: Sequence[bool | None]) -> Flags:
        known = np.array([value is not None for value in values], bool)
        return Flags(np.array([value is True for value in values], bool), known)

    @staticmethod
    def where_known(data: np.ndarray, known: np.ndarray) -> Flags:
        return Flags(data & known, known)

    def take(self, rows: np.ndarray) -> Flags:
        return Flags(self.data[rows], self.known[rows])

    def updated(self, size: int, at: np.ndarray, fresh: Any) -> Flags:
        return Flags(
            _updated(self.data, size, at, fresh.data), _updated(self.known, size, at, fresh.known)
        )


@dataclass(frozen=True)
class Numbers:
    """float64 [C] or [1]: numbers, or times and durations in milliseconds."""

    data: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(values: Sequence[float | None]) -> Numbers:
        known = np.array([value is not None for value in values], bool)
        return Numbers(np.array([0.0 if v is None else v for v in values], np.float64), known)

    def take(self, rows: np.ndarray) -> Numbers:
        return Numbers(self.data[rows], self.known[rows])

    def updated(self, size: int, at: np.ndarray, fresh: Any) -> Numbers:
        return Numbers(
            _updated(self.data, size, at, fresh.data), _updated(self.known, size, at, fresh.known)
        )


@dataclass(frozen=True)
class OneText:
    """A text that is the same for all items; None: unknown."""

    text: str | None


@dataclass(frozen=True)
class TextColumn:
    """int32 [C]: codes, `ABSENT` where unknown."""

    codes: np.ndarray
    texts: Texts

    @staticmethod
    def of(values: Sequence[str | None], texts: Texts) -> TextColumn:
        return TextColumn(np.array([texts.add(value) for value in values], np.int32), texts)

    def take(self, rows: np.ndarray) -> TextColumn:
        return TextColumn(self.codes[rows], self.texts)

    def updated(self, size: int, at: np.ndarray, fresh: Any) -> TextColumn:
        return TextColumn(_updated(self.codes, size, at, fresh.codes), self.texts)


@dataclass(frozen=True)
class OneList:
    """A list of texts that is the same for all items; None: unknown."""

    texts: tuple[str, ...] | None


@dataclass(frozen=True)
class TextListColumn:
    """codes: int32 [C, W], `ABSENT` after a list's end. count: int32 [C], -1 where unknown."""

    codes: np.ndarray
    count: np.ndarray
    texts: Texts

    @staticmethod
    def of(values: Sequence[Sequence[str] | None], texts: Texts) -> TextListColumn:
        width = max((len(each) for each in values if each is not None), default=0)
        codes = np.full((len(values), width), ABSENT, np.int32)
        count = np.full(len(values), -1, np.int32)
        for row, each in enumerate(values):
            if each is not None:
                codes[row, : len(each)] = [texts.add(text) for text in each]
                count[row] = len(each)
        return TextListColumn(codes, count, texts)

    def take(self, rows: np.ndarray) -> TextListColumn:
        return TextListColumn(self.codes[rows], self.count[rows], self.texts)

    def updated(self, size: int, at: np.ndarray, fresh: Any) -> TextListColumn:
        width = max(self.codes.shape[1], fresh.codes.shape[1])
        return TextListColumn(
            _updated(_widened(self.codes, width), size, at, _widened(fresh.codes, width)),
            _updated(self.count, size, at, fresh.count),
            self.texts,
        )


Value = Flags | Numbers | OneText | TextColumn | OneList | TextListColumn


def _widened(codes: np.ndarray, width: int) -> np.ndarray:
    return np.pad(codes, ((0, 0), (0, width - codes.shape[1])), constant_values=ABSENT)


def _updated(column: np.ndarray, size: int, at: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """The column with room for `size` rows and new values at some; fresh: the last one is that of
    an unknown item, which rows without a value and the last row get."""
    found = np.repeat(fresh[-1:], size, axis=0)
    found[: len(column) - 1] = column[:-1]
    found[at] = fresh[:-1]
    return found
