"""The demo's experiment: its figures for the page, written while the crowd runs.

Knows the tally and one file, which the gateway shows. The gateway gets figures, never the truth
that the ceiling was computed from.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import orjson

from deploy.settings import Settings
from deploy.simulation.tally import Comparison, Rate, Tally
from models.experiments.definition import POPULARITY, Arm, Experiment
from models.experiments.store import ExperimentStore
from streams.contract.impression import POPULARITY_ARM, RANKER_ARM

_EVERY_S = 2.0
NAME = "popularity"  # of the experiment


def start(store: ExperimentStore, settings: Settings, share: float) -> None:
    """Starts the demo's experiment, as `tidemill experiments start` would; none for a share of 0.

    The live ranker is the control, and the page shows both arms' feedback beside the ceiling.
    """
    if share > 0.0:
        both = Arm(RANKER_ARM, 1.0 - share), Arm(POPULARITY_ARM, share, POPULARITY)
        store.start(Experiment(NAME, both, started_ms=settings.clock.origin_ms))


def compare(tally: Tally) -> Comparison:
    """Popularity against the ranker, over the slates served since a ranker is live."""
    return tally.compare_arms(POPULARITY_ARM, RANKER_ARM)


def figures(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON: shares per item shown with 95 % intervals; NaN becomes null."""
    return {
        "arms": [{"arm": arm, **_rate(clicks)} for arm, clicks in found.clicks.items()],
        "difference": _rate(found.difference),
        "ceiling": found.ceiling,
    }


def publish(tally: Tally, path: Path, over: threading.Event) -> None:
    """Writes the figures to `path` every two seconds until `over`."""
    while not over.wait(_EVERY_S):
        write_figures(compare(tally), path)


def write_figures(found: Comparison, path: Path) -> None:
    """Replaces the file in one step: a reader sees the old figures or the new ones."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(orjson.dumps(figures(found)))
    os.replace(part, path)


def _rate(found: Rate) -> dict[str, float | int]:
    return {"clicks": found.value, "low": found.low, "high": found.high, "shown": found.n}
