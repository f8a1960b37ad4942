"""The served dormant-user reasoner: one call per request, numpy inside.

Knows tensors' names. Imports neither torch, pyarrow, polars nor Feast: it runs in
Triton's stub. Does not know how the bundle was fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.reasoning.inputs import MAX_K, SIGNATURE
from models.reasoning.reasoner import Plan, Reasoner
from models.signature import BadInput, Signature, byte_list, text_list


class ReactivationRuntime:
    """`models.recipe.Runtime` of a reactivation bundle."""

    signature: Signature = SIGNATURE

    def __init__(self, bundle: Path) -> None:
        self._reasoner = Reasoner.read(bundle)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Up to k steps, fewer where fewer items are left; a k above MAX_K is answered as MAX_K.

        An empty history or one of unknown videos is a cold start, not an error.
        Raises BadInput for a missing tensor, a wrong shape, history tensors of different
        lengths, k < 1, or when every item is unavailable.
        """
        self.signature.check_inputs(inputs)
        k, now_ms = int(inputs["k"][0]), int(inputs["now_ms"][0])
        if k < 1:
            raise BadInput(f"input 'k' is {k}, expected 1..{MAX_K}")
        ids, kinds = _texts(inputs["history"]), _texts(inputs["history_kind"])
        times = inputs["history_time_ms"].tolist()
        if not len(ids) == len(kinds) == len(times):
            raise BadInput(
                "inputs 'history', 'history_kind' and 'history_time_ms' differ in length"
            )
        known = self._reasoner.number
        gone = [known[v] for v in text_list(inputs["unavailable"]) if v in known]
        done = self._reasoner.history(ids, kinds, times)
        plan = self._reasoner.plan(done, min(k, MAX_K), now_ms, gone)
        if plan is None:
            raise BadInput("input 'unavailable' and the history leave no item of the model's")
        return self._tensors(plan)

    def _tensors(self, plan: Plan) -> dict[str, np.ndarray]:
        names = self._reasoner.video_ids
        return {
            "video_id": byte_list([names[item] for item in plan.items]),
            "role": byte_list(plan.roles),
            "p_convert": plan.p_convert.astype(np.float32),
            "goal": byte_list([names[plan.goal]]),
            "counterfactual_goal": byte_list([names[item] for item, _ in plan.others]),
            "counterfactual_p": np.array([p for _, p in plan.others] or [0.0], dtype=np.float32),
        }


def _texts(tensor: np.ndarray) -> list[str]:
    """All texts, the empty ones too: the history's three lists run in step."""
    return [r.decode("utf-8", "replace") if isinstance(r, bytes) else str(r) for r in tensor]
