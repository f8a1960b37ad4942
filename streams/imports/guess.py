"""A first mapping for a file that no mapping knows, guessed from its columns and first rows.

Knows common names of columns and forms of times. The result is TOML with the doubts as comments;
`tidemill import --dry-run` shows what it makes of the rows. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

Sample = Mapping[str, Sequence[str | None]]
"""Column -> its first values as text."""

_NAMES: dict[str, tuple[str, ...]] = {
    "user_id": (
        "userid",
        "user",
        "customerid",
        "customer",
        "clientid",
        "visitorid",
        "memberid",
        "accountid",
        "uid",
        "anonymousid",
        "session",
        "sessionid",
        "email",
    ),
    "item_id": (
        "itemid",
        "item",
        "productid",
        "product",
        "sku",
        "articleid",
        "movieid",
        "videoid",
        "trackid",
        "songid",
        "asin",
        "iid",
        "id",
    ),
    "event_time_ms": (
        "eventtime",
        "timestamp",
        "time",
        "datetime",
        "date",
        "createdat",
        "ts",
        "occurredat",
        "orderdate",
        "unixtime",
    ),
    "kind": ("eventtype", "event", "action", "kind", "type", "behavior", "behaviour", "eventname"),
    "amount_cents": ("price", "amount", "total", "revenue", "value"),
    "dwell_ms": ("dwellms", "dwell", "durationms", "watchms"),
    "title": ("title", "name", "productname", "itemname", "movietitle", "label"),
    "text": ("text", "description", "desc", "body", "summary"),
    "categories": (
        "categories",
        "category",
        "categorypath",
        "categoryname",
        "genres",
        "genre",
        "tags",
        "categorycode",
        "class",
    ),
    "brand": ("brand", "manufacturer", "vendor", "label"),
    "price_cents": ("price", "listprice", "amount"),
    "locale": ("locale", "language", "lang"),
    "currency": ("currency",),
}
_KINDS = {
    "play": ("view", "play", "watch", "listen", "pageview", "detail", "read", "pv"),
    "shown": ("shown", "impression", "exposure", "show", "list"),
    "like": ("like", "fav", "favorite", "favourite", "wishlist", "bookmark", "love"),
    "cart": ("cart", "addtocart", "basket", "add"),
    "order": ("order", "purchase", "buy", "transaction", "checkout", "sale"),
    "skip": ("skip", "dismiss", "hide", "dislike"),
    "share": ("share",),
}
_EVENT_FIELDS = ("user_id", "item_id", "event_time_ms", "kind", "amount_cents", "dwell_ms")
_ITEM_FIELDS = (
    "item_id",
    "title",
    "text",
    "categories",
    "brand",
    "price_cents",
    "locale",
    "currency",
)
_DAYS = (  # a slash with the month first, unless a value says otherwise
    (r"\d\d?\.\d\d?\.\d{4}", "%d.%m.%Y"),
    (r"(0?\d|1[0-2])/\d\d?/\d{4}", "%m/%d/%Y"),
    (r"\d\d?/(0?\d|1[0-2])/\d{4}", "%d/%m/%Y"),
)
_CLOCKS = ((r" \d\d?:\d\d:\d\d", " %H:%M:%S"), (r" \d\d?:\d\d", " %H:%M"), ("", ""))
_FORMS = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "%Y-%m-%d %H:%M:%S UTC"),
    *((day + clock, form + hours) for day, form in _DAYS for clock, hours in _CLOCKS),
)
_MAX_LABELS_SHARE = 0.5  # of different values, up to which a text is a label


@dataclass
class Guess:
    """`toml`: the mapping. `attributes`: of items, name -> declared type."""

    toml: str
    attributes: dict[str, str] = field(default_factory=dict)


def guess_events(sample: Sample) -> Guess:
    """A mapping of events."""
    found = _matches(sample, _EVENT_FIELDS)
    lines = ['target = "events"', "", "[fields]"]
    for name in ("user_id", "item_id"):
        lines.append(_column_line(name, found.get(name)))
    time = found.get("event_time_ms")
    if time is None:
        lines.append(_column_line("event_time_ms", None))
    else:
        unit = _unit(_values(sample, time))
        lines.append(f"event_time_ms = {{ column = {_text(time)}, unit = {_text(unit)} }}")
    lines.append(_kind_line(sample, found.get("kind")))
    if price := found.get("amount_cents"):
        lines.append(f"amount_cents = {{ column = {_text(price)}, scale = 100 }}")
    if dwell := found.get("dwell_ms"):
        lines.append(_column_line("dwell_ms", dwell))
    lines += _unused(sample, found)
    return Guess("\n".join(lines) + "\n")


def guess_items(sample: Sample) -> Guess:
    """A mapping of items; columns that no field takes become attributes."""
    found = _matches(sample, _ITEM_FIELDS)
    found.setdefault("title", found.get("item_id", ""))
    lines = ['target = "items"', "", "[fields]", _column_line("item_id", found.get("item_id"))]
    lines += ['kind = { value = "product" }', _column_line("title", found["title"] or None)]
    for name in ("text", "brand", "locale", "currency"):
        if name in found:
            lines.append(_column_line(name, found[name]))
    if "brand" in found:
        lines.append(_column_line("author_id", found["brand"]))
    if categories := found.get("categories"):
        separator = _separator(_values(sample, categories))
        lines.append(
            f"categories = {{ column = {_text(categories)}, separator = {_text(separator)} }}"
        )
    if price := found.get("price_cents"):
        lines.append(f"price_cents = {{ column = {_text(price)}, scale = 100 }}")
    rest = [name for name in sample if name not in found.values()]
    types = {_attribute_name(name): _attribute_type(_values(sample, name)) for name in rest}
    if rest:
        lines += ["", "[attributes]"]
        lines += [f"{_attribute_name(name)} = {_text(name)}" for name in rest]
    return Guess("\n".join(lines) + "\n", types)


def _matches(sample: Sample, fields: Sequence[str]) -> dict[str, str]:
    """Field -> column, each column once, the better name first."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in sample}
    found: dict[str, str] = {}
    for wanted in fields:
        free = {name: text for name, text in plain.items() if name not in found.values()}
        for known in (wanted.replace("_", ""), *_NAMES[wanted]):
            column = next((name for name, text in free.items() if text == known), None)
            if column is not None:
                found[wanted] = column
                break
    return found


