"""The dormant-user reasoner's tensors: its signature, and the assembly of a request.

Knows feature columns and tensor names. Numpy only: Triton's stub reads the signature, and
serving assembles requests. Does not know the reasoner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.signature import Signature, TensorSpec, byte_list

if TYPE_CHECKING:
    from features.store import FeatureFrame
    from models.recipe import ServingExample

ROLES: tuple[str, ...] = ("trigger", "bridge", "comparison", "converter", "noise")

SIGNATURE = Signature(
    inputs=(
        TensorSpec("history", "BYTES", (-1,)),  # engaged items, newest first
        TensorSpec("history_kind", "BYTES", (-1,)),  # the user's action on each
        TensorSpec("history_time_ms", "INT64", (-1,)),
        TensorSpec("now_ms", "INT64", (1,)),
        TensorSpec("unavailable", "BYTES", (-1,)),  # excluded items
        TensorSpec("k", "INT64", (1,)),
    ),
    outputs=(
        TensorSpec("video_id", "BYTES", (-1,)),  # the trajectory, first step first
        TensorSpec("role", "BYTES", (-1,)),  # one of ROLES per step
        TensorSpec("p_convert", "FP32", (-1,)),  # P(the user converts on it), calibrated
        TensorSpec("goal", "BYTES", (1,)),  # the item that the trajectory leads to
        TensorSpec("counterfactual_goal", "BYTES", (-1,)),  # other goals, best first
        TensorSpec("counterfactual_p", "FP32", (-1,)),  # P(convert) of each of those
    ),
)

MAX_K = 100


def assemble_request(
    user: FeatureFrame,
    k: int,
    now_ms: int,
    *,
    unavailable: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One request from row 0 of `user` at `now_ms`, the end of the silent gap.

    unavailable: items taken down since the release. An empty history is sent as one empty id of
    kind "" at time 0, which the runtime ignores.
    """
    from streams.contract.declaration import contract  # Triton's stub reads this module without it

    counts_as = contract().signals.stand_ins  # the model knows shipped kinds
    kinds = [counts_as.get(kind, kind) for kind in user.columns["engaged_kind"][0]]
    times = [int(time_ms) for time_ms in user.columns["engaged_time_ms"][0]] or [0]
    return {
        "history": byte_list(user.columns["engaged_video_id"][0]),
        "history_kind": byte_list(kinds),
        "history_time_ms": np.array(times, dtype=np.int64),
        "now_ms": np.array([now_ms], dtype=np.int64),
        "unavailable": byte_list(unavailable),
        "k": np.array([k], dtype=np.int64),
    }


def example_request(example: ServingExample) -> dict[str, np.ndarray]:
    """A canary's request: the first step for the example's user."""
    return assemble_request(example.user, 1, example.now_ms)


def canary_request(item_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """A request of a user who played the model's first items and was silent for 30 days."""
    played = list(item_ids[:3])
    hour_ms = 3_600_000
    return {
        "history": byte_list(played),
        "history_kind": byte_list(["play"] * len(played)),
        "history_time_ms": np.arange(max(len(played), 1), dtype=np.int64)[::-1] * hour_ms,
        "now_ms": np.array([30 * 24 * hour_ms], dtype=np.int64),
        "unavailable": byte_list([]),
        "k": np.array([3], dtype=np.int64),
    }
