"""An expression's text as a tree of nodes, parsed by the CEL library and bounded.

Knows the syntax of CEL and which part of it is accepted. Does not know names nor types
(`serving.rules.predicate`).

Strings are taken out before the library reads the text: its pattern for strings takes exponential
time on some unterminated ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 10_000  # characters of an expression of a standing rule
MAX_REQUEST_LENGTH = 2_000  # of one that comes with a request
MAX_DEPTH = 64  # of brackets, and of operators within operators
_OPERATORS = {
    "relation_lt": "<",
    "relation_le": "<=",
    "relation_gt": ">",
    "relation_ge": ">=",
    "relation_eq": "==",
    "relation_ne": "!=",
    "relation_in": "in",
    "addition_add": "+",
    "addition_sub": "-",
    "multiplication_mul": "*",
    "multiplication_div": "/",
    "multiplication_mod": "%",
}
_ESCAPES = {
    **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)),
    **{each: each for each in "\\\"'`?"},
}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_NOT_STRINGS = re.compile(r"//[^\n]*|[^\"'/]+|/")


class RuleError(ValueError):
    """An expression or a rule that is refused; the message says why and what would do."""


@dataclass(frozen=True)
class Node:
    """One operation. op: an operator, `and`, `or`, `not`, `neg`, `if`, `list`, `call NAME`,
    `name` (its path in `value`) or `literal` (its value in `value`)."""

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None

    def __str__(self) -> str:
        if self.op == "name":
            return ".".join(self.value)
        if self.op == "literal":
            return repr(self.value)
        return f"{self.op}({', '.join(map(str, self.args))})"


def parse(text: str, longest: int = MAX_LENGTH) -> Node:
    """The expression's tree.

    Raises:
        RuleError: it is too long or too deep, is not CEL, or uses a part of CEL that is not
            accepted.
    """
    from celpy.celparser import CELParseError, CELParser  # takes 0.3 s, and most stacks need none

    if len(text) > longest:
        raise RuleError(f"it has {len(text)} characters, of which {longest} are accepted")
    bare, strings = _without_strings(text)
    _check_brackets(bare)
    try:
        tree = CELParser().parse(bare)
    except CELParseError as error:
        raise RuleError(f"it is not CEL: {_problem(bare, strings, error)}") from error
    return _Reader(strings).node(tree, 0)


def _problem(bare: str, strings: list[str], error: Any) -> str:
    if not bare.strip():
        return "it is empty"
    if getattr(getattr(error.__context__, "token", None), "type", "") == "$END":
        return "it ends too early"
    rest = bare[max((error.column or 1) - 1, 0) :][:20].partition("\n")[0]
    return "unexpected " + re.sub(r'"(\d+)"', lambda n: repr(strings[int(n[1])]), rest)


def _check_brackets(bare: str) -> None:
    depth = 0
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_DEPTH:
            raise RuleError(f"its brackets are more than {MAX_DEPTH} deep")


def _without_strings(text: str) -> tuple[str, list[str]]:
    """The text with its n-th string replaced by "n", and without comments; and the strings."""
    parts, strings, at = list[str](), list[str](), 0
    while at < len(text):
        if found := _NOT_STRINGS.match(text, at):
            parts.append(" " if found[0].startswith("//") else found[0])
            at = found.end()
            continue
        raw = bool(parts) and re.search(r"(?<![\w.])[rR]$", parts[-1]) is not None
        if raw:
            parts[-1] = parts[-1][:-1]
        value, at = _string_at(text, at, raw)
        parts.append(f'"{len(strings)}"')
        strings.append(value)
    return "".join(parts), strings


def _string_at(text: str, start: int, raw: bool) -> tuple[str, int]:
    """The value of the string that starts at `start`, and where it ends."""
    quote, found, at = text[start], list[str](), start + 1
    if text.startswith(quote * 3, start):
        raise RuleError("strings in three quotes are not accepted: use one quote on either side")
    while at < len(text) and text[at] not in (quote, "\n"):
        if text[at] != "\\" or raw:
            found.append(text[at])
            at += 1
        else:
            character, at = _escape_at(text, at + 1)
            found.append(character)
    if text[at : at + 1] != quote:
        raise RuleError(f"the string that starts at character {start + 1} does not end")
    return "".join(found), at + 1


def _escape_at(text: str, at: int) -> tuple[str, int]:
    kind = text[at : at + 1]
    if kind in _ESCAPES and kind:
        return _ESCAPES[kind], at + 1
    digits = text[at + 1 : at + 1 + _HEX_DIGITS.get(kind, 0)]
    if kind in _HEX_DIGITS and kind and re.fullmatch("[0-9a-fA-F]+", digits):
        code = int(digits, 16)
        if code <= 0x10FFFF and not 0xD800 <= code < 0xE000:
            return chr(code), at + 1 + len(digits)
    raise RuleError(f"\\{kind} is no escape that is accepted in a string")


class _Reader:
    """Turns the library's tree into nodes."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings

    def node(self, tree: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise RuleError(f"its operators are more than {MAX_DEPTH} deep")
        tree, data, children = _innermost(tree)
        if data == "literal":
            return self._literal(children[0])
        if data in ("conditionalor", "conditionaland"):
            parts = tuple(self.node(part, depth + 1) for part in _chain(tree, data))
            return Node("or" if data == "conditionalor" else "and", parts)
        inner = depth + 1
        if data in ("relation", "addition", "multiplication"):
            left, right = children
            args = (self.node(left.children[0], inner), self.node(right, inner))
            return Node(_OPERATORS[str(left.data)], args)
        if data == "expr":
            return Node("if", tuple(self.node(child, inner) for child in children))
        if data == "unary":
            op = "not" if children[0].data == "unary_not" else "neg"
            return Node(op, (self.node(children[1], inner),))
        if data == "list_lit":
            return Node("list", self._listed(children, inner))
        return self._member(data, children, inner)

    def _member(self, data: str, children: list[Any], depth: int) -> Node:
        if data == "ident":
            return Node("name", value=(str(children[0]),))
        if data == "ident_arg":
            return Node(f"call {children[0]}", self._listed(children[1:], depth))
        if data == "member_dot":
            return self._path(children[0], str(children[1]), depth)
        if data == "member_dot_arg":
            receiver = self.node(children[0], depth)
            return Node(f"call {children[1]}", (receiver, *self._listed(children[2:], depth)))
        if data == "member_index":
            index = self.node(children[1], depth)
            if index.op == "literal" and isinstance(index.value, str):
                return self._path(children[0], index.value, depth)
            raise RuleError('an index is a string, as in item.attributes["shelf life"]')
        raise RuleError("maps, messages and names that start with a point are not accepted")

    def _path(self, of: Any, last: str, depth: int) -> Node:
        path = self.node(of, depth)
        if path.op != "name":
            raise RuleError(f".{last} is not of a name")
        return Node("name", value=(*path.value, last))

    def _listed(self, children: list[Any], depth: int) -> tuple[Node, ...]:
        return tuple(self.node(each, depth) for part in children for each in part.children)

    def _literal(self, token: Any) -> Node:
        text = str(token)
        if token.type == "STRING_LIT":
            return Node("literal", value=self._strings[int(text[1:-1])])
        if token.type == "BOOL_LIT":
            return Node("literal", value=text == "true")
        if token.type in ("INT_LIT", "FLOAT_LIT"):
            number = _number(text)
            if math.isfinite(number):
                return Node("literal", value=number)
        if token.type == "BYTES_LIT":
            raise RuleError("bytes are not accepted")
        advice = ": ask with has(...) whether a value is stated" if text == "null" else ""
        raise RuleError(f"{text} is not accepted{advice}")


def _number(text: str) -> float:
    """NaN for a hexadecimal number of more than 60 bits."""
    if "x" not in text:
        return float(text)
    return float(int(text, 16)) if len(text) <= 18 else math.nan


def _innermost(tree: Any) -> tuple[Any, str, list[Any]]:
    """The first tree, from the outside, that is more than a bracket around another."""
    while len(tree.children) == 1 and hasattr(tree.children[0], "children"):
        if tree.data in ("literal", "list_lit", "ident_arg"):
            break
        tree = tree.children[0]
    return tree, str(tree.data), tree.children


def _chain(tree: Any, data: str) -> list[Any]:
    """The operands of a || b || c, which the grammar nests, from left to right."""
    found = []
    while tree.data == data and len(tree.children) == 2:
        found.append(tree.children[1])
        tree = tree.children[0]
    return [*found, tree][::-1]
