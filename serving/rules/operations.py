"""The operations of an expression on whole columns, with three-valued logic.

Knows arrays. Does not know syntax, names nor types, which are checked before
(`serving.rules.predicate`).

CEL calls an error what is unknown here: the value of a field that is not stated, and all that is
computed from it. `and` with a false operand is false and `or` with a true one is true, whatever the
others are; every other operation on something unknown is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.rules.values import (
    ABSENT,
    Flags,
    Numbers,
    OneList,
    OneText,
    TextColumn,
    TextListColumn,
)

Text = OneText | TextColumn
TextList = OneList | TextListColumn
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
UNKNOWN_FLAG = Flags(np.zeros(1, bool), np.zeros(1, bool))


def one_flag(value: bool) -> Flags:
    return Flags(np.array([value]), np.ones(1, bool))


def conjunction(parts: Sequence[Flags]) -> Flags:
    data, known, refuted = parts[0].data, parts[0].known, parts[0].known & ~parts[0].data
    for each in parts[1:]:
        data, known = data & each.data, known & each.known
        refuted = refuted | (each.known & ~each.data)
    return Flags(data, known | refuted)


def disjunction(parts: Sequence[Flags]) -> Flags:
    data, known = parts[0].data, parts[0].known
    for each in parts[1:]:
        data, known = data | each.data, known & each.known
    return Flags(data, known | data)


def negation(flags: Flags) -> Flags:
    return Flags.where_known(~flags.data, flags.known)


def choice(condition: Flags, yes: Any, no: Any) -> Any:
    """`condition ? yes : no`; yes and no: both flags or both numbers."""
    known = condition.known & np.where(condition.data, yes.known, no.known)
    data = np.where(condition.data, yes.data, no.data)
    return Flags.where_known(data, known) if isinstance(yes, Flags) else Numbers(data, known)


def compare(op: str, left: Numbers | Flags, right: Numbers | Flags) -> Flags:
    known = left.known & right.known
    return Flags.where_known(_COMPARISONS[op](left.data, right.data), known)


def arithmetic(op: str, left: Numbers, right: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return Numbers(_ARITHMETIC[op](left.data, right.data), left.known & right.known)


def equal_texts(left: Text, right: Text) -> Flags:
    if isinstance(left, OneText):
        left, right = right, left
    if isinstance(left, OneText):
        assert isinstance(right, OneText)
        unknown = left.text is None or right.text is None
        return UNKNOWN_FLAG if unknown else one_flag(left.text == right.text)
    if isinstance(right, OneText):
        if right.text is None:
            return UNKNOWN_FLAG
        return _known_codes(left, left.codes == left.texts.find(right.text))
    known = (left.codes != ABSENT) & (right.codes != ABSENT)
    return Flags.where_known(left.codes == right.codes, known)


def text_in(text: Text, among: TextList) -> Flags:
    if isinstance(among, OneList):
        if among.texts is None:
            return UNKNOWN_FLAG
        if isinstance(text, OneText):
            return UNKNOWN_FLAG if text.text is None else one_flag(text.text in among.texts)
        codes = [text.texts.find(each) for each in among.texts]
        return _known_codes(text, np.isin(text.codes, codes))
    known = among.count >= 0
    if isinstance(text, OneText):
        if text.text is None:
            return UNKNOWN_FLAG
        code = among.texts.find(text.text)
        return Flags.where_known((among.codes == code).any(1), known)
    known = known & (text.codes != ABSENT)
    return Flags.where_known((among.codes == text.codes[:, None]).any(1), known)


def number_in(number: Numbers, among: Sequence[Numbers]) -> Flags:
    data, known = np.zeros(1, bool), number.known
    for each in among:
        data, known = data | (number.data == each.data), known & each.known
    return Flags.where_known(data, known)


def text_test(text: Text, test: Callable[[str], bool]) -> Flags:
    """The test of each text; a column's distinct texts are tested once."""
    if isinstance(text, OneText):
        return UNKNOWN_FLAG if text.text is None else one_flag(test(text.text))
    codes, place = np.unique(text.codes, return_inverse=True)
    found = [code >= 0 and test(text.texts.text(code)) for code in codes.tolist()]
    return _known_codes(text, np.array(found, bool)[place.reshape(-1)])


def size(value: Text | TextList) -> Numbers:
    if isinstance(value, TextListColumn):
        return Numbers(value.count.astype(np.float64), value.count >= 0)
    if isinstance(value, OneText | OneList):
        one = value.text if isinstance(value, OneText) else value.texts
        return Numbers(np.array([0.0 if one is None else len(one)]), np.array([one is not None]))
    codes, place = np.unique(value.codes, return_inverse=True)
    lengths = [len(value.texts.text(c)) if c >= 0 else 0 for c in codes.tolist()]
    return Numbers(np.array(lengths, np.float64)[place.reshape(-1)], value.codes != ABSENT)


def is_stated(value: Any) -> Flags:
    if isinstance(value, OneText | OneList):
        one = value.text if isinstance(value, OneText) else value.texts
        return one_flag(one is not None)
    if isinstance(value, TextColumn):
        known = value.codes != ABSENT
    else:
        known = value.count >= 0 if isinstance(value, TextListColumn) else value.known
    return Flags(known, np.ones(len(known), bool))


def over_elements(of: TextListColumn, body: Callable[[TextColumn], Flags], every: bool) -> Flags:
    """Whether some element of each list meets a condition; with `every`, whether all do.

    body: of the distinct texts of all lists, computed once for each.
    """
    codes, place = np.unique(of.codes, return_inverse=True)
    found = body(TextColumn(codes, of.texts))
    inside = of.codes != ABSENT
    at = place.reshape(of.codes.shape)
    data = np.broadcast_to(found.data, codes.shape)[at]
    known = np.broadcast_to(found.known, codes.shape)[at]
    decisive = inside & known & (~data if every else data)
    decided = decisive.any(1)
    all_known = (known | ~inside).all(1)
    result = ~decided if every else decided
    return Flags.where_known(result, (of.count >= 0) & (decided | all_known))


def _known_codes(text: TextColumn, data: np.ndarray) -> Flags:
    return Flags.where_known(data, text.codes != ABSENT)
