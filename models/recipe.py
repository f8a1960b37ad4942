"""The contract of a model: how it is trained, evaluated, exported and served.

Knows recipes, evaluations and runtimes as protocols. Does not know any one model
(`models.registry` names them) or Triton (`models.release.triton_repository`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.signature import Signature
from streams.progress import ProgressCallback

if TYPE_CHECKING:
    import polars as pl  # for types only: Triton's backend imports this module

    from features.store import FeatureFrame
    from streams.contract.events import CatalogueItem


@dataclass(frozen=True)
class TrainingLog:
    """Everything a recipe may read, none of it newer than `until_ms`.

    events: EVENT_SCHEMA's columns with `kind` as a string, without duplicates, ordered by
        (event_time_ms, event_id).
    items: one row per catalogue item: video_id, title, genres (list of str), author_id,
        duration_ms, price_cents, provenance, created_ms, available (bool).
    feedback: matured impressions (`streams.feedback.outcomes.FEEDBACK_SCHEMA`).
    blocked_queries: queries that are taken down; no model may learn to write them.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    feedback: pl.DataFrame
    until_ms: int
    blocked_queries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """One model and its trivial baseline, on a time split.

    `difference`: the mean paired difference (model - baseline) and its 95 % interval.
    """

    metric: str
    value: float
    baseline: str
    baseline_value: float
    difference: tuple[float, float, float]  # mean, low, high
    n: int
    notes: tuple[str, ...] = ()  # further findings, one line each

    @property
    def beats_baseline(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.difference[1] > 0


class Recipe(Protocol):
    """Config, data, optimiser and evaluation of one model."""

    name: str  # the served model's name

    def train(
        self, log: TrainingLog, bundle: Path, *, seed: int, progress: ProgressCallback
    ) -> None:
        """Trains on `log` and writes a complete bundle into the empty folder `bundle`.

        Raises `NotEnoughData` with what is missing.
        """

    def evaluate(self, log: TrainingLog, *, seed: int, progress: ProgressCallback) -> Evaluation:
        """Trains on the first 80 % of the log's time and evaluates on the rest.

        Raises `NotEnoughData` with what is missing.
        """


@dataclass(frozen=True)
class ServingExample:
    """What serving can read for a request about a few items, from which any model's canary is made.

    user: one row. item_features, author_features: a row for each of `items`.
    """

    user: FeatureFrame
    item_features: FeatureFrame
    author_features: FeatureFrame
    items: Sequence[CatalogueItem]
    now_ms: int


class NotEnoughData(ValueError):
    """The log holds too little data; the message names what is missing and how much."""


class Runtime(Protocol):
    """A loaded bundle; the same class serves in Triton and in process.

    Its module imports neither pyarrow, polars nor Feast, since it runs in Triton's stub.
    """

    signature: Signature

    def __init__(self, bundle: Path) -> None: ...

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named tensors in, named tensors out, as `signature` states.

        Raises `models.signature.BadInput` for tensors outside the signature.
        """
