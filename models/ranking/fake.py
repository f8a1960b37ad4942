"""A fake ranker: plausible, repeatable answers, in favour of authors in the history.

Ships for users' tests as well, through `serving.fakes`. Does not know the real model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.ranking.ple.inputs import RANKER_TASKS, SIGNATURE
from models.ranking.tasks import SHIPPED_TASKS


def fake_ranker(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """P(action) falls from play to order and depends on the item's hash, counts and author."""
    SIGNATURE.check_inputs(inputs)
    appeal = (inputs["video_hash"] % 97).astype(np.float64) / 97 - 0.5
    activity = inputs["video_x"].sum(axis=1) / 50
    taste = np.isin(inputs["author_hash"], inputs["history"]).astype(float)
    base = np.array([-0.5, -1.5, -2.0, -3.0, -3.5])
    logits = base[None, :] + (appeal + activity + taste)[:, None]
    p = (1 / (1 + np.exp(-logits))).astype(np.float32)
    mix = np.array([1.0, 1.0, 1.5, 0.5, 1.0]) + (inputs["user_hash"][0] % 7) / 10
    weights = (mix / mix.sum()).astype(np.float32)
    assert p.shape[1] == len(RANKER_TASKS)
    rates = np.array([0.4, 0.2, 0.1, 0.05, 0.02], np.float32)
    score = ((p / rates) @ weights).astype(np.float32)
    fused = {"weights": weights, "alpha": 40 * weights, "rates": rates}
    return {"p": p, **fused, "score": score, "tasks": SHIPPED_TASKS.numbers}
