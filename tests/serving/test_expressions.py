"""Laws of expressions: a compiled predicate says what the CEL library says, item by item."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import celpy
import numpy as np
import pytest
from celpy import celtypes
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.pipeline.items import ItemTable
from serving.pipeline.query import Query
from serving.pipeline.requests import RequestContext
from serving.rules.columns import ItemColumns
from serving.rules.names import RequestValues, known_names
from serving.rules.predicate import compile_predicate
from serving.rules.syntax import MAX_LENGTH, RuleError
from streams.contract.attributes import AttributeDeclaration, AttributeDeclarations
from streams.contract.declaration import Contract, declared
from streams.contract.events import CatalogueItem

NOW_MS = 1_790_000_000_000
ITEMS = AttributeDeclarations(
    {
        name: AttributeDeclaration.model_validate(kind)
        for name, kind in {"size": "label", "weight": "number", "tags": "labels"}.items()
    }
    | {"organic": AttributeDeclaration(type="flag")}
    | {"vec": AttributeDeclaration(type="vector", length=2)}
)
USERS = AttributeDeclarations(
    {
        "city": AttributeDeclaration(type="label"),
        "likes": AttributeDeclaration(type="labels"),
        "budget": AttributeDeclaration(type="number"),
        "adult": AttributeDeclaration(type="flag"),
    }
)
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def attributes() -> Iterator[None]:
    with declared(Contract(items=ITEMS, users=USERS)):
        yield


class _User(RequestValues):
    """Values of a request whose user's attributes are given."""

    def __init__(self, attributes: dict[str, Any], context: RequestContext) -> None:
        super().__init__(Query("r", "feed", "u1", 8, NOW_MS, 0, context=context))
        self._attributes = attributes

    def value(self, path: tuple[str, ...]) -> Any:
        if path[:2] == ("user", "attributes"):
            return self._attributes.get(path[2])
        return super().value(path)


WORDS = st.sampled_from(["a", "ab", "b", "Ünï", "x y", 'q"'])
NUMBERS = st.sampled_from([-2.5, 0.0, 1.0, 2.0, 10.5])


def _maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


ITEM = st.builds(
    lambda price, brand, categories, created, attributes: CatalogueItem(
        item_id="set later",
        title="t",
        brand=brand,
        price_cents=0 if price is None else price,
        currency=None if price is None else "EUR",
        categories=categories,
        created_ms=0 if created is None else NOW_MS - created * DAY_MS,
        attributes={name: value for name, value in attributes.items() if value is not None},
    ),
    price=_maybe(st.sampled_from([0, 100, 1_050, 99_999])),
    brand=_maybe(WORDS),
    categories=st.lists(WORDS, max_size=3),
    created=_maybe(st.integers(0, 5)),
    attributes=st.fixed_dictionaries(
        {
            "size": _maybe(WORDS),
            "weight": _maybe(NUMBERS),
            "organic": _maybe(st.booleans()),
            "tags": _maybe(st.lists(WORDS, max_size=3)),
        }
    ),
)
USER = st.fixed_dictionaries(
    {
        "city": _maybe(WORDS),
        "likes": _maybe(st.lists(WORDS, max_size=2).map(tuple)),
        "budget": _maybe(NUMBERS),
        "adult": _maybe(st.booleans()),
    }
).map(lambda stated: {name: value for name, value in stated.items() if value is not None})


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


