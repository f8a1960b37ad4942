"""What the ranker is given: one assembly of features for training and serving alike.

Knows feature columns, hashes and tensor shapes. Does not know the network
(`models.ranking.ple.recipe`), where features are stored, or how rows were sampled. Numpy
only: it is imported where neither pyarrow nor torch may be.

A feature column that is missing, NaN or infinite counts as 0, so a half-rolled-out
feature service degrades an answer and does not break it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from models.signature import Signature, TensorSpec
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.topics import entity_hash

if TYPE_CHECKING:
    from features.store import FeatureFrame
    from streams.contract.events import CatalogueItem

TASKS: tuple[str, ...] = ("play", "long_view", "like", "follow", "order")
HISTORY = 50
GENRE_BUCKETS = 64  # genre names hash into these, so a new genre needs no new signature

# Index + 1 is the code of a kind in `history_kind`; 0 is padding or unknown.
HISTORY_KINDS: tuple[str, ...] = ("play", "long_view", "like", "share", "follow", "cart", "order")

_USER_KINDS = (
    *("shown", "skip", "play", "long_view", "like", "share", "follow", "query_click"),
    *("search", "cart", "order"),
)
_VIDEO_KINDS = ("shown", "play", "long_view", "like", "share", "follow", "order", "query_click")
_USER_COUNTS = tuple(f"{kind}_count_{w}" for kind in _USER_KINDS for w in ("1h", "1d", "7d", "all"))
_VIDEO_COUNTS = tuple(f"{kind}_count_{w}" for kind in _VIDEO_KINDS for w in ("1d", "7d", "all"))
_AUTHOR_KINDS = ("play", "long_view", "like", "follow", "order")
_AUTHOR_COUNTS = tuple(f"{kind}_count_{w}" for kind in _AUTHOR_KINDS for w in ("1d", "7d", "all"))
# (numerator, denominator): smoothed towards 0.5 / 10 so that one event decides nothing.
_USER_RATES = (
    ("play", "shown"),
    ("skip", "shown"),
    ("long_view", "play"),
    ("like", "play"),
    ("follow", "play"),
    ("order", "play"),
)
_VIDEO_RATES = (
    ("play", "shown"),
    ("long_view", "play"),
    ("like", "play"),
    ("follow", "play"),
    ("order", "play"),
)
_AUTHOR_RATES = _VIDEO_RATES[1:]
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
VIDEO_FEATURES: tuple[str, ...] = (
    *(f"log_{name}" for name in _VIDEO_COUNTS),
    *(f"{a}_per_{b}" for a, b in _VIDEO_RATES),
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
"""A candidate's facts: its video's, how often it stands in its user's lists, and the same
of its author."""

SIGNATURE = Signature(
    inputs=(
        TensorSpec("user_hash", "INT64", (1,)),
        TensorSpec("user_x", "FP32", (len(USER_FEATURES),)),
        TensorSpec("history", "INT64", (HISTORY,)),
        TensorSpec("history_kind", "INT64", (HISTORY,)),
        TensorSpec("video_hash", "INT64", (-1,)),
        TensorSpec("author_hash", "INT64", (-1,)),
        TensorSpec("genres", "FP32", (-1, GENRE_BUCKETS)),
        TensorSpec("video_x", "FP32", (-1, len(VIDEO_FEATURES))),
    ),
    outputs=(
        TensorSpec("p", "FP32", (-1, len(TASKS))),
        TensorSpec("weights", "FP32", (len(TASKS),)),
        TensorSpec("alpha", "FP32", (len(TASKS),)),
        TensorSpec("rates", "FP32", (len(TASKS),)),
        TensorSpec("score", "FP32", (-1,)),
    ),
)


@lru_cache(maxsize=1 << 18)
def id_hash(entity_id: str) -> int:
    """An id as a positive int64; 0 is kept for "none"."""
    return (entity_hash(entity_id) >> 1) or 1 if entity_id else 0


@dataclass(frozen=True)
class ItemColumns:
    """What the catalogue says of N items, as columns."""

    author_hash: np.ndarray  # int64 [N]
    genres: np.ndarray  # float32 [N, GENRE_BUCKETS], multi-hot
    duration_ms: np.ndarray  # int64 [N]
    price_cents: np.ndarray  # int64 [N]
    created_ms: np.ndarray  # int64 [N], 0 where unknown
    aigc: np.ndarray  # float32 [N]


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


@dataclass(frozen=True)
class Candidates:
    """R candidates with what was read of them, each one user's.

    owner: int64 [R], the row of the users (and of their `now_ms`) that each belongs to;
    item: int64 [R], the row of the items that each is; videos, authors: R rows of
    features in the same order. A candidate without an author has an absent row.
    """

    owner: np.ndarray
    item: np.ndarray
    videos: FeatureFrame
    authors: FeatureFrame


def assemble(
    user: FeatureFrame,
    videos: FeatureFrame,
    authors: FeatureFrame,
    items: Sequence[CatalogueItem],
    author_of: Mapping[str, str],
    now_ms: int,
) -> dict[str, np.ndarray]:
    """The ranker's input tensors of one request, as `SIGNATURE` says.

    user: one row. videos, authors: C rows, one per candidate in order, duplicates allowed.
    items: the C candidates' catalogue items, in the same order. C may be 0. author_of: as
    in `assemble_videos`.

    Raises `ValueError` when the lengths disagree.
    """
    if len(user) != 1:
        raise ValueError(f"one user's features are needed, got {len(user)} rows")
    for frame in (videos, authors):
        if len(frame) != len(items):
            raise ValueError(
                f"{len(frame)} feature rows of {frame.entity}s do not fit {len(items)} candidates"
            )
    every = np.arange(len(items))
    candidates = Candidates(np.zeros(len(items), np.int64), every, videos, authors)
    now = np.array([now_ms], np.int64)
    users = assemble_users(user, now)
    rows = assemble_videos(user, candidates, item_columns(items), author_of, now)
    one = {name: tensor[0] for name, tensor in users.items()}
    return one | {"user_hash": users["user_hash"]} | rows


def assemble_users(users: FeatureFrame, now_ms: np.ndarray) -> dict[str, np.ndarray]:
    """The user side of N rows: user_hash [N], user_x [N, Fu], history and its kinds [N, H].

    now_ms: int64 [N], the reader's time of each row.
    """
    history, kinds = _history(users)
    return {
        "user_hash": _hashes(users.ids),
        "user_x": _user_x(users, now_ms),
        "history": history,
        "history_kind": kinds,
    }


def assemble_videos(
    users: FeatureFrame,
    candidates: Candidates,
    items: ItemColumns,
    author_of: Mapping[str, str],
    now_ms: np.ndarray,
) -> dict[str, np.ndarray]:
    """The candidate side of R rows: video_hash, author_hash [R], genres, video_x [R, F].

    author_of: the author's id of each video that may stand in a user's lists, as the
    catalogue says now; what it lacks has no author. now_ms: int64, one per user.
    """
    row, hashes = candidates.item, _hashes(candidates.videos.ids)
    author = items.author_hash[row]
    listed = _listed(users, candidates.owner, hashes, author, author_of)
    video_x = np.column_stack(
        [
            _video_x(candidates.videos, items, row, now_ms[candidates.owner]),
            np.log1p(listed[:, :2]),
            _author_x(candidates.authors),
            np.log1p(listed[:, 2:]),
        ]
    )
    return {
        "video_hash": hashes,
        "author_hash": author,
        "genres": items.genres[row],
        "video_x": _finite(video_x),
    }


def _user_x(users: FeatureFrame, now_ms: np.ndarray) -> np.ndarray:
    hour = (now_ms % DAY_MS) / HOUR_MS * (2 * math.pi / 24)
    columns = [np.log1p(_column(users, name)) for name in _USER_COUNTS]
    columns += [_rate(users, a, b) for a, b in _USER_RATES]
    columns.append(np.log1p(_column(users, "dwell_ms_sum_1d") / 1e3))
    columns.append(_log_since(users.last_event_ms, now_ms, HOUR_MS))
    columns += [np.sin(hour), np.cos(hour), (users.status == 1).astype(float)]
    return _finite(np.column_stack(columns))


def _video_x(
    videos: FeatureFrame, items: ItemColumns, row: np.ndarray, now_ms: np.ndarray
) -> np.ndarray:
    columns = [np.log1p(_column(videos, name)) for name in _VIDEO_COUNTS]
    columns += [_rate(videos, a, b) for a, b in _VIDEO_RATES]
    columns.append(np.log1p(_column(videos, "dwell_ms_sum_all") / 1e3))
    columns.append(_log_since(items.created_ms[row], now_ms, DAY_MS))
    columns += [np.log1p(items.duration_ms[row] / 1e3), np.log1p(items.price_cents[row] / 100)]
    columns += [items.aigc[row].astype(float), (videos.status == 1).astype(float)]
    return np.column_stack(columns)


def _author_x(authors: FeatureFrame) -> np.ndarray:
    columns = [np.log1p(_column(authors, name)) for name in _AUTHOR_COUNTS]
    columns += [_rate(authors, a, b) for a, b in _AUTHOR_RATES]
    known = (authors.status == 1).astype(float)
    told: np.ndarray = np.column_stack([*columns, known]) * known[:, None]
    return told


def _history(users: FeatureFrame) -> tuple[np.ndarray, np.ndarray]:
    history = np.zeros((len(users), HISTORY), np.int64)
    kinds = np.zeros((len(users), HISTORY), np.int64)
    code = {kind: number for number, kind in enumerate(HISTORY_KINDS, 1)}
    for row, (ids, names) in enumerate(
        zip(_lists(users, "engaged_video_id"), _lists(users, "engaged_kind"), strict=True)
    ):
        ids, names = ids[:HISTORY], names[:HISTORY]
        history[row, : len(ids)] = [id_hash(video) for video in ids]
        kinds[row, : len(names)] = [code.get(name, 0) for name in names]
    return history, kinds


def _listed(
    users: FeatureFrame,
    owner: np.ndarray,
    video: np.ndarray,
    author: np.ndarray,
    author_of: Mapping[str, str],
) -> np.ndarray:
    """How often each candidate's video, then its author, stands in its user's lists;
    float64 [R, 4]. An author that is none (0) stands in no list."""
    lists = [_lists(users, name) for name in _LISTS]
    authors = [[[author_of.get(v, "") for v in ids] for ids in each] for each in lists]
    counts = [_times(each, owner, video) for each in lists]
    counts += [_times(each, owner, author) * (author != 0) for each in authors]
    return np.column_stack(counts)


def _times(lists: Sequence[Sequence[str]], owner: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """How often each of `hashes` is in the list of its owner; float64 [R]."""
    width = max((len(ids) for ids in lists), default=0)
    count = np.zeros(len(hashes))
    if width == 0 or len(hashes) == 0:
        return count
    listed = np.zeros((len(lists), width), np.int64)
    for row, ids in enumerate(lists):
        listed[row, : len(ids)] = [id_hash(each) for each in ids]
    for place in range(width):
        count += listed[owner, place] == hashes
    return count


def _column(frame: FeatureFrame, name: str) -> np.ndarray:
    """A numeric column as float64 [N], never negative; zeros where it is missing."""
    values = frame.columns.get(name)
    if values is None:
        return np.zeros(len(frame))
    finite: np.ndarray = np.maximum(_finite(values), 0).astype(float)
    return finite


def _lists(frame: FeatureFrame, name: str) -> Sequence[Sequence[str]]:
    values = frame.columns.get(name)
    return [()] * len(frame) if values is None else [ids or () for ids in values]


def _rate(frame: FeatureFrame, kind: str, per: str) -> np.ndarray:
    """Smoothed. Who acted had the chance to: replayed plays have no `shown`, and a rate far
    above 1 would fall with every showing, so that the most shown would look the worst."""
    acts = _column(frame, f"{kind}_count_all")
    chances = np.maximum(_column(frame, f"{per}_count_all"), acts)
    return np.asarray((acts + 0.5) / (chances + 10))


def _log_since(then_ms: np.ndarray, now_ms: np.ndarray, unit_ms: int) -> np.ndarray:
    """log(1 + units since then); 0 where `then_ms` is 0 (never) or in the future."""
    return np.where(then_ms > 0, np.log1p(np.maximum(now_ms - then_ms, 0) / unit_ms), 0.0)


def _finite(values: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.nan_to_num(values, nan=0, posinf=0, neginf=0).astype(np.float32)
    return finite


def _hashes(ids: Sequence[str]) -> np.ndarray:
    return _int64(id_hash(entity_id) for entity_id in ids)


def _int64(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)
