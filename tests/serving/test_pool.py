"""Laws of the columnar pool: it says the same as objects would, and makes objects only on demand."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.memory_store import MemoryFeatureStore
from models.ranking.ple.inputs import assemble_request
from serving.pipeline import pool as pool_module
from serving.pipeline.items import UNKNOWN, CatalogueRows, RowNumbers, best_places
from serving.pipeline.pool import CandidateRows, Pool, pool_of
from serving.pipeline.query import Candidate, Query, Scored
from serving.pipeline.stage import removed_by
from serving.stages.filters import Duplicate, Unavailable
from serving.stages.selectors import PlackettLuce
from serving.state.activity import Activity
from serving.state.feature_rows import KEEP_MS, FeatureRows
from serving.surfaces import StageDependencies
from serving.surfaces.feed import FeedRequest
from streams.contract.clock import DAY_MS, MINUTE_MS
from streams.contract.events import CatalogueItem, ItemChanged, ItemTakenDown

Make = Callable[..., Any]
NOW = 1_700_000_000_000 + 20 * DAY_MS


def rows_of(deps: StageDependencies, ids: list[str]) -> np.ndarray:
    return deps.catalogue.index().numbers.rows_of(ids)


def query(seed: int = 0, k: int = 6) -> Query:
    return Query("r", "feed", "u", k, NOW, seed)


def both_forms(deps: StageDependencies, ids: list[str]) -> tuple[Pool, Pool]:
    """The same scored candidates as rows and as objects."""
    score = np.random.default_rng(0).normal(size=len(ids)).astype(np.float32)
    scored = Scored(score, np.zeros((len(ids), 0), np.float32))
    rows, half = rows_of(deps, ids), len(ids) // 2
    found = [
        CandidateRows(deps.catalogue.table, rows[:half], "fresh"),
        CandidateRows(deps.catalogue.table, rows[half:], "popular"),
    ]
    columns = replace(
        pool_of(found), scored=scored, about=CatalogueRows(deps.catalogue.table, rows)
    )
    objects = [
        Candidate(item_id, "fresh" if at < half else "popular", item=deps.catalogue.get(item_id))
        for at, item_id in enumerate(ids)
    ]
    return columns, Pool.of(objects, scored)


def test_the_selector_draws_the_same_slate_from_rows_as_from_objects(
    stage_deps: StageDependencies,
) -> None:
    columns, objects = both_forms(stage_deps, [f"v{n}" for n in range(40)])
    rule = PlackettLuce(temperature=0.6, explore=0.3)
    for seed in range(30):
        of_rows, of_objects = (rule.select(query(seed), each) for each in (columns, objects))
        assert [c.item_id for c in of_rows] == [c.item_id for c in of_objects]
        assert [c.propensity for c in of_rows] == pytest.approx([c.propensity for c in of_objects])
        assert [c.item for c in of_rows] == [c.item for c in of_objects]


def test_the_ranker_reads_the_same_tensors_from_columns_as_from_items(
    stage_deps: StageDependencies,
) -> None:
    store, ids = MemoryFeatureStore(), [f"v{n}" for n in (5, 3, 59, 3)]
    user = store.read("user", ["u"], NOW)
    items = [item for item in stage_deps.catalogue.items(ids) if item is not None]
    videos = store.read("video", ids, NOW)
    authors = store.read("author", [item.author_id or "" for item in items], NOW)
    rows = CatalogueRows(stage_deps.catalogue.table, rows_of(stage_deps, ids))
    one_by_one = assemble_request(user, videos, authors, items, {}, NOW)
    by_column = assemble_request(user, videos, authors, rows, {}, NOW)  # type: ignore[arg-type]
    for name, tensor in one_by_one.items():
        assert np.array_equal(tensor, by_column[name]), name
        assert tensor.dtype == by_column[name].dtype


def test_rows_stay_while_items_change_and_facts_follow_the_catalogue(
    stage_deps: StageDependencies,
) -> None:
    live, ids = stage_deps.catalogue, ["v7", "v8"]
    rows = rows_of(stage_deps, ids)
    assert live.table.columns(rows).duration_ms.tolist() == [60_007, 60_008]
    item = CatalogueItem(video_id="v7", title="changed", duration_ms=5, genres=("Drama",))
    live.apply(ItemChanged(event_id="c", event_time_ms=NOW, item=item))
    live.apply(ItemTakenDown(event_id="t", event_time_ms=NOW, video_id="v8"))
    assert rows_of(stage_deps, ids).tolist() == rows.tolist()
    assert live.table.columns(rows).duration_ms.tolist() == [5, 60_008]
    pool = pool_of([CandidateRows(live.table, rows, "popular")])
    removed = removed_by(Unavailable(live), query(), pool)
    assert removed.mask.tolist() == [False, True]
    assert removed.reason(1) == "taken down"


def test_objects_and_rows_of_several_sources_are_one_pool(stage_deps: StageDependencies) -> None:
    table = stage_deps.catalogue.table
    rows = rows_of(stage_deps, ["v1", "v2"])
    own = [Candidate("v2", "own", score=3.0), Candidate("new", "own"), Candidate("v9", "own")]
    pool = pool_of([CandidateRows(table, rows, "popular"), own])
    assert pool.item_ids == ["v1", "v2", "v2", "new", "v9"]
    assert pool.rows.tolist() == [*rows, rows[1], UNKNOWN, *rows_of(stage_deps, ["v9"])]
    removed = removed_by(Duplicate(), query(), pool)
    assert np.flatnonzero(removed.mask).tolist() == [2]
    assert removed.reason(2) == "already offered by popular"
    assert [c.source for c in pool.take([2, 0]).candidates] == ["own", "popular"]
    gone = removed_by(Unavailable(stage_deps.catalogue), query(), pool)
    assert gone.mask.tolist() == [False, False, False, True, False]
    assert gone.reason(3) == "not in the catalogue"


def test_a_feed_makes_objects_only_for_the_items_of_its_slate(
    make_harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, made = make_harness(streams=False), []

    class Counted(Candidate):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setattr(pool_module, "Candidate", Counted)
    slate = harness.gateway.surfaces.answer(FeedRequest(user_id="u1", k=5))
    assert len(slate.items) == 5
    assert slate.candidate_count >= 60
    assert len(made) <= 2 * 5


def test_neighbours_as_rows_are_those_by_id_and_follow_new_pairs() -> None:
    activity, numbers = Activity(), RowNumbers(["a", "b", "c"])
    for user, items in (("u", "abc"), ("w", "ab")):
        for item in items:
            activity._pair(user, item)
    rows, weights = activity.neighbour_rows("a", numbers)
    by_id = activity.neighbours("a")
    assert numbers.ids_of(rows) == [item for item, _ in by_id] == ["b", "c"]
    assert weights.tolist() == [weight for _, weight in by_id]
    for item in "ac":
        activity._pair("x", item)
        activity._pair("y", item)
        activity._pair("z", item)
    rows, weights = activity.neighbour_rows("a", numbers)
    assert numbers.ids_of(rows) == ["c", "b"]
    assert weights.tolist() == [weight for _, weight in activity.neighbours("a")]
    numbers.add(["d"])
    activity._pair("x", "d")
    assert "d" in numbers.ids_of(activity.neighbour_rows("a", numbers)[0])


def test_kept_rows_are_not_served_beyond_a_second_or_the_end_of_a_tile() -> None:
    store, numbers = MemoryFeatureStore(), RowNumbers(["a", "b"])
    features, both = FeatureRows(store, "video", numbers), np.array([1, 0])
    assert features.kept(both, NOW) is None
    assert list(features.read(both, NOW).ids) == ["b", "a"]
    with features._refreshing:  # so that no background refresh starts
        for later_ms, served in ((KEEP_MS - 1, True), (KEEP_MS, False), (-KEEP_MS, False)):
            assert (features.kept(both, NOW + later_ms) is not None) == served
    end_ms = (NOW // (5 * MINUTE_MS) + 1) * 5 * MINUTE_MS
    features.read(both, end_ms - 1)
    assert features.kept(both, end_ms - 1) is not None
    assert features.kept(both, end_ms) is None
    numbers.add(["c"])
    assert features.kept(np.array([2]), end_ms - 1) is None


def test_rows_in_use_are_read_again_in_the_background_before_they_are_too_old() -> None:
    class Recording(MemoryFeatureStore):
        def read(self, *arguments: Any) -> Any:
            found = super().read(*arguments)
            read.put(list(arguments[1]))
            return found

    read: queue.Queue[list[str]] = queue.Queue()
    features = FeatureRows(Recording(), "video", RowNumbers(["a", "b", "c"]))
    features.read(np.array([0, 1, 2]), NOW)
    assert read.get(timeout=30) == ["a", "b", "c"]
    used, half_ms = np.array([0, 2]), NOW + KEEP_MS // 2
    assert features.kept(used, half_ms) is not None
    assert read.get(timeout=30) == ["a", "c"], "b is not in use"
    with features._refreshing:  # over
        assert features.kept(used, half_ms + KEEP_MS - 1) is not None
        assert features.kept(np.array([1]), half_ms + KEEP_MS - 1) is None


@pytest.mark.parametrize("count", [0, 1, 7, 40, 100])
def test_the_best_places_are_the_first_of_a_stable_sort(count: int) -> None:
    for seed in range(20):
        scores = np.random.default_rng(seed).integers(0, 6, 40).astype(np.float32)
        wanted = np.argsort(-scores, kind="stable")[:count]
        assert best_places(scores, count).tolist() == wanted.tolist()