TEXT = st.sampled_from(
    ["item.brand", "item.attributes.size", "user.attributes.city", "context.device"]
) | WORDS.map(_quoted)
FIXED_TEXT = st.sampled_from(["user.attributes.city", "context.page"]) | WORDS.map(_quoted)
LIST = st.sampled_from(["item.categories", "item.attributes.tags", "user.attributes.likes"])
ITEM_LIST = st.sampled_from(["item.categories", "item.attributes.tags"])
NUMBER = st.recursive(
    st.sampled_from(["item.price", "item.attributes.weight", "user.attributes.budget"])
    | NUMBERS.map(str),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
    max_leaves=3,
)
HAD = st.sampled_from(
    ["item.attributes.size", "user.attributes.budget", "item.price", "context.page", "item.created"]
)
COMPARED = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
EQUAL = st.sampled_from(["==", "!="])
BASIC = st.one_of(
    st.sampled_from(["true", "false", "item.attributes.organic", "user.attributes.adult"]),
    st.builds("{} {} {}".format, NUMBER, COMPARED, NUMBER),
    st.builds("{} {} {}".format, TEXT, EQUAL, TEXT),
    st.builds("{} in {}".format, TEXT, LIST),
    st.builds("{} in [{}, {}]".format, TEXT, FIXED_TEXT, FIXED_TEXT),
    st.builds("{} in [{}, 1.0]".format, NUMBER, NUMBERS.map(str)),
    st.builds(
        "{}.{}({})".format,
        TEXT,
        st.sampled_from(["startsWith", "endsWith", "contains"]),
        FIXED_TEXT,
    ),
    st.builds("{}.matches({})".format, TEXT, st.sampled_from(["'^a'", "'b$'", "'[ay]'"])),
    st.builds("size({}) {} 1".format, LIST | TEXT, COMPARED),
    st.builds("has({})".format, HAD),
    st.builds("now - item.created {} duration('{}h')".format, COMPARED, st.integers(0, 120)),
    st.builds("item.created {} timestamp('2026-09-20T00:00:00Z')".format, COMPARED),
    st.builds(
        "{}.{}(c, c in user.attributes.likes)".format, ITEM_LIST, st.sampled_from(["exists", "all"])
    ),
    st.builds("{}.exists(c, c.startsWith({}))".format, ITEM_LIST, FIXED_TEXT),
)
CONDITION = st.recursive(
    BASIC,
    lambda inner: st.one_of(
        st.builds("({} && {})".format, inner, inner),
        st.builds("({} || {} || {})".format, inner, inner, inner),
        st.builds("!({})".format, inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
        st.builds("(({}) == ({}))".format, inner, inner),
    ),
    max_leaves=6,
)


def _time(at_ms: int) -> celtypes.TimestampType:
    return celtypes.TimestampType(datetime.datetime.fromtimestamp(at_ms / 1e3, datetime.UTC))


def _activation(item: CatalogueItem, user: dict[str, Any], context: RequestContext) -> Any:
    """What the library evaluates with: maps without the keys of what is not stated."""
    about: dict[str, Any] = {
        "kind": item.kind,
        "categories": list(item.categories),
        "attributes": {
            n: list(v) if isinstance(v, tuple) else v for n, v in item.attributes.items()
        },
    }
    about |= {} if item.brand is None else {"brand": item.brand}
    about |= {} if item.currency is None else {"price": item.price_cents / 100}
    found = celpy.json_to_cel(about)
    if item.created_ms:
        found[celtypes.StringType("created")] = _time(item.created_ms)
    stated = {n: list(v) if isinstance(v, tuple) else v for n, v in user.items()}
    return {
        "item": found,
        "user": celpy.json_to_cel({"id": "u1", "attributes": stated}),
        "context": celpy.json_to_cel(context.model_dump(exclude_none=True)),
        "now": _time(NOW_MS),
    }


def _library_says(text: str, activations: list[Any]) -> list[bool | None]:
    environment = celpy.Environment()
    program = environment.program(environment.compile(text))
    found: list[bool | None] = []
    for activation in activations:
        try:
            found.append(bool(program.evaluate(activation)))
        except celpy.CELEvalError:
            found.append(None)
    return found


def _columns(items: list[CatalogueItem]) -> tuple[ItemColumns, np.ndarray]:
    by_id = {item.item_id: item for item in items}
    table = ItemTable(by_id.get)
    return ItemColumns(table), table.numbers.add(by_id)


def _compiled_says(
    text: str, columns: ItemColumns, rows: np.ndarray, request: RequestValues
) -> list[bool | None]:
    predicate, frame = compile_predicate(text), columns.frame(rows, request)
    truth, holds = predicate.truth(frame), predicate.holds(frame)
    assert not holds[~truth.known].any()
    return [bool(d) if k else None for d, k in zip(truth.data, truth.known, strict=True)]


CONTEXT = RequestContext(device="phone")


@settings(max_examples=120, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=6), USER, CONDITION)
def test_a_predicate_says_what_the_library_says(
    found: list[CatalogueItem], user: dict[str, Any], text: str
) -> None:
    """Also where it says nothing: an error of the library is unknown here."""
    items = [item.model_copy(update={"item_id": f"v{n}"}) for n, item in enumerate(found)]
    columns, rows = _columns(items)
    expected = _library_says(text, [_activation(item, user, CONTEXT) for item in items])
    with declared(Contract(items=ITEMS, users=USERS)):
        assert _compiled_says(text, columns, rows, _User(user, CONTEXT)) == expected


