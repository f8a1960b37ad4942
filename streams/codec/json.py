"""Decode JSON events into Arrow columns: only those that pydantic certainly accepts.

Knows the contract (`streams.contract.events`) as tables for the compiled scan
(`streams.kernels.json_scan`). Does not know rejections (`streams.codec.decode`).
Importing takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.contract.events import EVENT, EVENT_MODELS, KINDS, LITERAL_VALUES
from streams.contract.schema import DECODED_SCHEMA
from streams.kernels.arrays import read_only
from streams.kernels.json_scan import NO_WORD, PADDING, ScannedColumns, ScanTables, scan

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def _field_limits() -> dict[str, dict[str, Any]]:
    """Field -> its JSON Schema: `maxLength` of a text, `minimum` and `maximum` of a number."""
    limits: dict[str, dict[str, Any]] = {}
    for model in EVENT.json_schema()["$defs"].values():
        for name, schema in model["properties"].items():
            limits[name] = schema.get("anyOf", [schema])[0]  # the other alternative is null
    return limits


_LIMITS = _field_limits()
_WORDS = LITERAL_VALUES
_OTHERS = [field for field in DECODED_SCHEMA if field.name not in _WORDS]
# A length in bytes is at least that in characters, so the scan's bound is never too lax.
_TEXTS = {f.name: _LIMITS[f.name]["maxLength"] for f in _OTHERS if f.type == pa.string()}
_NUMBERS = {
    field.name: (_LIMITS[field.name]["minimum"], _LIMITS[field.name]["maximum"])
    for field in _OTHERS
    if field.type != pa.string()
}
_FIELDS = (*_TEXTS, *_WORDS, *_NUMBERS)
_WORD_BYTES = 16


def _scan_tables() -> ScanTables:
    fields = {kind: model.model_fields for kind, model in EVENT_MODELS.items()}

    def by_kind(
        value: Callable[[Any, str], Any], names: Sequence[str], absent: int
    ) -> list[list[Any]]:
        return [
            [value(fields[kind][n], n) if n in fields[kind] else absent for n in names]
            for kind in KINDS
        ]

    def default(field: Any, name: str) -> int:
        return 0 if name == "kind" else _WORDS[name].index(field.default)

    tables = ScanTables(
        name=_padded_words(_FIELDS),
        word=_padded_words([word for words in _WORDS.values() for word in words]),
        words_from=np.cumsum([0, *map(len, _WORDS.values())]),
        most_bytes=np.array(list(_TEXTS.values())),
        least=np.array([least for least, _ in _NUMBERS.values()]),
        most=np.array([most for _, most in _NUMBERS.values()]),
        states=np.array(by_kind(lambda *_: True, _FIELDS, False)),
        needs=np.array(by_kind(lambda field, _: field.is_required(), _FIELDS, False)),
        default=np.array(by_kind(default, list(_WORDS), NO_WORD), np.uint8),
    )
    return ScanTables(*map(read_only, tables))


def _padded_words(words: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64 [words, 2]: the bytes of each, padded with NULs."""
    if max(map(len, words)) > _WORD_BYTES:
        raise ValueError(f"the scan supports words of up to {_WORD_BYTES} bytes: {words}")
    padded = b"".join(word.encode().ljust(_WORD_BYTES, b"\0") for word in words)
    return np.frombuffer(padded, np.uint64).reshape(len(words), 2)


_TABLES = _scan_tables()


def scan_events(values: Sequence[bytes], sizes: Ints) -> tuple[Ints, dict[str, pa.Array]]:
    """The indexes of the accepted values (of `sizes` bytes), ascending, and columns by name.

    Defaults are filled in; a field that a kind does not have is null.
    """
    starts = np.zeros(len(values) + 1, np.int64)
    np.cumsum(sizes + 1, out=starts[1:])
    data = np.frombuffer(b"\0".join([*values, PADDING]), np.uint8)
    found = scan(data, read_only(starts), _TABLES)
    kind = found.word[0, : len(found.rows)]
    columns = {name: _text_column(found, index) for index, name in enumerate(_TEXTS)}
    columns |= {name: _word_column(found, index) for index, name in enumerate(_WORDS)}
    columns |= {name: _number_column(found, index, kind) for index, name in enumerate(_NUMBERS)}
    return found.rows, columns | {"kind": pa.array(kind)}


def _text_column(found: ScannedColumns, index: int) -> pa.Array:
    count = len(found.rows)
    ends, stated = found.ends[index, : count + 1], found.stated[index, :count]
    nulls = count - int(np.count_nonzero(stated))
    valid = pa.py_buffer(np.packbits(stated, bitorder="little")) if nulls else None
    buffers = [valid, pa.py_buffer(ends), pa.py_buffer(found.text[index, : ends[-1]])]
    return pa.StringArray.from_buffers(count, buffers[1], buffers[2], buffers[0], nulls)


_VALUES = [pa.array(words) for words in _WORDS.values()]


def _word_column(found: ScannedColumns, index: int) -> pa.Array:
    word = found.word[index, : len(found.rows)]
    return _VALUES[index].take(_masked_array(word, word == NO_WORD))


def _number_column(found: ScannedColumns, index: int, kind: Bytes) -> pa.Array:
    stated = _TABLES.states[:, _FIELDS.index(list(_NUMBERS)[index])]
    return _masked_array(found.number[index, : len(found.rows)], ~stated[kind])


def _masked_array(values: npt.NDArray[Any], absent: Mask) -> pa.Array:
    return pa.array(values, mask=absent) if absent.any() else pa.array(values)
