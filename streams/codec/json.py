"""Events in JSON to columns of Arrow: those that pydantic would certainly take.

Knows the contract (`streams.contract.events`) as tables for the compiled scan (`streams.kernels.json_scan`).
Importing takes a second; `python -m streams.codec.json` fills the cache of compiled code,
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.contract import events
from streams.contract.events import KINDS, Event
from streams.kernels.json_scan import NO_WORD, PADDING, scan

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_TEXTS = {
    "event_id": events.MAX_ID,
    "user_id": events.MAX_ID,
    "request_id": events.MAX_ID,
    "impression": events.MAX_IMPRESSION,
    "video_id": events.MAX_ID,
    "author_id": events.MAX_ID,
    "query": events.MAX_QUERY,
}
_WORDS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "surface": get_args(events.Surface),
    "origin": get_args(events.Origin),
    "provenance": get_args(events.Provenance),
}
_NUMBERS = {
    "event_time_ms": (events.MIN_EVENT_TIME_MS, events.MAX_EVENT_TIME_MS),
    "dwell_ms": (0, events.MAX_DWELL_MS),
    "amount_cents": (0, events.MAX_AMOUNT_CENTS),
}
_SPELLED_BYTES = 16
_FIELDS = (*_TEXTS, *_WORDS, *_NUMBERS)


class Contract(NamedTuple):
    """Texts come first among the fields, then words, the kind before all, then numbers.

    `name`, `word`: uint64 [_, 2], the bytes of each with NULs behind them. Words of the w-th
    field that has them are `word[words_from[w]:words_from[w + 1]]`. `states`, `needs`: [kinds, fields].
    `default`: [kinds, words], NO_WORD where the kind states no such field.
    """

    name: npt.NDArray[np.uint64]
    word: npt.NDArray[np.uint64]
    words_from: Ints
    most_bytes: Ints
    least: Ints
    most: Ints
    states: Mask
    needs: Mask
    default: Bytes


class Scanned(NamedTuple):
    """What K of N messages state: those that were taken.

    `rows`: [K], ascending. By field: `text` [texts, bytes] and `ends` int32 [texts, K + 1],
    `stated` [texts, K]; `word` [words, K], NO_WORD where the kind states no such field;
    `number` [numbers, K], 0 where none is stated.
    """

    rows: Ints
    text: Bytes
    ends: npt.NDArray[np.int32]
    stated: Mask
    word: Bytes
    number: Ints


def _contract() -> Contract:
    models = {m.model_fields["kind"].default: m.model_fields for m in get_args(get_args(Event)[0])}

    def by_kind(tell: Any, names: Sequence[str], absent: int) -> list[list[Any]]:
        return [
            [tell(models[kind][n], n) if n in models[kind] else absent for n in names]
            for kind in KINDS
        ]

    def default(field: Any, name: str) -> int:
        return 0 if name == "kind" else _WORDS[name].index(field.default)

    return Contract(
        name=_spelled(_FIELDS),
        word=_spelled([word for words in _WORDS.values() for word in words]),
        words_from=np.cumsum([0, *map(len, _WORDS.values())]),
        most_bytes=np.array(list(_TEXTS.values())),
        least=np.array([least for least, _ in _NUMBERS.values()]),
        most=np.array([most for _, most in _NUMBERS.values()]),
        states=np.array(by_kind(lambda *_: True, _FIELDS, False)),
        needs=np.array(by_kind(lambda field, _: field.is_required(), _FIELDS, False)),
        default=np.array(by_kind(default, list(_WORDS), NO_WORD), np.uint8),
    )


def _spelled(words: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Each word's bytes in two words of the machine's."""
    if max(map(len, words)) > _SPELLED_BYTES:
        raise ValueError(f"the scan knows words of up to {_SPELLED_BYTES} bytes: {words}")
    spelled = b"".join(word.encode().ljust(_SPELLED_BYTES, b"\0") for word in words)
    return np.frombuffer(spelled, np.uint64).reshape(len(words), 2)


_CONTRACT = _contract()


def scanned(values: Sequence[bytes], sizes: Ints) -> tuple[Ints, dict[str, pa.Array]]:
    """Which of the values (of `sizes` bytes) were taken, ascending, and their columns by name.

    Defaults are filled in; a field that a kind does not state is null.
    """
    starts = np.zeros(len(values) + 1, np.int64)
    np.cumsum(sizes + 1, out=starts[1:])
    data = np.frombuffer(b"\0".join([*values, PADDING]), np.uint8)
    found = Scanned(*scan(data, starts, *_CONTRACT))
    kind = found.word[0, : len(found.rows)]
    columns = {name: _texts(found, place) for place, name in enumerate(_TEXTS)}
    columns |= {name: _words(found, place) for place, name in enumerate(_WORDS)}
    columns |= {name: _numbers(found, place, kind) for place, name in enumerate(_NUMBERS)}
    return found.rows, columns | {"kind": pa.array(kind)}


def _texts(found: Scanned, place: int) -> pa.Array:
    count = len(found.rows)
    ends, stated = found.ends[place, : count + 1], found.stated[place, :count]
    nulls = count - int(np.count_nonzero(stated))
    valid = pa.py_buffer(np.packbits(stated, bitorder="little")) if nulls else None
    buffers = [valid, pa.py_buffer(ends), pa.py_buffer(found.text[place, : ends[-1]])]
    return pa.StringArray.from_buffers(count, buffers[1], buffers[2], buffers[0], nulls)


_VALUES = [pa.array(words) for words in _WORDS.values()]


def _words(found: Scanned, place: int) -> pa.Array:
    word = found.word[place, : len(found.rows)]
    return _VALUES[place].take(_masked(word, word == NO_WORD))


def _numbers(found: Scanned, place: int, kind: Bytes) -> pa.Array:
    stated = _CONTRACT.states[:, _FIELDS.index(list(_NUMBERS)[place])]
    return _masked(found.number[place, : len(found.rows)], ~stated[kind])


def _masked(values: npt.NDArray[Any], absent: Mask) -> pa.Array:
    return pa.array(values, mask=absent) if absent.any() else pa.array(values)


def warm() -> None:
    """Compiles the scan for the types that it is given, or finds it in the cache."""
    scanned([b"{}"], np.array([2]))


if __name__ == "__main__":
    from pathlib import Path

    # A cached function does not notice that one that it calls, in another file, has changed.
    for _stale in Path(__file__).parents[1].glob("kernels/__pycache__/json_*.nb[ic]"):
        _stale.unlink()
    warm()
