"""A fake reasoner: a trajectory of items that the history lacks.

Ships for users' tests as well, through `serving.fakes`. Does not know the real model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, islice

import numpy as np

from models.reasoning.inputs import ROLES
from models.signature import byte_list, text_list


def fake_reactivation(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """K of the items v0, v1, …, without the history; the last one is the goal."""
    k = int(inputs["k"][0])
    excluded = {item for name in ("history", "unavailable") for item in text_list(inputs[name])}
    open_items = (item for n in count() if (item := f"v{n}") not in excluded)
    path, others = list(islice(open_items, k)), list(islice(open_items, 2))
    middle = [ROLES[1 + step % 2] for step in range(k - 2)]
    roles = ["trigger", *middle, "converter"][-k:]
    return {
        "video_id": byte_list(path),
        "role": byte_list(roles),
        "p_convert": np.linspace(0.05, 0.3, k, dtype=np.float32),
        "goal": byte_list(path[-1:]),
        "counterfactual_goal": byte_list(others),
        "counterfactual_p": np.linspace(0.2, 0.1, len(others), dtype=np.float32),
    }
