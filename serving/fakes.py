"""A model client without models: for tests of code that calls one, users' own included.

Knows the three served models' tensors and gives plausible, repeatable answers: the
ranker likes shared genres, queries are genre words, a trajectory walks the history.
It says nothing about how good the real models are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from models.client import ModelUnavailable
from models.ranking.ple.inputs import SIGNATURE as RANKER_SIGNATURE
from models.ranking.ple.inputs import TASKS
from models.reasoning.inputs import ROLES

Answer = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class FakeModelClient:
    """Implements `models.client.ModelClient` over functions. `down` makes every call fail."""

    def __init__(
        self, answers: Mapping[str, Answer] | None = None, versions: tuple[int, ...] = (1,)
    ) -> None:
        self.answers: dict[str, Answer] = dict(ANSWERS if answers is None else answers)
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

    def healthy(self) -> bool:
        return not self.down


def fake_ranker(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """P falls from play to order; a candidate gains by what its hash and counts say."""
    RANKER_SIGNATURE.check_inputs(inputs)
    videos = inputs["video_hash"]
    liking = (videos % 97).astype(np.float64) / 97 - 0.5
    activity = inputs["video_x"].sum(axis=1) / 50
    taste = np.isin(inputs["author_hash"], inputs["history"]).astype(float)
    base = np.array([-0.5, -1.5, -2.0, -3.0, -3.5])
    logits = base[None, :] + (liking + activity + taste)[:, None]
    p = (1 / (1 + np.exp(-logits))).astype(np.float32)
    mix = np.array([1.0, 1.0, 1.5, 0.5, 1.0]) + (inputs["user_hash"][0] % 7) / 10
    weights = (mix / mix.sum()).astype(np.float32)
    assert p.shape[1] == len(TASKS)
    rates = np.array([0.4, 0.2, 0.1, 0.05, 0.02], np.float32)
    score = ((p / rates) @ weights).astype(np.float32)
    return {"p": p, "weights": weights, "alpha": 40 * weights, "rates": rates, "score": score}


def fake_queries(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The video's genre words, clicked queries first."""
    words = [*inputs["video_query"], *inputs["genres"], *inputs["title"]]
    chosen = list(dict.fromkeys(_text(word).lower() for word in words if _text(word)))
    chosen = chosen[: int(inputs["k"][0])]
    return {
        "query": _bytes(chosen),
        "score": -np.arange(1, len(chosen) + 1, dtype=np.float32),
        "anchor": np.array([int(word in inputs["video_query"]) for word in chosen], np.int64),
    }


def fake_reactivation(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Walks the history backwards, with roles in order."""
    history = [_text(video) for video in inputs["history"] if _text(video)]
    path = list(dict.fromkeys(history))[: int(inputs["k"][0])]
    roles = [ROLES[min(step, 3)] for step in range(len(path))]
    return {
        "video_id": _bytes(path),
        "role": _bytes(roles),
        "p_convert": np.linspace(0.05, 0.3, len(path), dtype=np.float32),
        "goal": _bytes(path[-1:] or [""]),
    }


ANSWERS: dict[str, Answer] = {
    "ranker": fake_ranker,
    "queries": fake_queries,
    "reactivation": fake_reactivation,
}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)
