"""A small log of query clicks, and one model fitted on it, for the laws of the recommender."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.generation.config import QueriesConfig
from models.generation.recipe import write_bundle
from models.generation.train import TrainedQueries, train_queries
from models.recipe import TrainingLog

GENRES = ("Comedy", "Horror", "War", "Drama")
SMALL = QueriesConfig(steps=60, batch=64, min_clicks=50, threads=1)
START_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def click_log() -> TrainingLog:
    """40 items, 60 users: a user's taste decides which genre's words are clicked."""
    rng = np.random.default_rng(5)
    items = pl.DataFrame(
        {
            "video_id": [f"v{n}" for n in range(40)],
            "title": [f"Film number{n} (1995)" for n in range(40)],
            "genres": [[GENRES[n % 4], GENRES[(n + 1) % 4]] for n in range(40)],
            "available": [True] * 40,
        }
    )
    rows = []
    for at in range(3000):
        user, item = int(rng.integers(60)), int(rng.integers(40))
        genres = [GENRES[item % 4], GENRES[(item + 1) % 4]]
        liked = next((g for g in genres if g == GENRES[user % 4]), genres[0])
        query = f"{liked.lower()} movies" if rng.random() < 0.7 else f"film number{item}"
        kind = "query_click" if at % 3 else "play"
        rows.append((f"u{user}", kind, f"v{item}", query if kind != "play" else None))
    rows.append(("u0", "query_click", "v0", "my private words"))
    events = pl.DataFrame(rows, schema=["user_id", "kind", "video_id", "query"], orient="row")
    times = START_MS + 60_000 * np.arange(len(rows))
    return TrainingLog(
        events.with_columns(event_time_ms=pl.Series(times)),
        items,
        pl.DataFrame(),
        int(times[-1]) + 1,
    )


@pytest.fixture(scope="session")
def trained(click_log: TrainingLog) -> TrainedQueries:
    return train_queries(click_log, SMALL, seed=0, progress=lambda *_: None)


@pytest.fixture(scope="session")
def query_bundle(trained: TrainedQueries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("queries")
    write_bundle(trained, folder)
    return folder
