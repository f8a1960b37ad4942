"""The methods' results in one world: per-user utilities, single figures, paired intervals.

Knows arrays and files. Does not know methods or how a world is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from models.training.evaluation import paired_bootstrap

METHODS = (
    "uniform", "best static", "LTR only", "regression", "Gaussian exploration", "REINFORCE",
    "GRADE", "dense prior alone", "posterior-only", "prior-only", "ceiling", "oracle",
)  # fmt: skip


@dataclass
class Outcome:
    """One world, all seeds: per-user utilities by method, and single figures by name."""

    utility: dict[str, list[np.ndarray]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def user_values(self, method: str) -> np.ndarray:
        return np.concatenate(self.utility[method])

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def figure(self, name: str) -> float:
        return float(np.mean(self.figures[name])) if name in self.figures else float("nan")

    def gain(self, method: str, over: str = "best static") -> tuple[float, float, float]:
        """(mean, low, high), relative to `over`."""
        base = self.user_values(over)
        mean, low, high = paired_bootstrap(self.user_values(method) - base, rounds=500)
        scale = float(base.mean())
        return mean / scale, low / scale, high / scale

    def share(self, method: str, of: str = "ceiling") -> tuple[float, float, float]:
        """(mean, low, high) of (method - best static) / (of - best static), users resampled; NaN if
        the denominator is about 0, as in the null world."""
        base = self.user_values("best static")
        ours, whole = self.user_values(method) - base, self.user_values(of) - base
        if whole.mean() < 1e-3 * base.mean():
            return float("nan"), float("nan"), float("nan")
        rng, n = np.random.default_rng(0), len(base)
        picks = (rng.integers(0, n, n) for _ in range(500))
        draws = [ours[p].mean() / max(whole[p].mean(), 1e-9) for p in picks]
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(ours.mean() / max(whole.mean(), 1e-9)), float(low), float(high)

    def add(self, piece: Outcome) -> None:
        """Adds another seed's results."""
        for method, values in piece.utility.items():
            self.utility.setdefault(method, []).extend(values)
        for name, figures in piece.figures.items():
            self.figures.setdefault(name, []).extend(figures)

    def save(self, path: Path) -> None:
        """Writes one seed's results as one file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        with open(beside, "wb") as file:
            kept: dict[str, Any] = {
                f"utility {k}": np.concatenate(v) for k, v in self.utility.items()
            }
            kept["figures"] = np.frombuffer(orjson.dumps(self.figures), np.uint8)
            np.savez_compressed(file, **kept)
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Outcome:
        with np.load(path) as kept:
            utility = {
                name.removeprefix("utility "): [kept[name]]
                for name in kept.files
                if name.startswith("utility ")
            }
            return cls(utility, orjson.loads(kept["figures"].tobytes()))
