"""The dormant-user reasoner's tensors: the signature, and how features become it.

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

ROLES: tuple[str, ...] = ("trigger", "bridge", "comparison", "converter", "noise")

SIGNATURE = Signature(
    inputs=(
        TensorSpec("history", "BYTES", (-1,)),  # engaged videos, newest first
        TensorSpec("history_kind", "BYTES", (-1,)),  # what the user did with each
        TensorSpec("history_time_ms", "INT64", (-1,)),
        TensorSpec("now_ms", "INT64", (1,)),
        TensorSpec("unavailable", "BYTES", (-1,)),  # videos that may not come out
        TensorSpec("k", "INT64", (1,)),
    ),
    outputs=(
        TensorSpec("video_id", "BYTES", (-1,)),  # the trajectory, first step first
        TensorSpec("role", "BYTES", (-1,)),  # one of ROLES per step
        TensorSpec("p_convert", "FP32", (-1,)),  # P(the user converts on it), calibrated
        TensorSpec("goal", "BYTES", (1,)),  # the item that the trajectory leads to
        TensorSpec("counterfactual_goal", "BYTES", (-1,)),  # goals not taken, best first
        TensorSpec("counterfactual_p", "FP32", (-1,)),  # P(convert) of each of those
    ),
)

MAX_K = 100


def assemble(
    user: FeatureFrame,
    k: int,
    now_ms: int,
    *,
    unavailable: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One request: row 0 of `user` at `now_ms`, the moment that ends the silent gap.

    `unavailable` are videos taken down since the model was released. A history that is
    empty travels as one empty id of kind "" at time 0, which the runtime ignores.
    """
    times = [int(time_ms) for time_ms in user.columns["engaged_time_ms"][0]] or [0]
    return {
        "history": byte_list(user.columns["engaged_video_id"][0]),
        "history_kind": byte_list(user.columns["engaged_kind"][0]),
        "history_time_ms": np.array(times, dtype=np.int64),
        "now_ms": np.array([now_ms], dtype=np.int64),
        "unavailable": byte_list(unavailable),
        "k": np.array([k], dtype=np.int64),
    }
