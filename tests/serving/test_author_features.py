"""Author features: each author is read once, and the ranker answers without them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.memory_store import MemoryFeatureStore
from features.store import EntityName, FeatureFrame, Status, StoreDown
from models.ranking.ple.features import ITEM_FEATURES
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query
from serving.stages.hydrators import AuthorFeatures
from serving.state.catalogue import LiveCatalogue
from serving.state.feature_rows import KEEP_MS, FeatureRows
from streams.catalogue import Catalogue
from streams.contract.declaration import Contract, declared
from streams.contract.events import CatalogueItem, ItemAdded
from streams.contract.signals import Signal, Signals

Make = Callable[..., Any]
NOW = 1_700_000_000_000


class RecordingStore:
    """A store that records its reads and can be down for one entity."""

    def __init__(self, down: EntityName | None = None) -> None:
        self.inner, self.down = MemoryFeatureStore(), down
        self.reads: list[tuple[EntityName, list[str]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        self.reads.append((entity, list(ids)))
        if entity == self.down:
            raise StoreDown("the store is down")
        return self.inner.read(entity, ids, now_ms)


def catalogue() -> LiveCatalogue:
    fold = Catalogue()
    for n, author in enumerate(["b", "a", None, "b"]):
        item = CatalogueItem(video_id=f"v{n}", title="", author_id=author)
        fold.apply(ItemAdded(event_id=f"{n}", event_time_ms=1_700_000_000_000, item=item))
    return LiveCatalogue(fold)


@pytest.mark.parametrize(
    ("items", "reads", "authors"),
    [
        (["v0", "v1", "v2", "v3", "gone"], [("author", ["a", "b"])], ["b", "a", "", "b", ""]),
        (["v2", "gone"], [], ["", ""]),
    ],
)
def test_each_author_is_read_once_and_every_candidate_gets_its_row(
    items: list[str], reads: list[Any], authors: list[str]
) -> None:
    store = RecordingStore()
    about, query = catalogue(), Query("r", "feed", "u", 3, NOW, 7)
    about.index()
    rows = FeatureRows(store, "author", about.table.authors)  # type: ignore[arg-type]
    hydrator = AuthorFeatures(rows, about)
    pool = Pool.of([Candidate(item, "given") for item in items])
    found = hydrator.hydrate(query, pool)
    assert store.reads == reads
    kept = hydrator.from_memory(query, pool)
    assert kept is not None, "a row that was just read is kept for the next request"
    assert hydrator.from_memory(replace(query, now_ms=NOW + KEEP_MS), pool) is None or not reads
    assert found.author_features is not None
    assert list(found.author_features.ids) == authors
    assert (found.author_features.status == Status.ABSENT).all()


def test_authors_are_read_under_declarations_that_are_younger_than_the_stage() -> None:
    rating = Signal("rating", 64, "engagement", ("value",))
    pool = Pool.of([Candidate("v0", "given"), Candidate("v2", "given")])
    about = catalogue()
    about.index()
    rows = FeatureRows(RecordingStore(), "author", about.table.authors)  # type: ignore[arg-type]
    with declared(Contract(signals=Signals((rating,)))):
        found = AuthorFeatures(rows, about).hydrate(Query("r", "feed", "u", 3, NOW, 7), pool)
    assert found.author_features is not None
    assert found.author_features.columns["rating_count_all"].tolist() == [0, 0]


def test_a_feed_reads_its_authors_in_one_call_and_counts_the_users_engagements_with_them(
    make_harness: Make,
) -> None:
    store = RecordingStore()
    harness = make_harness(store=store)
    for item in ("v3", "v12"):  # both of author a3
        harness.send_event("like", item, author_id="a3")
    harness.wait_until(lambda: len(harness.engaged()) == 2)
    harness.wait_until(lambda: store.inner.read("author", ["a3"], 2**42).status[0] != Status.ABSENT)
    time.sleep(KEEP_MS / 1e3)  # rows that were read before are served no longer
    store.reads.clear()
    slate: list[Any] = []
    keep = harness.gateway.served.record
    harness.gateway.served.record = lambda made: (slate.append(made), keep(made))
    reply = harness.feed(candidates=["v21", "v4"])
    harness.feed()
    reads = [ids for entity, ids in store.reads if entity == "author"]
    assert reads[0] == ["a3", "a4"]
    assert len(reads) == 2, "one read per request, of what is not kept"
    assert len(set(reads[1])) == len(reads[1]) > 3
    assert reply["stale"] is False
    item_x = dict(
        zip([c.item_id for c in slate[0].items], slate[0].ranker_inputs.item_x, strict=True)
    )
    crossed = ITEM_FEATURES.index("log_author_engaged_by_user")
    known = ITEM_FEATURES.index("author_known")
    assert np.expm1(item_x["v21"][crossed]) == pytest.approx(2)
    assert (item_x["v4"][crossed], item_x["v4"][known], item_x["v21"][known]) == (0, 0, 1)


def test_the_ranker_answers_without_author_features_and_the_reply_reports_it(
    make_harness: Make,
) -> None:
    harness = make_harness(store=RecordingStore(down="author"), streams=False)
    reply = harness.feed()
    assert [fallback["stage"] for fallback in reply["fallbacks"]] == ["author_features"]
    assert reply["stale"] is True
    assert reply["weights"], "the ranker answered"
    assert len(reply["items"]) == 8
