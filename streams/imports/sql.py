"""A mapping as SQL: each row of a table becomes the JSON of one message.

Knows DuckDB's functions, JSON and which field is a number, a time or a list. A value that is not
of its field's type goes into the message as it is, so that admission names the field and the
cause. Does not know files.

The SQL holds names and constants of the mapping only, quoted; no value of a row.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Literal

import orjson

from streams.contract.declaration import contract
from streams.imports.mapping import TIMES, BadMapping, Mapping, Source

JSON_COLUMN = "#tidemill.json"  # of a table whose rows are JSON documents
EACH_COLUMN = "#tidemill.each"
Type = Literal["text", "integer", "number", "time", "list", "flag", "numbers"]
_INTEGERS = frozenset({"dwell_ms", "amount_cents", "price_cents", "duration_ms"})
_NUMBERS = frozenset({"value"})
_LISTS = frozenset({"categories"})
_ATTRIBUTE_TYPES: dict[str, Type] = {
    "number": "number",
    "labels": "list",
    "flag": "flag",
    "vector": "numbers",
}
_TRUE, _FALSE = "('true', 't', 'yes', 'y', '1')", "('false', 'f', 'no', 'n', '0')"


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def field_type(name: str) -> Type:
    if name in TIMES:
        return "time"
    if name in _INTEGERS:
        return "integer"
    if name in _NUMBERS:
        return "number"
    return "list" if name in _LISTS else "text"


def attribute_type(name: str, target: str) -> Type:
    """By the declaration; an attribute that is not declared is text."""
    declared = (contract().users if target == "users" else contract().items).declared
    return _ATTRIBUTE_TYPES.get(declared[name].type, "text") if name in declared else "text"


class RowSql:
    """The expressions of one mapping over a table with these columns.

    columns: of a table; None where its rows are JSON documents.
    """

    def __init__(self, mapping: Mapping, columns: Collection[str] | None) -> None:
        self._mapping, self._columns = mapping, columns

    def query(self, table: str, file_key: str, shift_ms: int, now_ms: int) -> str:
        """Selects `row` (from 1), `key`, `kind` and `body`, the JSON of one message.

        file_key: what the ids of events without an id of their own begin with.
        """
        target = self._mapping.target
        key = "item_id" if target == "items" else "user_id"
        ids = f"'i' || substr(md5({literal(file_key)} || ':' || \"#tidemill.place\"), 1, 24)"
        body = {"events": self._event, "items": self._item, "users": self._user}[target]
        kind = self._kind() if target == "events" else "'-'"
        return (
            f'SELECT "#tidemill.row" AS row, {self._text(key)} AS key, {kind} AS kind, '
            f"{self._raw_kind()} AS raw_kind, {body(ids, shift_ms, now_ms)} AS body "
            f"FROM ({self._rows(table)})"
        )

    def newest(self, table: str) -> str:
        """Selects the largest event time in ms."""
        time = self._time(self._mapping.fields["event_time_ms"])
        return f"SELECT max({time}) FROM ({self._rows(table)})"

    def _rows(self, table: str) -> str:
        # What a row says is part of its id: a file that was replaced by one of the same name has
        # other events, and a copy of it has the same ones.
        numbered = (
            'SELECT *, row_number() OVER () AS "#tidemill.row", '
            f'md5(CAST("#tidemill" AS VARCHAR)) AS "#tidemill.said" FROM {table} AS "#tidemill"'
        )
        place = '"#tidemill.row" || \'.\' || "#tidemill.said"'
        if not self._mapping.each:
            return f'SELECT *, {place} AS "#tidemill.place" FROM ({numbered})'
        path = literal(_path(self._mapping.each))
        elements = literal(_path(self._mapping.each) + "[*]")
        json = identifier(JSON_COLUMN)
        count = f"coalesce(json_array_length({json}, {path}), 0)"
        each = (
            f"unnest(CASE WHEN {count} > 0 THEN json_extract({json}, {elements}) ELSE [NULL] END)"
        )
        index = f"unnest(range(CAST(greatest({count}, 1) AS BIGINT)))"  # in step with the elements
        rows = (
            f'SELECT *, {each} AS "{EACH_COLUMN}", {index} AS "#tidemill.index" FROM ({numbered})'
        )
        index_place = f"""{place} || '.' || "#tidemill.index\""""
        return f'SELECT *, {index_place} AS "#tidemill.place" FROM ({rows})'

    # ---- messages

    def _event(self, ids: str, shift_ms: int, _: int) -> str:
        fields = self._mapping.fields
        parts = [f"',\"kind\":' || CAST(to_json({self._kind()}) AS VARCHAR)"]
        parts += [
            self._part(name, self._json(source, field_type(name), shift_ms))
            for name, source in fields.items()
            if name not in ("kind", "event_id")
        ]
        return "'{' || " + " || ".join([self._id(ids), *parts]) + " || '}'"

    def _item(self, ids: str, shift_ms: int, now_ms: int) -> str:
        fields = dict(self._mapping.fields)
        time = fields.pop("event_time_ms", None)
        moment = self._json(time, "time", shift_ms) if time else literal(str(now_ms))
        first = fields.pop("item_id")
        parts = [
            self._part(name, self._json(source, field_type(name), 0))
            for name, source in fields.items()
        ]
        item = [f"'\"item_id\":' || {_or_null(self._json(first, 'text', 0))}", *parts]
        item += [self._attributes()]
        stated = [
            f"'{{' || {self._id(ids)}",
            f'\',"kind":"item_added","event_time_ms":\' || {_or_null(moment)}',
            "',\"item\":{' || " + " || ".join(item) + " || '}}'",
        ]
        return " || ".join(stated)

    def _user(self, ids: str, shift_ms: int, now_ms: int) -> str:
        time = self._mapping.fields.get("event_time_ms")
        moment = self._json(time, "time", shift_ms) if time else literal(str(now_ms))
        user = self._json(self._mapping.fields["user_id"], "text", 0)
        stated = [
            f"'{{' || {self._id(ids)}",
            f'\',"kind":"profile","user_id":\' || {_or_null(user)}',
            f"',\"event_time_ms\":' || {_or_null(moment)}",
            self._attributes(),
            "'}'",
        ]
        return " || ".join(stated)

    def _id(self, ids: str) -> str:
        own = self._mapping.fields.get("event_id")
        value = ids
        if own:
            # The elements of one document differ by their place in it.
            index = """ || '.' || "#tidemill.index\"""" if self._mapping.each else ""
            value = f"COALESCE({self._value(own)}{index}, {ids})"
        return f"'\"event_id\":' || CAST(to_json({value}) AS VARCHAR)"

    def _attributes(self) -> str:
        target = self._mapping.target
        parts = [
            self._part(name, self._json(source, attribute_type(name, target), 0))
            for name, source in self._mapping.attributes.items()
        ]
        inside = " || ".join(parts) or "''"
        # Every part begins with a comma; the object must not.
        return f"',\"attributes\":{{' || substr({inside}, 2) || '}}'"

    def _part(self, name: str, json: str) -> str:
        """`,"name":value`; nothing where the value is absent."""
        return f"COALESCE({literal(',' + orjson.dumps(name).decode() + ':')} || {json}, '')"

    # ---- values

    def _text(self, name: str) -> str:
        return self._value(self._mapping.fields[name])

    def _kind(self) -> str:
        return self._value(self._mapping.fields["kind"])

    def _raw_kind(self) -> str:
        source = self._mapping.fields.get("kind")
        return self._column(source) if source and source.column else "NULL"

    def _value(self, source: Source) -> str:
        """The field's value as text, or NULL."""
        if source.value is not None:
            value = source.value
            text = str(value).lower() if isinstance(value, bool) else str(value)
            return literal(text)
        found = self._column(source)
        if source.map:
            cases = " ".join(
                f"WHEN {literal(key)} THEN {literal(str(value))}"
                for key, value in source.map.items()
            )
            found = f"CASE {found} {cases} END"
        if source.prefix:
            found = f"{literal(source.prefix)} || {found}"
        if source.default is not None:
            found = f"COALESCE({found}, {literal(str(source.default))})"
        return found

    def _column(self, source: Source) -> str:
        each = [self._one_column(name) for name in source.column]
        return each[0] if len(each) == 1 else f"COALESCE({', '.join(each)})"

    def _one_column(self, name: str) -> str:
        if self._mapping.each and name.startswith("each."):
            path = literal(_path(name.removeprefix("each.")))
            return f"json_extract_string({identifier(EACH_COLUMN)}, {path})"
        if self._columns is None:
            return f"json_extract_string({identifier(JSON_COLUMN)}, {literal(_path(name))})"
        if name not in self._columns:
            near = get_close_matches(name, self._columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadMapping(
                f"the file has no column {name!r}{hint} It has: {', '.join(self._columns)}"
            )
        return f"CAST({identifier(name)} AS VARCHAR)"

    def _time(self, source: Source) -> str:
        """Milliseconds since 1970 as BIGINT, NULL where it is no time."""
        value, unit = self._value(source), source.unit
        if unit in ("s", "ms", "us", "ns"):
            factor = {"s": 1_000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}[unit]
            return f"TRY_CAST(round(TRY_CAST({value} AS DOUBLE) * {factor}) AS BIGINT)"
        if unit == "iso":
            zoned = f"TRY_CAST({value} AS TIMESTAMP)"
            # An offset in the text counts before the zone.
            has_offset = (
                f"regexp_matches({value}, ':\\d\\d(\\.\\d+)? ?(Z|UTC|[+-]\\d\\d(:?\\d\\d)?)$')"
            )
            local = f"timezone({literal(source.zone)}, {zoned})"
            return (
                f"epoch_ms(CASE WHEN {has_offset} THEN TRY_CAST({value} AS TIMESTAMPTZ) "
                f"ELSE {local} END)"
            )
        parsed = f"try_strptime({value}, {literal(unit)})"
        if "%z" in unit:
            return f"epoch_ms({parsed})"
        return f"epoch_ms(timezone({literal(source.zone)}, {parsed}))"

    def _json(self, source: Source, kind: Type, shift_ms: int) -> str:
        """The value as JSON text; what is not of its type as a string."""
        value = self._value(source)
        as_text = f"CAST(to_json({value}) AS VARCHAR)"
        if kind == "text":
            return as_text
        if kind == "time":
            shifted = f"CAST({self._time(source)} + {shift_ms} AS VARCHAR)"
            return f"COALESCE({shifted}, {as_text})"
        if kind == "list":
            split = f"list_transform(string_split({value}, {literal(source.separator)}), lambda x: trim(x))"
            return f"CAST(to_json(list_filter({split}, lambda x: x <> '')) AS VARCHAR)"
        if kind == "numbers":
            stripped = f"'[' || trim({value}, '[] ') || ']'"
            return f"COALESCE(CAST(TRY_CAST({stripped} AS DOUBLE[]) AS VARCHAR), {as_text})"
        if kind == "flag":
            lower = f"lower(trim({value}))"
            return (
                f"CASE WHEN {lower} IN {_TRUE} THEN 'true' WHEN {lower} IN {_FALSE} THEN 'false' "
                f"ELSE {as_text} END"
            )
        number = f"TRY_CAST({value} AS DOUBLE) * {source.scale!r}"
        if kind == "integer":
            number = f"TRY_CAST(round({number}) AS BIGINT)"
        else:
            number = f"CASE WHEN isfinite({number}) THEN {number} END"
        return f"COALESCE(CAST({number} AS VARCHAR), {as_text})"


def _or_null(json: str) -> str:
    """Of a required field: admission names it where it is absent."""
    return f"COALESCE({json}, 'null')"


def _path(dotted: str) -> str:
    """A JSON path whose parts are quoted."""
    return "$" + "".join('."' + part.replace('"', '\\"') + '"' for part in dotted.split("."))
