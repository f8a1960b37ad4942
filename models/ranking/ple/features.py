"""Feature columns of the ranker: counts, rates, ages and list matches as float32.

Knows the feature service's column names and the catalogue's fields. Does not know tensor names
(`models.ranking.ple.inputs`), the network or where features are stored. Numpy only.

A feature column that is missing, NaN or infinite counts as 0, so a partly rolled-out feature
service degrades an answer and does not break it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from models.ids import id_hash
from streams.contract.clock import DAY_MS, HOUR_MS

if TYPE_CHECKING:
    from features.store import FeatureFrame
    from streams.contract.events import CatalogueItem

HISTORY = 50
GENRE_BUCKETS = 64  # genre names hash into these, so a new genre needs no new signature

# Index + 1 is the code of a kind in `history_kind`; 0 is padding or unknown.
HISTORY_KINDS: tuple[str, ...] = ("play", "long_view", "like", "share", "follow", "cart", "order")

_USER_KINDS = (
    *("shown", "skip", "play", "long_view", "like", "share", "follow", "query_click"),
    *("search", "cart", "order"),
)
_ITEM_KINDS = ("shown", "play", "long_view", "like", "share", "follow", "order", "query_click")
_AUTHOR_KINDS = ("play", "long_view", "like", "follow", "order")
_USER_COUNTS = tuple(f"{kind}_count_{w}" for kind in _USER_KINDS for w in ("1h", "1d", "7d", "all"))
_ITEM_COUNTS = tuple(f"{kind}_count_{w}" for kind in _ITEM_KINDS for w in ("1d", "7d", "all"))
_AUTHOR_COUNTS = tuple(f"{kind}_count_{w}" for kind in _AUTHOR_KINDS for w in ("1d", "7d", "all"))
# (numerator, denominator): smoothed towards 0.5 / 10 so that one event decides nothing.
_ITEM_RATES = (
    ("play", "shown"),
    ("long_view", "play"),
    ("like", "play"),
    ("follow", "play"),
    ("order", "play"),
)
_USER_RATES = (_ITEM_RATES[0], ("skip", "shown"), *_ITEM_RATES[1:])
_AUTHOR_RATES = _ITEM_RATES[1:]
_LISTS = ("engaged_video_id", "shown_video_id")  # of a user, newest first, with repeats

USER_FEATURES: tuple[str, ...] = (
    *(f"log_{name}" for name in _USER_COUNTS),
    *(f"{a}_per_{b}" for a, b in _USER_RATES),
    "log_dwell_1d_s",
    "log_silence_h",
    "hour_sin",
    "hour_cos",
    "known",
)
ITEM_FEATURES: tuple[str, ...] = (
    *(f"log_{name}" for name in _ITEM_COUNTS),
    *(f"{a}_per_{b}" for a, b in _ITEM_RATES),
    "log_dwell_all_s",
    "log_age_d",
    "log_duration_s",
    "log_price",
    "aigc",
    "known",
    "log_engaged_by_user",
    "log_shown_to_user",
    *(f"author_log_{name}" for name in _AUTHOR_COUNTS),
    *(f"author_{a}_per_{b}" for a, b in _AUTHOR_RATES),
    "author_known",
    "log_author_engaged_by_user",
    "log_author_shown_to_user",
)
"""Columns of `video_x`: the item, its counts in its user's lists, and the same of its author."""


@dataclass(frozen=True)
class ItemColumns:
    """The catalogue's facts on N items, as columns."""

    author_hash: np.ndarray  # int64 [N]
    genres: np.ndarray  # float32 [N, GENRE_BUCKETS], multi-hot
    duration_ms: np.ndarray  # int64 [N]
    price_cents: np.ndarray  # int64 [N]
    created_ms: np.ndarray  # int64 [N], 0 where unknown
    aigc: np.ndarray  # float32 [N]


@runtime_checkable
class ColumnarItems(Protocol):
    """Catalogue items whose facts are columns already."""

    def columns(self) -> ItemColumns:
        """One row for each item. Raises `ValueError` where the catalogue does not know one."""


def item_columns(items: Sequence[CatalogueItem]) -> ItemColumns:
    """Catalogue items as columns, in their order."""
    genres = np.zeros((len(items), GENRE_BUCKETS), np.float32)
    for row, item in enumerate(items):
        genres[row, [id_hash(name) % GENRE_BUCKETS for name in item.genres]] = 1.0
    return ItemColumns(
        author_hash=_int64(id_hash(item.author_id or "") for item in items),
        genres=genres,
        duration_ms=_int64(item.duration_ms for item in items),
        price_cents=_int64(item.price_cents for item in items),
        created_ms=_int64(item.created_ms for item in items),
        aigc=np.array([item.provenance == "aigc" for item in items], np.float32),
    )


def user_columns(users: FeatureFrame, now_ms: np.ndarray) -> np.ndarray:
    """float32 [N, Fu] in USER_FEATURES' order; now_ms: int64 [N], the reader's time."""
    hour = (now_ms % DAY_MS) / HOUR_MS * (2 * math.pi / 24)
    columns = [*np.log1p(_table(users, _USER_COUNTS)), *_rates(users, _USER_RATES)]
    columns.append(np.log1p(_column(users, "dwell_ms_sum_1d") / 1e3))
    columns.append(_log_since(users.last_event_ms, now_ms, HOUR_MS))
    columns += [np.sin(hour), np.cos(hour), (users.status == 1).astype(float)]
    return finite(np.column_stack(columns))


