"""Laws of what the ranker is told of authors: each is read once, and none is missed badly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from features.memory_store import MemoryFeatureStore
from features.store import EntityName, FeatureFrame, Status, StoreDown
from models.ranking.ple.inputs import VIDEO_FEATURES
from serving.pipeline.query import Candidate, Query
from serving.stages.hydrators import AuthorFeatures
from serving.state.catalogue import LiveCatalogue
from streams.catalogue import Catalogue
from streams.contract.events import CatalogueItem, ItemAdded

Make = Callable[..., Any]
NOW = 1_700_000_000_000


class Counting:
    """A store that remembers what it was asked, and may be down for one entity."""

    def __init__(self, down: EntityName | None = None) -> None:
        self.inner, self.down = MemoryFeatureStore(), down
        self.asked: list[tuple[EntityName, list[str]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        self.asked.append((entity, list(ids)))
        if entity == self.down:
            raise StoreDown("it is down")
        return self.inner.read(entity, ids, now_ms)


def catalogue() -> LiveCatalogue:
    fold = Catalogue()
    for n, author in enumerate(["b", "a", None, "b"]):
        item = CatalogueItem(video_id=f"v{n}", title="", author_id=author)
        fold.apply(ItemAdded(event_id=f"{n}", event_time_ms=1, item=item))
    return LiveCatalogue(fold)


@pytest.mark.parametrize(
    ("videos", "reads", "authors"),
    [
        (["v0", "v1", "v2", "v3", "gone"], [("author", ["a", "b"])], ["b", "a", "", "b", ""]),
        (["v2", "gone"], [], ["", ""]),
    ],
)
def test_each_author_is_read_once_and_every_candidate_gets_its_row(
    videos: list[str], reads: list[Any], authors: list[str]
) -> None:
    store = Counting()
    candidates = tuple(Candidate(video, "given") for video in videos)
    found = AuthorFeatures(store, catalogue()).hydrate(  # type: ignore[arg-type]
        Query("r", "feed", "u", 3, NOW, 7), candidates
    )
    assert store.asked == reads
    assert found.authors is not None
    assert list(found.authors.ids) == authors
    assert (found.authors.status == Status.ABSENT).all()


def test_a_feed_reads_its_authors_in_one_call_and_counts_what_the_user_did_with_them(
    make_mill: Make,
) -> None:
    store = Counting()
    mill = make_mill(store=store)
    for video in ("v3", "v12"):  # both of author a3
        mill.act("like", video, author_id="a3")
    mill.until(lambda: len(mill.engaged()) == 2)
    mill.until(lambda: store.inner.read("author", ["a3"], 2**42).status[0] != Status.ABSENT)
    store.asked.clear()
    slate: list[Any] = []
    keep = mill.gateway.served.keep
    mill.gateway.served.keep = lambda made: (slate.append(made), keep(made))
    reply = mill.feed(candidates=["v21", "v4"])
    mill.feed()
    reads = [ids for entity, ids in store.asked if entity == "author"]
    assert reads[0] == ["a3", "a4"]
    assert len(reads) == 2, "one a request"
    assert len(set(reads[1])) == len(reads[1]) > 3
    assert reply["stale"] is False
    video_x = dict(zip([c.video_id for c in slate[0].items], slate[0].seen["video_x"], strict=True))
    crossed = VIDEO_FEATURES.index("log_author_engaged_by_user")
    known = VIDEO_FEATURES.index("author_known")
    assert np.expm1(video_x["v21"][crossed]) == pytest.approx(2)
    assert (video_x["v4"][crossed], video_x["v4"][known], video_x["v21"][known]) == (0, 0, 1)


def test_authors_that_cannot_be_read_leave_an_answer_by_the_ranker_that_says_so(
    make_mill: Make,
) -> None:
    mill = make_mill(store=Counting(down="author"), streams=False)
    reply = mill.feed()
    assert [fallback["stage"] for fallback in reply["fallbacks"]] == ["author_features"]
    assert reply["stale"] is True
    assert reply["weights"], "the ranker answered"
    assert len(reply["items"]) == 8
