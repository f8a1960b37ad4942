"""The contract of a recommendation system: how it is trained, judged, exported and run.

Knows recipes, evaluations and runtimes as shapes. Does not know any one system
(`models.registry` names them), nor Triton (`models.release.triton_repository`). Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.signature import Signature

if TYPE_CHECKING:
    import polars as pl  # not at run time: Triton's backend reads this module

Progress = Callable[[float, str], None]
"""Called with the share done in [0, 1] and what is being done."""


@dataclass(frozen=True)
class TrainingLog:
    """Everything a recipe may read, none of it newer than `until_ms`.

    events: EVENT_SCHEMA's columns with `kind` as a string, duplicates left out,
        ordered by (event_time_ms, event_id).
    items: one row per catalogue item: video_id, title, genres (list of str),
        author_id, duration_ms, price_cents, provenance, created_ms, available (bool).
    feedback: matured impressions (`streams.feedback.join.FEEDBACK_SCHEMA`).
    """

    events: pl.DataFrame
    items: pl.DataFrame
    feedback: pl.DataFrame
    until_ms: int


@dataclass(frozen=True)
class Evaluation:
    """One model beside its trivial baseline, on a time split.

    `difference` is the mean paired difference (model - baseline) and its 95 % interval.
    """

    metric: str
    value: float
    baseline: str
    baseline_value: float
    difference: tuple[float, float, float]  # mean, low, high
    n: int
    notes: tuple[str, ...] = ()  # what else was found, one line each

    @property
    def beats_baseline(self) -> bool:
        return self.difference[1] > 0


class Recipe(Protocol):
    """Config + data + optimiser + evaluation of one system."""

    name: str  # the served model's name

    def train(self, log: TrainingLog, bundle: Path, *, seed: int, progress: Progress) -> None:
        """Trains on `log` and writes a complete bundle into the empty folder `bundle`.

        Raises `NotEnoughData` with what is missing.
        """

    def evaluate(self, log: TrainingLog, *, seed: int, progress: Progress) -> Evaluation:
        """Trains on the log's first 80 % in time and judges on the rest."""


class NotEnoughData(ValueError):
    """The log holds too little to train on; the message says what and how much."""


class Runtime(Protocol):
    """A loaded bundle. Imports neither pyarrow, polars nor Feast: it runs in Triton's stub.

    The same class answers in Triton and in process.
    """

    signature: Signature

    def __init__(self, bundle: Path) -> None: ...

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises `models.signature.BadInput` for tensors outside the signature."""
