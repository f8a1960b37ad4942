"""A fake model client for tests, shipped for users' tests as well.

Knows the three served models' tensors and returns plausible, repeatable outputs: the
ranker favours authors in the history, queries are genre words, a trajectory takes items that
the history lacks. As the real models do, they return as many as asked. Does not know the real
models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count, islice

import numpy as np

from models.client import ModelUnavailable
from models.ranking.ple.inputs import RANKER_TASKS
from models.ranking.ple.inputs import SIGNATURE as RANKER_SIGNATURE
from models.reasoning.inputs import ROLES

FakeModel = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class FakeModelClient:
    """Implements `models.client.ModelClient` with one function per model.

    `down` makes every call fail.
    """

    def __init__(
        self, answers: Mapping[str, FakeModel] | None = None, versions: tuple[int, ...] = (1,)
    ) -> None:
        self.answers: dict[str, FakeModel] = dict(ANSWERS if answers is None else answers)
        self.loaded = dict.fromkeys(self.answers, versions)
        self.down = False
        self.calls: list[tuple[str, int | None]] = []
        self.headers: list[dict[str, str]] = []
        self.reloaded: list[str] = []

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        del timeout_s
        self.calls.append((model, version))
        self.headers.append(dict(headers or {}))
        if self.down:
            raise ModelUnavailable("the fake is down")
        if version is not None and version not in self.versions(model):
            raise ModelUnavailable(f"{model} version {version} is not loaded")
        if model not in self.answers:
            raise ModelUnavailable(f"{model} is not loaded")
        return self.answers[model](inputs)

    def versions(self, model: str) -> tuple[int, ...]:
        return () if self.down else self.loaded.get(model, ())

    def load(self, model: str) -> None:
        if model not in self.answers:
            raise ModelUnavailable(f"{model} is not in the repository")
        self.reloaded.append(model)

    def reload(self, model: str) -> None:
        self.load(model)

    def healthy(self) -> bool:
        return not self.down


def fake_ranker(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """P(action) falls from play to order and depends on the item's hash, counts and author."""
    RANKER_SIGNATURE.check_inputs(inputs)
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
    return {"p": p, "weights": weights, "alpha": 40 * weights, "rates": rates, "score": score}


def fake_queries(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """K queries: those clicked under the item, words of its genres and title, then more words."""
    k, blocked = int(inputs["k"][0]), {_text(each).lower() for each in inputs["blocked"]}
    clicked = {_text(each).lower() for each in inputs["video_query"]}
    words = [*inputs["video_query"], *inputs["genres"], *inputs["title"]]
    texts = [_text(word).lower() for word in words] + [f"more films {n}" for n in range(2 * k)]
    chosen = [text for text in dict.fromkeys(texts) if text and text not in blocked][:k]
    return {
        "query": _bytes(chosen),
        "score": -np.arange(1, len(chosen) + 1, dtype=np.float32),
        "anchor": np.array([int(text in clicked) for text in chosen], np.int64),
    }


def fake_reactivation(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """K of the items v0, v1, …, without the history; the last one is the goal."""
    k = int(inputs["k"][0])
    excluded = {_text(item) for name in ("history", "unavailable") for item in inputs[name]}
    open_items = (item for n in count() if (item := f"v{n}") not in excluded)
    path, others = list(islice(open_items, k)), list(islice(open_items, 2))
    middle = [ROLES[1 + step % 2] for step in range(k - 2)]
    roles = ["trigger", *middle, "converter"][-k:]
    return {
        "video_id": _bytes(path),
        "role": _bytes(roles),
        "p_convert": np.linspace(0.05, 0.3, k, dtype=np.float32),
        "goal": _bytes(path[-1:]),
        "counterfactual_goal": _bytes(others),
        "counterfactual_p": np.linspace(0.2, 0.1, len(others), dtype=np.float32),
    }


ANSWERS: dict[str, FakeModel] = {
    "ranker": fake_ranker,
    "queries": fake_queries,
    "reactivation": fake_reactivation,
}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)