def test_what_is_not_stated_is_unknown_and_decides_nothing() -> None:
    columns, rows = _columns([CatalogueItem(item_id="v1", title="t")])
    says = {
        text: _compiled_says(text, columns, rows, _User({}, CONTEXT))[0]
        for text in (
            "item.brand == 'a'",
            "item.brand != 'a'",
            "!(item.brand == 'a')",
            "item.brand == 'a' && false",
            "item.brand == 'a' || true",
            "has(item.brand) && item.brand == 'a'",
        )
    }
    assert list(says.values()) == [None, None, None, False, True, False]


def test_a_row_without_an_item_is_unknown() -> None:
    columns, _ = _columns([CatalogueItem(item_id="v1", title="t", brand="a")])
    frame = columns.frame(np.array([-1, 0]), None)
    assert compile_predicate("item.brand == 'a'").truth(frame).known.tolist() == [False, True]
    assert compile_predicate("has(item.brand)").holds(frame).tolist() == [False, True]


REFUSED = {
    "item.brnad == 'a'": "there is no item.brnad: the nearest is item.brand",
    "item.attributes.siez == 'a'": "the nearest is item.attributes.size",
    "item.attributes.vec == 'a'": "there is no item.attributes.vec",
    "user.city == 'a'": "there is no user.city",
    "item.price == 'a'": "item.price is a number and 'a' a text: == compares values of one type",
    "item.brand < 'b'": "< compares numbers, times and durations, not a text",
    "item.price": "item.price is a number, and a rule's condition needs a condition",
    "item.brand && true": "item.brand is a text, and && needs a condition",
    "item.categories == item.categories": "lists are not compared",
    "item.brand.lower() == 'a'": "there is no lower with 1 values; there are has, size",
    "item.brand.matches(user.attributes.city)": "matches takes a string that is written out",
    "item.brand.matches('(')": "'(' is no RE2 pattern: missing )",
    "item.brand.contains(item.kind)": "item.kind differs from item to item",
    "item.brand in [item.kind]": "item.kind differs from item to item",
    "item.brand in [1]": "1.0 is a number, and the list beside it needs a text",
    "item.created > timestamp('2026-01-01')": "is no time with a zone",
    "now - item.created < duration('3 days')": "'3 days' is no duration, such as 72h",
    "item.price % 2 == 1": "% is not defined for a number and a number",
    "item.brand == null": "null is not accepted: ask with has(...)",
    "item.brand == b'a'": "bytes are not accepted",
    "item.brand = 'a b'": "it is not CEL: unexpected = 'a b'",
    "item.brand == 'a": "the string that starts at character 15 does not end",
    "'" + 4_001 * "\\": "is no escape",
    "item.brand == '''a'''": "three quotes",
    "item.price >": "it ends too early",
    "": "it is empty",
    "{'a': 1}.a == 1": "maps, messages",
    "item.categories.exists(c, c == item.brand)": "may name c, users and requests, not items",
    "item.price < " + 400 * "9": "is not accepted",
    "x" * (MAX_LENGTH + 1): f"of which {MAX_LENGTH} are accepted",
    "(" * 5_000 + "true" + ")" * 4_000: "brackets are more than 64 deep",
    "!" * 5_000 + "true": "operators are more than 64 deep",
    "item.price" + " + item.price" * 500 + " > 1": "operators are more than 64 deep",
    "true ? true : " * 500 + "true": "operators are more than 64 deep",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40])
