"""The query recommender's tensors: its signature, and the assembly of a request.

Knows feature columns and tensor names. Numpy only: Triton's stub reads the signature, and
serving assembles requests. Does not know the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.signature import Signature, TensorSpec, byte_list

if TYPE_CHECKING:
    from features.store import FeatureFrame
    from models.recipe import ServingExample
    from streams.contract.events import CatalogueItem

SIGNATURE = Signature(
    inputs=(
        TensorSpec("user_history", "BYTES", (-1,)),  # engaged items, newest first
        TensorSpec("user_query", "BYTES", (-1,)),  # queries the user clicked, newest first
        TensorSpec("video_id", "BYTES", (1,)),
        TensorSpec("title", "BYTES", (1,)),
        TensorSpec("genres", "BYTES", (-1,)),
        TensorSpec("video_query", "BYTES", (-1,)),  # clicked under the item, newest first
        TensorSpec("blocked", "BYTES", (-1,)),  # excluded queries
        TensorSpec("k", "INT64", (1,)),
    ),
    outputs=(
        TensorSpec("query", "BYTES", (-1,)),  # K distinct legal queries, best first
        TensorSpec("score", "FP32", (-1,)),  # log-probability among the legal queries
        TensorSpec("anchor", "INT64", (-1,)),  # 1: the query was clicked under this item
    ),
)

MAX_K = 100


def assemble_request(
    user: FeatureFrame,
    item_features: FeatureFrame,
    item: CatalogueItem,
    k: int,
    now_ms: int,
    *,
    blocked: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One request from row 0 of `user` and of `item_features`, and the catalogue item.

    blocked: queries taken down since the release. The features are those at `now_ms`; the model
    itself does not depend on time. An empty list is sent as one empty string, which the runtime
    ignores.
    """
    del now_ms
    return {
        "user_history": byte_list(user.columns["engaged_video_id"][0]),
        "user_query": byte_list(user.columns["clicked_query"][0]),
        "video_id": byte_list([item.video_id]),
        "title": byte_list([item.title]),
        "genres": byte_list(item.genres),
        "video_query": byte_list(item_features.columns["clicked_query"][0]),
        "blocked": byte_list(blocked),
        "k": np.array([k], dtype=np.int64),
    }


def example_request(example: ServingExample) -> dict[str, np.ndarray]:
    """A canary's request: one query for the example's first item."""
    item = example.items[0]
    return assemble_request(example.user, example.item_features, item, 1, example.now_ms)


def canary_request(genres_of: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """A request about the model's first item, of a user who engaged with it."""
    item_id = min(genres_of, default="")
    return {
        "user_history": byte_list([item_id]),
        "user_query": byte_list([]),
        "video_id": byte_list([item_id]),
        "title": byte_list([]),
        "genres": byte_list(genres_of.get(item_id, ())),
        "video_query": byte_list([]),
        "blocked": byte_list([]),
        "k": np.array([2], dtype=np.int64),
    }