def _column_line(name: str, column: str | None) -> str:
    if column is None:
        return f'{name} = "?"  # name the column'
    return f"{name} = {_text(column)}"


def _kind_line(sample: Sample, column: str | None) -> str:
    if column is None:
        return 'kind = { value = "play" }  # no column names the kind: all rows are plays'
    values = dict.fromkeys(value for value in _values(sample, column))
    pairs = {value: kind for value in values if (kind := _kind_of(value))}
    others = [value for value in values if value not in pairs]
    mapped = ", ".join(f"{_text(value)} = {_text(kind)}" for value, kind in pairs.items())
    doubt = f"  # left out: {', '.join(map(_text, others[:8]))}" if others else ""
    return f"kind = {{ column = {_text(column)}, map = {{ {mapped} }} }}{doubt}"


def _kind_of(value: str) -> str:
    plain = re.sub(r"[^a-z]", "", value.lower())
    exact = next((kind for kind, names in _KINDS.items() if plain in names), "")
    if exact:
        return exact
    order = ("order", "cart", "like", "skip", "share", "shown", "play")  # the more telling first
    return next(
        (kind for kind in order if any(len(n) > 3 and n in plain for n in _KINDS[kind])), ""
    )


def _unit(values: Sequence[str]) -> str:
    first = values[0] if values else ""
    if re.fullmatch(r"-?\d+(\.\d+)?", first):
        digits = len(first.partition(".")[0].lstrip("-"))
        return "s" if digits <= 11 else "ms" if digits <= 14 else "us" if digits <= 17 else "ns"
    fitting = {form: sum(bool(re.fullmatch(p, v)) for v in values) for p, form in _FORMS}
    best = max(fitting, key=lambda form: fitting[form])  # the first among equals
    return best if 2 * fitting[best] > len(values) else "iso"


def _separator(values: Sequence[str]) -> str:
    counts = {sign: sum(sign in value for value in values) for sign in ("|", ";", ",", ">", "/")}
    best = max(counts, key=lambda sign: counts[sign])
    return best if counts[best] else "|"


def _attribute_type(values: Sequence[str]) -> str:
    if values and all(re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", value) for value in values):
        return "number"
    if values and {value.lower() for value in values} <= {"true", "false", "yes", "no", "t", "f"}:
        return "flag"
    short = all(len(value) <= 128 for value in values)
    repeated = len(set(values)) <= max(2, _MAX_LABELS_SHARE * len(values))
    return "label" if short and repeated else "text"


def _attribute_name(column: str) -> str:
    name = re.sub(r"[^a-z0-9_]+", "_", column.lower()).strip("_") or "column"
    return name if name[0].isalpha() else f"c_{name}"


def _unused(sample: Sample, found: Mapping[str, str]) -> list[str]:
    rest = [name for name in sample if name not in found.values()]
    return [f"# not used: {', '.join(map(_text, rest))}"] if rest else []


def _values(sample: Sample, column: str) -> list[str]:
    return [value for value in sample[column] if value]


def _text(value: str) -> str:
    return orjson.dumps(value).decode()  # a JSON string is a TOML string
