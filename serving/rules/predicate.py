"""Expressions compiled to predicates over columns; types and names are checked here.

Knows nodes, names and their types. Does not know how values are stored (`serving.rules.values`)
nor what a predicate decides (`serving.rules.definitions`).

What depends on items alone is computed once for all items and kept as a mask; a request computes
only what depends on the user, the context or the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from serving.rules import operations as ops
from serving.rules.columns import Frame
from serving.rules.literals import duration_ms, pattern_test, timestamp_ms
from serving.rules.names import Path, Type, type_of
from serving.rules.syntax import MAX_LENGTH, Node, RuleError, parse
from serving.rules.values import Flags, Numbers, OneList, OneText
from streams.contract.declaration import Contract, contract

_TEXT_TESTS: Mapping[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": str.__contains__,
}
_FUNCTIONS = "has, size, startsWith, endsWith, contains, matches, exists, all, timestamp, duration"
_KINDS: Mapping[Type, str] = {
    "bool": "a condition",
    "number": "a number",
    "string": "a text",
    "strings": "a list of texts",
    "timestamp": "a time",
    "duration": "a duration",
}
_ORDERED = ("number", "timestamp", "duration")


@dataclass(frozen=True)
class _Term:
    """A compiled operation. items, request: what its value depends on."""

    type: Type
    run: Callable[[Frame], Any]
    node: Node
    items: bool = False
    request: bool = False

    def __str__(self) -> str:
        return str(self.node)

    @property
    def masked(self) -> _Term:
        """The same condition, computed once for all items where it depends on these alone."""
        if self.type != "bool" or not self.items or self.request:
            return self
        name, run = str(self.node), self.run
        return replace(self, run=lambda frame: frame.mask(name, run))


@dataclass(frozen=True)
class Predicate:
    """A condition on items. `text`: as it was stated. _mask: its mask's name and computation, where
    it depends on items alone."""

    text: str
    _term: _Term
    _mask: tuple[str, Callable[[Frame], Flags]] | None = None

    def truth(self, frame: Frame) -> Flags:
        """data and known: bool [C]."""
        found: Flags = self._term.run(frame)
        shape = frame.rows.shape
        return Flags(np.broadcast_to(found.data, shape), np.broadcast_to(found.known, shape))

    def holds(self, frame: Frame) -> np.ndarray:
        """bool [C]: true; neither false nor unknown."""
        if self._mask is not None:
            return frame.mask_holds(*self._mask)
        found: Flags = self._term.run(frame)
        return np.broadcast_to(found.data, frame.rows.shape)


def compile_predicate(text: str, longest: int = MAX_LENGTH) -> Predicate:
    """The expression, checked against the names in force.

    Raises:
        RuleError: it is not accepted; the message says why.
    """
    return _compiled(text, longest, _ContractKey(contract()))


@dataclass(frozen=True)
class _ContractKey:
    """The contract in force as a key of the cache: equal only to itself."""

    held: Contract

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ContractKey) and other.held is self.held


@lru_cache(maxsize=1_024)
def _compiled(text: str, longest: int, _in_force: _ContractKey) -> Predicate:
    term = _Compiler({}).term(parse(text, longest))
    _expect(term, "bool", "a rule's condition")
    alone = term.items and not term.request
    return Predicate(text, term.masked, (str(term), term.run) if alone else None)


def _expect(term: _Term, kind: Type, where: str) -> None:
    if term.type != kind:
        raise RuleError(f"{term} is {_KINDS[term.type]}, and {where} needs {_KINDS[kind]}")


class _Compiler:
    """Compiles nodes. local: the elements that `exists` and `all` name, while inside of these."""

    def __init__(self, local: Mapping[str, _Term]) -> None:
        self._local = local

    def term(self, node: Node) -> _Term:
        if node.op == "literal":
            return _literal(node)
        if node.op == "name":
            return self._local.get(node.value[0]) or _name(node)
        if node.op in ("call exists", "call all"):
            return self._over_elements(node)
        if node.op == "call has":
            return self._has(node)
        if node.op == "list":
            raise RuleError("a list stands only after `in`")
        if node.op == "in" and node.args[1].op == "list":
            return self._in_list(node)
        terms = tuple(self.term(arg) for arg in node.args)
        if node.op.startswith("call "):
            return _call(node, terms)
        return _operation(node, terms)

    def _has(self, node: Node) -> _Term:
        if len(node.args) != 1 or node.args[0].op != "name":
            raise RuleError("has takes a name, as in has(item.attributes.size)")
        of = self.term(node.args[0])
        return _combined("bool", node, (of,), ops.is_stated)

    def _in_list(self, node: Node) -> _Term:
        of, among = self.term(node.args[0]), tuple(self.term(each) for each in node.args[1].args)
        for each in among:
            if each.items:
                raise RuleError(f"{each} differs from item to item: a list holds what does not")
            _expect(each, of.type, "the list beside it")
        if of.type == "string":
            return _combined("bool", node, (of, *among), _text_in_list)
        if of.type in _ORDERED:
            return _combined("bool", node, (of, *among), lambda x, *y: ops.number_in(x, y))
        raise RuleError(f"{of} is {_KINDS[of.type]}: a list is searched for a text or a number")

    def _over_elements(self, node: Node) -> _Term:
        op = node.op.removeprefix("call ")
        if len(node.args) != 3 or node.args[1].op != "name" or len(node.args[1].value) != 1:
            raise RuleError(f"write {op} as in item.categories.{op}(c, c.startsWith('a'))")
        of, name = self.term(node.args[0]), node.args[1].value[0]
        if of.type != "strings" or not of.items or of.request or self._local:
            raise RuleError(f"{op} is of a list of texts of an item, and not inside another")
        element = _Term("string", lambda frame: frame.element, node.args[1])
        body = _Compiler({name: element}).term(node.args[2])
        _expect(body, "bool", op)
        if body.items:
            raise RuleError(f"the condition in {op} may name {name}, users and requests, not items")

        def run(frame: Frame) -> Flags:
            return ops.over_elements(
                of.run(frame),
                lambda elements: body.run(replace(frame, element=elements)),
                every=op == "all",
            )

        return _Term("bool", run, node, items=True, request=body.request)


def _literal(node: Node) -> _Term:
    if isinstance(node.value, bool):
        flag = ops.one_flag(node.value)
        return _Term("bool", lambda _frame: flag, node)
    if isinstance(node.value, float):
        return _constant("number", node.value, node)
    text = OneText(node.value)
    return _Term("string", lambda _frame: text, node)


def _constant(kind: Type, value: float, node: Node) -> _Term:
    number = Numbers(np.array([value]), np.ones(1, bool))
    return _Term(kind, lambda _frame: number, node)


def _name(node: Node) -> _Term:
    path: Path = node.value
    kind = type_of(path)
    if path[0] == "item":
        return _Term(kind, lambda frame: frame.column(path[1:]), node, items=True)

    def run(frame: Frame) -> Any:
        value = None if frame.request is None else frame.request.value(path)
        if kind == "string":
            return OneText(value)
        if kind == "strings":
            return OneList(value)
        if kind == "bool":
            return ops.UNKNOWN_FLAG if value is None else ops.one_flag(value)
        return Numbers(np.array([0.0 if value is None else value]), np.array([value is not None]))

    return _Term(kind, run, node, request=True)


def _combined(
    kind: Type, node: Node, terms: tuple[_Term, ...], compute: Callable[..., Any]
) -> _Term:
    """A term of the values of others. Conditions that depend on items alone become masks where
    the whole does not."""
    items, request = any(t.items for t in terms), any(t.request for t in terms)
    runs = [(term.masked if request else term).run for term in terms]
    return _Term(kind, lambda frame: compute(*[run(frame) for run in runs]), node, items, request)


def _text_in_list(text: ops.Text, *among: OneText) -> Flags:
    texts = tuple(each.text for each in among)
    known = tuple(text for text in texts if text is not None)
    return ops.text_in(text, OneList(known if len(known) == len(texts) else None))


def _operation(node: Node, terms: tuple[_Term, ...]) -> _Term:
    op = node.op
    if op in ("and", "or", "not"):
        for term in terms:
            _expect(term, "bool", {"and": "&&", "or": "||", "not": "!"}[op])
        logic = {"and": ops.conjunction, "or": ops.disjunction}
        if op == "not":
            return _combined("bool", node, terms, ops.negation)
        return _combined("bool", node, terms, lambda *parts: logic[op](parts))
    if op == "if":
        return _choice(node, terms)
    if op == "neg":
        if terms[0].type not in ("number", "duration"):
            raise RuleError(f"{terms[0]} is {_KINDS[terms[0].type]} and has no negative")
        return _combined(
            terms[0].type, node, terms, lambda number: Numbers(-number.data, number.known)
        )
    if op in ("+", "-", "*", "/", "%"):
        return _arithmetic(node, terms)
    if op == "in":
        _expect(terms[0], "string", "`in`")
        _expect(terms[1], "strings", "the right of `in`")
        return _combined("bool", node, terms, ops.text_in)
    return _comparison(node, terms)


def _choice(node: Node, terms: tuple[_Term, ...]) -> _Term:
    condition, yes, no = terms
    _expect(condition, "bool", "the left of ?")
    _expect(no, yes.type, "the right of : beside it")
    if yes.type in ("string", "strings"):
        raise RuleError("? chooses between conditions, numbers, times and durations, not texts")
    return _combined(yes.type, node, terms, ops.choice)


def _comparison(node: Node, terms: tuple[_Term, ...]) -> _Term:
    op, (left, right) = node.op, terms
    if left.type != right.type:
        kinds = f"{left} is {_KINDS[left.type]} and {right} {_KINDS[right.type]}"
        raise RuleError(f"{kinds}: {op} compares values of one type")
    if left.type in _ORDERED:
        return _combined("bool", node, terms, lambda x, y: ops.compare(op, x, y))
    if op not in ("==", "!="):
        raise RuleError(f"{op} compares numbers, times and durations, not {_KINDS[left.type]}")
    if left.type == "bool":
        return _combined("bool", node, terms, lambda x, y: ops.compare(op, x, y))
    if left.type == "strings":
        raise RuleError("lists are not compared: use `in`, exists or all")
    if op == "!=":
        return _combined("bool", node, terms, lambda x, y: ops.negation(ops.equal_texts(x, y)))
    return _combined("bool", node, terms, ops.equal_texts)


_RESULTS: Mapping[tuple[Type, str, Type], Type] = {
    **{("number", op, "number"): "number" for op in "+-*/"},
    **{("duration", op, "duration"): "duration" for op in "+-"},
    **{("timestamp", op, "duration"): "timestamp" for op in "+-"},
    ("timestamp", "-", "timestamp"): "duration",
}


def _arithmetic(node: Node, terms: tuple[_Term, ...]) -> _Term:
    kind = _RESULTS.get((terms[0].type, node.op, terms[1].type))
    if kind is None:
        kinds = f"{_KINDS[terms[0].type]} and {_KINDS[terms[1].type]}"
        raise RuleError(f"{node.op} is not defined for {kinds}")
    return _combined(kind, node, terms, lambda x, y: ops.arithmetic(node.op, x, y))


def _call(node: Node, terms: tuple[_Term, ...]) -> _Term:
    name = node.op.removeprefix("call ")
    if name in ("timestamp", "duration") and len(terms) == 1:
        read = timestamp_ms if name == "timestamp" else duration_ms
        kind: Type = "timestamp" if name == "timestamp" else "duration"
        return _constant(kind, read(_stated_text(node, name)), node)
    if name == "size" and len(terms) == 1:
        if terms[0].type not in ("string", "strings"):
            raise RuleError(f"{terms[0]} is {_KINDS[terms[0].type]} and has no size")
        return _combined("number", node, terms, ops.size)
    if name in (*_TEXT_TESTS, "matches") and len(terms) == 2:
        for term in terms:
            _expect(term, "string", name)
        if terms[1].items:
            raise RuleError(f"{terms[1]} differs from item to item: {name} takes what does not")
        if name == "matches":
            test = pattern_test(_stated_text(node, name))
            return _combined("bool", node, terms[:1], lambda text: ops.text_test(text, test))
        return _combined("bool", node, terms, lambda x, y: _tested(name, x, y))
    raise RuleError(f"there is no {name} with {len(terms)} values; there are {_FUNCTIONS}")


def _tested(name: str, text: ops.Text, by: OneText) -> Flags:
    if by.text is None:
        return ops.UNKNOWN_FLAG
    part, test = by.text, _TEXT_TESTS[name]
    return ops.text_test(text, lambda each: test(each, part))


def _stated_text(node: Node, name: str) -> str:
    last = node.args[-1]
    if last.op != "literal" or not isinstance(last.value, str):
        raise RuleError(f"{name} takes a string that is written out")
    return last.value
