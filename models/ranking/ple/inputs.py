"""The ranker's tensors: its signature, and one assembly for training and serving alike.

Knows tensor names and shapes. Does not know the network, where features are stored, or how rows
were sampled. Numpy only: it is imported where neither pyarrow nor torch may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.ids import id_hashes
from models.ranking.ple.features import (
    GENRE_BUCKETS,
    HISTORY,
    HISTORY_KINDS,
    ITEM_FEATURES,
    USER_FEATURES,
    ColumnarItems,
    ItemColumns,
    author_columns,
    finite,
    history_columns,
    item_columns,
    list_counts,
    own_item_columns,
    user_columns,
)
from models.ranking.tasks import SHIPPED_TASKS
from models.retrieval.factorisation.config import LIKING, PLAYED_ONLY
from models.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from features.store import FeatureFrame
    from models.recipe import ServingExample
    from streams.contract.events import CatalogueItem

RANKER_TASKS: tuple[str, ...] = SHIPPED_TASKS.names
"""The tasks of a ranker that was trained without declared signals."""

_LIKING = np.array([0.0, *(LIKING.get(kind, PLAYED_ONLY) for kind in HISTORY_KINDS)])

SIGNATURE = Signature(
    inputs=(
        TensorSpec("user_hash", "INT64", (1,)),
        TensorSpec("user_x", "FP32", (len(USER_FEATURES),)),
        TensorSpec("history", "INT64", (HISTORY,)),
        TensorSpec("history_kind", "INT64", (HISTORY,)),
        TensorSpec("video_hash", "INT64", (-1,)),
        TensorSpec("author_hash", "INT64", (-1,)),
        TensorSpec("genres", "FP32", (-1, GENRE_BUCKETS)),
        TensorSpec("video_x", "FP32", (-1, len(ITEM_FEATURES))),
    ),
    outputs=(
        # A bundle's tasks are its own: `tasks` states their numbers (`models.ranking.tasks`).
        TensorSpec("p", "FP32", (-1, -1)),
        TensorSpec("weights", "FP32", (-1,)),
        TensorSpec("alpha", "FP32", (-1,)),
        TensorSpec("rates", "FP32", (-1,)),
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("tasks", "INT64", (-1,)),
    ),
)


def liking_of_kinds(codes: np.ndarray) -> np.ndarray:
    """float64, the shape of `codes`: what each code of `history_kind` says about liking."""
    liking: np.ndarray = _LIKING[np.clip(codes, 0, len(HISTORY_KINDS))]
    return liking


@dataclass(frozen=True)
class Candidates:
    """R candidates, each of one user, with their features.

    owner: int64 [R], the row of the users (and of their `now_ms`); item: int64 [R], the row of
    the catalogue columns; item_features, author_features: R rows in the same order. A candidate
    without an author has an absent row.
    """

    owner: np.ndarray
    item: np.ndarray
    item_features: FeatureFrame
    author_features: FeatureFrame


def assemble_request(
    user: FeatureFrame,
    item_features: FeatureFrame,
    author_features: FeatureFrame,
    items: Sequence[CatalogueItem],
    author_of: Mapping[str, str],
    now_ms: int,
) -> dict[str, np.ndarray]:
    """The ranker's input tensors of one request, as `SIGNATURE` states.

    user: one row. item_features, author_features: C rows, one per candidate in order; duplicates
    are allowed and C may be 0. items: the candidates' catalogue items, in the same order; those
    that are `ColumnarItems` are not looked at one by one.
    author_of: as in `assemble_items`.

    Raises `ValueError` when the lengths differ.
    """
    if len(user) != 1:
        raise ValueError(f"one user's features are needed, got {len(user)} rows")
    for frame in (item_features, author_features):
        if len(frame) != len(items):
            raise ValueError(
                f"{len(frame)} feature rows of {frame.entity}s do not fit {len(items)} candidates"
            )
    every = np.arange(len(items))
    owner = np.zeros(len(items), np.int64)
    candidates = Candidates(owner, every, item_features, author_features)
    now = np.array([now_ms], np.int64)
    users = assemble_users(user, now)
    columns = items.columns() if isinstance(items, ColumnarItems) else item_columns(items)
    rows = assemble_items(user, candidates, columns, author_of, now)
    one = {name: tensor[0] for name, tensor in users.items()}
    return one | {"user_hash": users["user_hash"]} | rows


def example_request(example: ServingExample) -> dict[str, np.ndarray]:
    """A canary's request: every item of the example is a candidate."""
    e = example
    return assemble_request(e.user, e.item_features, e.author_features, e.items, {}, e.now_ms)


def assemble_users(users: FeatureFrame, now_ms: np.ndarray) -> dict[str, np.ndarray]:
    """The user side of N rows: user_hash [N], user_x [N, Fu], history and its kinds [N, H].

    now_ms: int64 [N], the reader's time of each row.
    """
    history, kinds = history_columns(users)
    return {
        "user_hash": id_hashes(users.ids),
        "user_x": user_columns(users, now_ms),
        "history": history,
        "history_kind": kinds,
    }


def assemble_items(
    users: FeatureFrame,
    candidates: Candidates,
    catalogue: ItemColumns,
    author_of: Mapping[str, str],
    now_ms: np.ndarray,
) -> dict[str, np.ndarray]:
    """The candidate side of R rows: video_hash, author_hash [R], genres, video_x [R, F].

    author_of: the author of each item that may be in a user's lists, by today's catalogue; an
    item without an entry has no author. now_ms: int64, one per user.
    """
    row, hashes = candidates.item, id_hashes(candidates.item_features.ids)
    author = catalogue.author_hash[row]
    listed = list_counts(users, candidates.owner, hashes, author, author_of)
    now = now_ms[candidates.owner]
    item_x = np.column_stack(
        [
            own_item_columns(candidates.item_features, catalogue, row, now),
            np.log1p(listed[:, :2]),
            author_columns(candidates.author_features),
            np.log1p(listed[:, 2:]),
        ]
    )
    return {
        "video_hash": hashes,
        "author_hash": author,
        "genres": catalogue.genres[row],
        "video_x": finite(item_x),
    }
