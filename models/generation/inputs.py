"""The query recommender's tensors: the signature, and how features become it.

Knows feature columns and names. Numpy only: the runtime reads the signature from here
inside Triton's stub, and serving assembles requests with it. Does not know the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.signature import Signature, TensorSpec, byte_list

if TYPE_CHECKING:
    from features.store import FeatureFrame
    from streams.contract.events import CatalogueItem

SIGNATURE = Signature(
    inputs=(
        TensorSpec("user_history", "BYTES", (-1,)),  # engaged videos, newest first
        TensorSpec("user_query", "BYTES", (-1,)),  # queries the user clicked, newest first
        TensorSpec("video_id", "BYTES", (1,)),
        TensorSpec("title", "BYTES", (1,)),
        TensorSpec("genres", "BYTES", (-1,)),
        TensorSpec("video_query", "BYTES", (-1,)),  # clicked under the video, newest first
        TensorSpec("blocked", "BYTES", (-1,)),  # queries that may not come out
        TensorSpec("k", "INT64", (1,)),
    ),
    outputs=(
        TensorSpec("query", "BYTES", (-1,)),  # K distinct legal queries, best first
        TensorSpec("score", "FP32", (-1,)),  # log-probability among the legal queries
        TensorSpec("anchor", "INT64", (-1,)),  # 1: behaviour ties the query to this video
    ),
)

MAX_K = 100


def assemble(
    user: FeatureFrame,
    video: FeatureFrame,
    item: CatalogueItem,
    k: int,
    now_ms: int,
    *,
    blocked: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One request: row 0 of `user` and of `video`, and the catalogue's word on the video.

    `blocked` are queries taken down since the model was released. The features are
    already finished at `now_ms`; the model itself has no notion of time. A list that
    is empty travels as one empty string, which the runtime ignores.
    """
    del now_ms
    return {
        "user_history": byte_list(user.columns["engaged_video_id"][0]),
        "user_query": byte_list(user.columns["clicked_query"][0]),
        "video_id": byte_list([item.video_id]),
        "title": byte_list([item.title]),
        "genres": byte_list(item.genres),
        "video_query": byte_list(video.columns["clicked_query"][0]),
        "blocked": byte_list(blocked),
        "k": np.array([k], dtype=np.int64),
    }
