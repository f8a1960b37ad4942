"""A small log of sessions, and one reasoner fitted on it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.reasoning.config import ReactivationConfig
from models.reasoning.reasoner import Reasoner
from models.reasoning.train import fit_reasoner
from models.recipe import TrainingLog

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def session_log() -> TrainingLog:
    """60 items of 4 genres, 80 users; v59 is taken down; every fifth step ends in an order."""
    rng = np.random.default_rng(9)
    items = pl.DataFrame(
        {
            "video_id": [f"v{n}" for n in range(60)],
            "title": [f"Film {n}" for n in range(60)],
            "genres": [[f"g{n % 4}"] for n in range(60)],
            "available": [n != 59 for n in range(60)],
        }
    )
    rows = []
    for user in range(80):
        for session in range(6):
            for step in range(5):
                near = rng.random() < 0.8
                item = 4 * int(rng.integers(15)) + user % 4 if near else int(rng.integers(60))
                at = START_MS + (session * 200 + user) * HOUR_MS + step * 90_000
                rows.append((f"u{user}", "play", f"v{item}", at))
                if step == 4:
                    rows.append((f"u{user}", "order", f"v{item}", at + 1_000))
    schema = ["user_id", "kind", "video_id", "event_time_ms"]
    events = pl.DataFrame(rows, schema=schema, orient="row").sort("event_time_ms")
    return TrainingLog(events, items, pl.DataFrame(), int(events["event_time_ms"].max()) + 1)


@pytest.fixture(scope="session")
def reasoner(session_log: TrainingLog) -> Reasoner:
    return fit_reasoner(session_log, ReactivationConfig(), lambda *_: None)


@pytest.fixture(scope="session")
def reasoner_bundle(reasoner: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reactivation")
    reasoner.write(folder)
    return folder