def own_item_columns(
    features: FeatureFrame, catalogue: ItemColumns, row: np.ndarray, now_ms: np.ndarray
) -> np.ndarray:
    """float64 [R, ..]: counts, rates and catalogue facts of each candidate's item.

    row: int64 [R], rows of `catalogue`; now_ms: int64 [R].
    """
    columns = [*np.log1p(_table(features, _ITEM_COUNTS)), *_rates(features, _ITEM_RATES)]
    columns.append(np.log1p(_column(features, "dwell_ms_sum_all") / 1e3))
    columns.append(_log_since(catalogue.created_ms[row], now_ms, DAY_MS))
    columns.append(np.log1p(catalogue.duration_ms[row] / 1e3))
    columns.append(np.log1p(catalogue.price_cents[row] / 100))
    columns += [catalogue.aigc[row].astype(float), (features.status == 1).astype(float)]
    return np.column_stack(columns)


def author_columns(authors: FeatureFrame) -> np.ndarray:
    """float64 [R, ..]: counts and rates of each candidate's author; 0 for unknown authors."""
    columns = [*np.log1p(_table(authors, _AUTHOR_COUNTS)), *_rates(authors, _AUTHOR_RATES)]
    known = (authors.status == 1).astype(float)
    masked: np.ndarray = np.column_stack([*columns, known]) * known[:, None]
    return masked


def history_columns(users: FeatureFrame) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N, HISTORY] each: hashes of engaged items, newest first, and codes of the kinds. A
    declared signal has the code of the kind that it counts as."""
    from streams.contract.declaration import contract  # Triton's stub reads this module without it

    history = np.zeros((len(users), HISTORY), np.int64)
    kinds = np.zeros((len(users), HISTORY), np.int64)
    code = {kind: number for number, kind in enumerate(HISTORY_KINDS, 1)}
    code |= {name: code[kind] for name, kind in contract().signals.stand_ins.items()}
    for row, (ids, names) in enumerate(
        zip(_lists(users, "engaged_video_id"), _lists(users, "engaged_kind"), strict=True)
    ):
        ids, names = ids[:HISTORY], names[:HISTORY]
        history[row, : len(ids)] = [id_hash(item_id) for item_id in ids]
        kinds[row, : len(names)] = [code.get(name, 0) for name in names]
    return history, kinds


def list_counts(
    users: FeatureFrame,
    owner: np.ndarray,
    item: np.ndarray,
    author: np.ndarray,
    author_of: Mapping[str, str],
) -> np.ndarray:
    """How often each candidate's item, then its author, is in its user's lists; float64 [R, 4].

    owner: int64 [R], rows of `users`; item, author: int64 [R], hashes. A missing author (0)
    counts 0.
    """
    lists = [_lists(users, name) for name in _LISTS]
    authors = [[[author_of.get(item_id, "") for item_id in ids] for ids in each] for each in lists]
    counts = [_occurrences(each, owner, item) for each in lists]
    counts += [_occurrences(each, owner, author) * (author != 0) for each in authors]
    return np.column_stack(counts)


def finite(values: np.ndarray) -> np.ndarray:
    """float32; NaN and infinity become 0."""
    clean: np.ndarray = np.nan_to_num(values, nan=0, posinf=0, neginf=0).astype(np.float32)
    return clean


def _occurrences(
    lists: Sequence[Sequence[str]], owner: np.ndarray, hashes: np.ndarray
) -> np.ndarray:
    """How often each of `hashes` is in the list of its owner; float64 [R]."""
    width = max((len(ids) for ids in lists), default=0)
    count = np.zeros(len(hashes))
    if width == 0 or len(hashes) == 0:
        return count
    listed = np.zeros((len(lists), width), np.int64)
    for row, ids in enumerate(lists):
        listed[row, : len(ids)] = [id_hash(each) for each in ids]
    if len(lists) == 1:
        known, times = np.unique(listed[0], return_counts=True)
        nearest = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return np.where(known[nearest] == hashes, times[nearest], 0).astype(float)
    for place in range(width):
        count += listed[owner, place] == hashes
    return count


def _column(frame: FeatureFrame, name: str) -> np.ndarray:
    """A numeric column as float64 [N], never negative; zeros where it is missing."""
    values = frame.columns.get(name)
    if values is None:
        return np.zeros(len(frame))
    column: np.ndarray = np.maximum(finite(values), 0).astype(float)
    return column


def _lists(frame: FeatureFrame, name: str) -> Sequence[Sequence[str]]:
    values = frame.columns.get(name)
    return [()] * len(frame) if values is None else [ids or () for ids in values]


def _table(frame: FeatureFrame, names: Sequence[str]) -> np.ndarray:
    """Numeric columns as float64 [names, N], as `_column` of each; one pass over all of them."""
    found = [frame.columns.get(name) for name in names]
    none = np.zeros(len(frame))
    table = np.array([none if values is None else values for values in found], np.float64)
    if not all(values is None or values.dtype.kind in "iu" for values in found):
        table = finite(table).astype(float)
    return np.maximum(table, 0)


def _rates(frame: FeatureFrame, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Smoothed rates, float64 [pairs, N]. The denominator is at least the number of actions:
    replayed plays have no `shown`, and a rate far above 1 would fall with every impression."""
    acts = _table(frame, [f"{kind}_count_all" for kind, _ in pairs])
    chances = np.maximum(_table(frame, [f"{per}_count_all" for _, per in pairs]), acts)
    return np.asarray((acts + 0.5) / (chances + 10))


def _log_since(then_ms: np.ndarray, now_ms: np.ndarray, unit_ms: int) -> np.ndarray:
    """log(1 + units since then); 0 where `then_ms` is 0 (never) or in the future."""
    return np.where(then_ms > 0, np.log1p(np.maximum(now_ms - then_ms, 0) / unit_ms), 0.0)


def _int64(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)
