"""Laws of the queries' update: it scores as serving does, learns from feedback, and is gated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.alignment.surfaces.contexts import contexts_at
from models.alignment.surfaces.queries import load_queries, queries_update
from models.alignment.surfaces.slates import surface_slates
from models.alignment.surfaces.update import score_slates
from models.generation.bundle import read_query_bundle
from models.generation.data import items_of, query_clicks
from models.generation.network import WEIGHTS_FILE, TorchNetwork, read_network
from models.generation.recommend import recommend_queries
from models.generation.runtime import QueriesRuntime
from models.recipe import NotEnoughData, TrainingLog
from models.release.bundle import ReleaseError
from streams.feedback.outcomes import FEEDBACK_SCHEMA, FEEDBACK_TASKS
from streams.progress import no_progress
from tests.models.generation.conftest import GENRES

SLOTS = 4


def with_slates(log: TrainingLog, slates: int = 400) -> TrainingLog:
    """Slates on which every user now clicks the queries about war, whatever the taste before."""
    rng = np.random.default_rng(2)
    rows = []
    for n in range(slates):
        item, user = int(rng.integers(40)), int(rng.integers(60))
        texts = [f"{genre.lower()} movies" for genre in rng.permutation(GENRES)]
        for slot, query in enumerate(texts):
            likes = 0.8 if query == "war movies" else 0.1
            clicked = bool(rng.random() < likes / np.log2(slot + 2))
            rows.append(_row(f"u{user}", f"v{item}", query, slot, log.until_ms + n, clicked))
    empty = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    return replace(log, feedback=pl.DataFrame(rows, schema=empty.schema))


def _row(
    user: str, item: str, query: str, slot: int, at_ms: int, clicked: bool
) -> dict[str, object]:
    done = {task: task == "query_click" and clicked for task in FEEDBACK_TASKS}
    times = {f"{task}_at_ms": at_ms + 5 if hit else None for task, hit in done.items()}
    return (
        done
        | times
        | {
            "impression_id": f"{at_ms}:{slot}",
            "request_id": str(at_ms),
            "surface": "queries",
            "user_id": user,
            "video_id": item,
            "query": query,
            "slot": slot,
            "propensity": 0.25,
            "explored": False,
            "release": "r0001",
            "served_at_ms": at_ms,
            "shown_at_ms": at_ms + 1,
            "dwell_ms": 0,
            "order_amount_cents": 0,
            "origin": "simulated",
            "matured_at_ms": at_ms + 10,
            "revision": 1,
        }
    )


@pytest.fixture(scope="module")
def slated(click_log: TrainingLog) -> TrainingLog:
    return with_slates(click_log)


def test_a_slate_is_scored_as_serving_scores_it(slated: TrainingLog, query_bundle: Path) -> None:
    slates = surface_slates(slated, "queries", count=8)
    policy = load_queries(query_bundle, slated, slates)
    scores = score_slates(policy, np.arange(len(slates)))
    lexicon, tables = read_query_bundle(query_bundle)
    network = TorchNetwork(read_network(query_bundle))
    asked = [
        (u, i[0], int(t)) for u, i, t in zip(slates.users, slates.item, slates.time_ms, strict=True)
    ]
    compared = 0
    for row, context in enumerate(contexts_at(slated, items_of(slated), asked)):
        found = recommend_queries(network, lexicon, tables, context, k=60)
        served = {suggestion.query: suggestion.score for suggestion in found}
        for column in range(SLOTS):
            if (query := slates.query[row, column]) in served:
                assert scores[row, column] == pytest.approx(served[query], abs=1e-4)
                compared += 1
    assert compared > 15


def test_contexts_equal_those_of_the_clicks_that_training_reads(click_log: TrainingLog) -> None:
    items = items_of(click_log)
    clicks = query_clicks(click_log, items)[::50]
    asked = [(click.user_id, click.context.item_id, click.time_ms) for click in clicks]
    assert contexts_at(click_log, items, asked) == [click.context for click in clicks]


def test_an_update_learns_from_clicks_and_reports_kl_and_reward(
    slated: TrainingLog, query_bundle: Path, tmp_path: Path
) -> None:
    verdict = queries_update().challenge(
        query_bundle, slated, tmp_path, seed=0, progress=no_progress
    )
    assert verdict.promoted, verdict.reasons
    assert verdict.gauc.value > verdict.gauc.baseline_value + 0.05
    (report,) = verdict.updates
    assert report.kl > 0
    assert report.reward_after > 0.5
    assert (tmp_path / WEIGHTS_FILE).is_file()
    QueriesRuntime(tmp_path)


def test_false_clicks_are_refused(slated: TrainingLog, query_bundle: Path, tmp_path: Path) -> None:
    """The earlier slates say the opposite of the later ones."""
    split = int(np.quantile(slated.feedback["served_at_ms"].unique().to_numpy(), 0.7))
    lie = pl.col("served_at_ms") < split
    clicks = pl.when(lie).then(~pl.col("query_click")).otherwise(pl.col("query_click"))
    poisoned = replace(slated, feedback=slated.feedback.with_columns(query_click=clicks))
    verdict = queries_update().challenge(
        query_bundle, poisoned, tmp_path, seed=0, progress=no_progress
    )
    assert not verdict.promoted


def test_too_few_slates_are_named(
    click_log: TrainingLog, query_bundle: Path, tmp_path: Path
) -> None:
    few = with_slates(click_log, slates=30)
    with pytest.raises(NotEnoughData, match="30 slates of queries"):
        queries_update().challenge(query_bundle, few, tmp_path, seed=0, progress=no_progress)
    with pytest.raises(NotEnoughData, match="0 slates of queries"):
        queries_update().preview(click_log)


def test_a_bundle_without_weights_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="tidemill models train queries"):
        read_network(tmp_path)
