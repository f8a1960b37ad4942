"""Decode JSON events into Arrow columns: only those that pydantic certainly accepts.

Knows the contract (`streams.contract.events`) as tables for the compiled scan
(`streams.kernels.json_scan`). Does not know rejections (`streams.codec.decode`).
Importing takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from streams.codec.framing import framed_rows, without_frames
from streams.contract.bounds import NAME_PATTERN
from streams.contract.declaration import contract
from streams.contract.events import LITERAL_VALUES, NO_SURFACE, models_of
from streams.contract.schema import decoded_schema
from streams.contract.signals import PROFILE, Signals
from streams.kernels.arrays import read_only
from streams.kernels.json_numbers import PLACES_BITS
from streams.kernels.json_scan import (
    NO_WORD,
    PADDING,
    ScannedColumns,
    ScanTables,
    scan,
)

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


_WORDS_OF_FIELDS = {name: words for name, words in LITERAL_VALUES.items() if name != "kind"}
_OTHER_NAMES = {"item_id": "video_id"}  # what producers may say -> the field
_MOST_VALUE = 2**53  # a larger whole number is left to pydantic
_MOST_DECIMAL = 2**60  # as it is scanned: every one of few enough digits
_TENS = 10.0 ** np.arange(1 << PLACES_BITS)  # exact up to 10**22
_WORD_BYTES = 16
_NOT_SCANNED = {PROFILE.name}  # its attributes are an object: left to pydantic


@dataclass(frozen=True)
class _Contract:
    """The contract as tables: fields in the order texts, words (the kind first), numbers."""

    texts: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    numbers: tuple[str, ...]
    tables: ScanTables
    kind_number: Bytes  # of each kind, in the order of the kind's words
    values: list[pa.Array]  # of each word

    def states(self, number: int) -> Mask:
        """bool [kinds]: whether a kind has the number field at this place."""
        return self.tables.states[:, len(self.texts) + len(self.words) + number]


def _field_limits(models: Iterable[type[BaseModel]]) -> dict[str, dict[str, Any]]:
    """Field -> its JSON Schema: `maxLength` of a text, `minimum` and `maximum` of a number."""
    limits: dict[str, dict[str, Any]] = {}
    for model in models:
        for name, schema in model.model_json_schema(by_alias=False)["properties"].items():
            limits[name] = schema.get("anyOf", [schema])[0]  # the other alternative is null
    return limits


@lru_cache(maxsize=16)
def _contract_of(signals: Signals) -> _Contract:
    models = {kind: m for kind, m in models_of(signals).items() if kind not in _NOT_SCANNED}
    limits = _field_limits(models.values())
    words = {"kind": tuple(models)} | _WORDS_OF_FIELDS
    others = [field for field in decoded_schema() if field.name in limits.keys() - words.keys()]
    # A length in bytes is at least that in characters, so the scan's bound is never too lax.
    texts = {f.name: limits[f.name]["maxLength"] for f in others if f.type == pa.string()}
    decimals = [f.name for f in others if f.type == pa.float64()]
    numbers = {
        f.name: (limits[f.name].get("minimum", 0), limits[f.name].get("maximum", _MOST_VALUE))
        for f in others
        if f.type != pa.string()
    } | dict.fromkeys(decimals, (-_MOST_DECIMAL, _MOST_DECIMAL))
    names = (*texts, *words, *numbers)
    fields = {kind: model.model_fields for kind, model in models.items()}

    def by_kind(
        value: Callable[[Any, str], Any], names: Sequence[str], absent: int
    ) -> list[list[Any]]:
        return [
            [value(fields[kind][n], n) if n in fields[kind] else absent for n in names]
            for kind in models
        ]

    def default(field: Any, name: str) -> int:
        return 0 if name == "kind" else words[name].index(field.default)

    fills = [limits[name].get("default") or "" for name in texts]
    tables = ScanTables(
        name=_padded_words([*names, *_OTHER_NAMES]),
        field_of=np.array([*range(len(names)), *map(names.index, _OTHER_NAMES.values())]),
        word=_padded_words([word for listed in words.values() for word in listed]),
        words_from=np.cumsum([0, *map(len, words.values())]),
        most_bytes=np.array(list(texts.values())),
        least=np.array([least for least, _ in numbers.values()]),
        most=np.array([most for _, most in numbers.values()]),
        decimal=np.array([name in decimals for name in numbers]),
        states=np.array(by_kind(lambda *_: True, names, False)),
        needs=np.array(by_kind(lambda field, _: field.is_required(), names, False)),
        default=np.array(by_kind(default, list(words), NO_WORD), np.uint8),
        named=np.array([limits[name].get("pattern") == NAME_PATTERN for name in texts]),
        fill=_padded_words(fills).view(np.uint8),
        fill_bytes=np.array([len(text) for text in fills]),
    )
    kind_number = np.array([signals.number[kind] for kind in models], np.uint8)
    values = [pa.array(listed) for listed in words.values()]
    tables = ScanTables(*map(read_only, tables))
    return _Contract(tuple(texts), words, tuple(numbers), tables, kind_number, values)


def _padded_words(words: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64 [words, 2]: the bytes of each, padded with NULs."""
    if max(map(len, words)) > _WORD_BYTES:
        raise ValueError(f"the scan supports words of up to {_WORD_BYTES} bytes: {words}")
    padded = b"".join(word.encode().ljust(_WORD_BYTES, b"\0") for word in words)
    return np.frombuffer(padded, np.uint64).reshape(len(words), 2)