def test_what_is_refused_is_refused_when_it_is_stated(text: str) -> None:
    with pytest.raises(RuleError) as refused:
        compile_predicate(text)
    assert REFUSED[text] in str(refused.value)


def test_a_long_condition_of_many_parts_is_accepted() -> None:
    text = " || ".join(f"item.brand == 'b{n}'" for n in range(390))
    assert len(text) > 9_000
    columns, rows = _columns([CatalogueItem(item_id="v1", title="t", brand="b389")])
    assert compile_predicate(text).holds(columns.frame(rows, None)).all()


def test_a_string_may_hold_what_ends_or_escapes_one() -> None:
    columns, rows = _columns([CatalogueItem(item_id="v1", title="t", brand='"\\ü//')])
    for text in (r"""item.brand == "\"\\\u00fc//" // why""", r"""item.brand == r'"\ü//'"""):
        assert compile_predicate(text).holds(columns.frame(rows, None)).all(), text


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200) | CONDITION.map(lambda text: text[: len(text) // 2]))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    with declared(Contract(items=ITEMS, users=USERS)), contextlib.suppress(RuleError):
        compile_predicate(text)


def test_every_name_can_be_asked_for() -> None:
    assert len(known_names()) > 20
    for name in known_names():
        compile_predicate(f"has({name})")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ITEM, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 5), ITEM), max_size=6),
    CONDITION,
)
def test_columns_follow_the_catalogue(
    found: list[CatalogueItem], changes: list[tuple[int, CatalogueItem]], text: str
) -> None:
    """What was computed once and updated by rows is what is computed of the items now."""
    with declared(Contract(items=ITEMS, users=USERS)):
        items = {f"v{n}": i.model_copy(update={"item_id": f"v{n}"}) for n, i in enumerate(found)}
        table = ItemTable(items.get)
        columns, request = ItemColumns(table), _User({"city": "a"}, CONTEXT)
        table.numbers.add(items)
        for place, item in changes:
            compile_predicate(text).truth(columns.frame(np.arange(len(items)), request))
            item_id = f"v{place}"
            items[item_id] = item.model_copy(update={"item_id": item_id})
            table.numbers.add([item_id])
            table.forget_facts(item_id)
        again, rows_again = _columns(list(items.values()))
        updated = _compiled_says(text, columns, table.numbers.rows_of(items), request)
        assert updated == _compiled_says(text, again, rows_again, request)


def test_a_request_keeps_the_state_that_it_started_with() -> None:
    items = {"v0": CatalogueItem(item_id="v0", title="t", brand="a")}
    table = ItemTable(items.get)
    columns = ItemColumns(table)
    table.numbers.add(items)
    predicate = compile_predicate("item.brand == 'a'")
    frame = columns.frame(np.array([0]), None)
    assert predicate.holds(frame).tolist() == [True]
    items["v0"] = CatalogueItem(item_id="v0", title="t", brand="b")
    table.forget_facts("v0")
    assert predicate.holds(frame).tolist() == [True]
    assert predicate.holds(columns.frame(np.array([0]), None)).tolist() == [False]


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("item.size == 'a'", "item.attributes.size"),
        ("user.city == 'a'", "user.attributes.city"),
        ("item.pirce > 1.0", "item.price"),
    ],
)
def test_an_attribute_stated_as_a_field_is_told_its_whole_name(stated: str, meant: str) -> None:
    with pytest.raises(RuleError, match=meant):
        compile_predicate(stated)
