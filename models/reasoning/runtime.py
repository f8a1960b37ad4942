"""The served dormant-user reasoner: one call per request, numpy inside.

Knows tensor names. Imports neither torch, pyarrow, polars nor Feast: it runs in Triton's stub.
Does not know how the bundle was fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.reasoning.inputs import MAX_K, SIGNATURE
from models.reasoning.reasoner import Reasoner, Trajectory
from models.signature import BadInput, Signature, byte_list, text_list


class ReactivationRuntime:
    """`models.recipe.Runtime` of a reactivation bundle."""

    signature: Signature = SIGNATURE

    def __init__(self, bundle: Path) -> None:
        self._reasoner = Reasoner.read(bundle)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A whole path of at most k steps that ends at its goal; a k above MAX_K counts as MAX_K.

        An empty history or one of unknown items is a cold start, not an error.

        Raises `BadInput` for a missing tensor, a wrong shape, history tensors of different
        lengths, k < 1, or when every item is excluded.
        """
        self.signature.check_inputs(inputs)
        k, now_ms = int(inputs["k"][0]), int(inputs["now_ms"][0])
        if k < 1:
            raise BadInput(f"input 'k' is {k}, expected 1..{MAX_K}")
        ids, kinds = _all_texts(inputs["history"]), _all_texts(inputs["history_kind"])
        times = inputs["history_time_ms"].tolist()
        if not len(ids) == len(kinds) == len(times):
            raise BadInput(
                "inputs 'history', 'history_kind' and 'history_time_ms' differ in length"
            )
        known = self._reasoner.number
        excluded = [
            known[item_id] for item_id in text_list(inputs["unavailable"]) if item_id in known
        ]
        past = self._reasoner.history(ids, kinds, times)
        plan = self._reasoner.plan(past, min(k, MAX_K), now_ms, excluded)
        if plan is None:
            raise BadInput("input 'unavailable' and the history exclude every item of the model")
        return self._tensors(plan)

    def _tensors(self, plan: Trajectory) -> dict[str, np.ndarray]:
        names = self._reasoner.item_ids
        return {
            "video_id": byte_list([names[item] for item in plan.items]),
            "role": byte_list(plan.roles),
            "p_convert": plan.p_convert.astype(np.float32),
            "goal": byte_list([names[plan.goal]]),
            "counterfactual_goal": byte_list([names[item] for item, _ in plan.others]),
            "counterfactual_p": np.array([p for _, p in plan.others] or [0.0], dtype=np.float32),
        }


def _all_texts(tensor: np.ndarray) -> list[str]:
    """All texts, including empty ones: the history's three lists are parallel."""
    return [r.decode("utf-8", "replace") if isinstance(r, bytes) else str(r) for r in tensor]