def scan_events(values: Sequence[bytes], sizes: Ints) -> tuple[Ints, dict[str, pa.Array]]:
    """The indexes of the accepted values (of `sizes` bytes), ascending, and columns by name.

    Defaults are filled in; a field that a kind does not have is null. Values may be framed
    (`streams.codec.framing`).
    """
    fields = _contract_of(contract().signals)
    data, starts = _joined(values, sizes)
    if len(framed := framed_rows(data, starts[:-1], sizes)):
        data, starts = _joined(*without_frames(values, sizes, framed))
    found = scan(data, read_only(starts), fields.tables)
    kind = found.word[0, : len(found.rows)]
    columns = {name: _text_column(found, index) for index, name in enumerate(fields.texts)}
    columns |= {n: _word_column(found, i, fields.values[i]) for i, n in enumerate(fields.words)}
    for index, name in enumerate(fields.numbers):
        stated, decimal = fields.states(index)[kind], bool(fields.tables.decimal[index])
        columns[name] = _number_column(found, index, stated, decimal)
    columns["kind"] = pa.array(fields.kind_number[kind])
    return _of_known_surfaces(found.rows, _with_every_column(columns, len(found.rows)))


def _joined(values: Sequence[bytes], sizes: Ints) -> tuple[Bytes, Ints]:
    """The values as the scan reads them: with NULs between, and where each begins."""
    starts = np.zeros(len(values) + 1, np.int64)
    np.cumsum(sizes + 1, out=starts[1:])
    return np.frombuffer(b"\0".join([*values, PADDING]), np.uint8), starts


def _with_every_column(columns: dict[str, pa.Array], count: int) -> dict[str, pa.Array]:
    """With nulls for the columns of removed signals, which no event can state."""
    for field in decoded_schema():
        if field.name not in columns:
            columns[field.name] = pa.nulls(count, field.type)
    return columns


def _of_known_surfaces(
    rows: Ints, columns: dict[str, pa.Array]
) -> tuple[Ints, dict[str, pa.Array]]:
    """Without events of a surface that is not declared, which pydantic then rejects."""
    known = contract().surfaces
    if known is None or not len(rows):
        return rows, columns
    admitted = pc.is_in(columns["surface"], value_set=pa.array([NO_SURFACE, *known]))
    if admitted.true_count == len(rows):
        return rows, columns
    kept = {name: column.filter(admitted) for name, column in columns.items()}
    return rows[admitted.to_numpy(zero_copy_only=False)], kept


def _text_column(found: ScannedColumns, index: int) -> pa.Array:
    count = len(found.rows)
    ends, stated = found.ends[index, : count + 1], found.stated[index, :count]
    nulls = count - int(np.count_nonzero(stated))
    valid = pa.py_buffer(np.packbits(stated, bitorder="little")) if nulls else None
    buffers = [valid, pa.py_buffer(ends), pa.py_buffer(found.text[index, : ends[-1]])]
    return pa.StringArray.from_buffers(count, buffers[1], buffers[2], buffers[0], nulls)


def _word_column(found: ScannedColumns, index: int, values: pa.Array) -> pa.Array:
    word = found.word[index, : len(found.rows)]
    return values.take(_masked_array(word, word == NO_WORD))


def _number_column(found: ScannedColumns, index: int, stated: Mask, decimal: bool) -> pa.Array:
    number = found.number[index, : len(found.rows)]
    return _masked_array(_decimals(number) if decimal else number, ~stated)


def _decimals(scanned: Ints) -> npt.NDArray[np.float64]:
    """The nearest float64 of each number: digits and power of ten are exact, so one division
    rounds once, as a full reader does."""
    size = np.abs(scanned)
    digits = (size >> PLACES_BITS).astype(np.float64)
    found: npt.NDArray[np.float64] = digits / _TENS[size & (1 << PLACES_BITS) - 1]
    return np.copysign(found, scanned)


def _masked_array(values: npt.NDArray[Any], absent: Mask) -> pa.Array:
    return pa.array(values, mask=absent) if absent.any() else pa.array(values)
