"""Declared engagements and conversions in serving state: by their role, not by a list of kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa
import pytest

from features.memory_store import MemoryFeatureStore
from features.store import FeatureFrame
from models.ranking.ple.features import HISTORY_KINDS, history_columns
from models.reasoning.data import engagements
from models.reasoning.inputs import assemble_request
from models.recipe import TrainingLog
from models.signature import text_list
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query
from serving.pipeline.stage import removed_by
from serving.stages.filters import AlreadyEngaged
from serving.stages.sources import recent_engagements
from serving.state.activity import Activity
from serving.state.popularity import popularity_of
from serving.surfaces import StageDependencies
from streams.bus.contract import Stamp
from streams.contract.declaration import Contract, declared
from streams.contract.schema import event_schema
from streams.contract.signals import ENGAGED, SHIPPED, Signal, Signals

SIGNALS = Signals(
    (
        Signal("view", 64, "engagement", (), 3_600_000),
        Signal("purchase", 65, "conversion", ("amount",), 3_600_000),
        Signal("goods_returned", 66, "dislike", (), 3_600_000),
        Signal("banner", 67, "exposure"),
    )
)
USER = "u"


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    with declared(Contract(signals=SIGNALS)):
        yield


def _events(*did: tuple[str, str], user_id: str = USER) -> pa.Table:
    """(kind, item), in order of time."""
    rows = [
        dict.fromkeys(event_schema().names)
        | {
            "event_id": f"{user_id}-{at}", "user_id": user_id, "kind": SIGNALS.number[kind],
            "event_time_ms": 1_000 + at, "ingested_at_ms": 1_000 + at, "video_id": item_id,
            "surface": "feed", "origin": "live", "late": False, "duplicate": False,
            "source_partition": 0, "source_offset": at,
        }
        for at, (kind, item_id) in enumerate(did)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=event_schema())


EVERY = (("view", "v1"), ("purchase", "v2"), ("goods_returned", "v3"), ("banner", "v4"))


def _user(*did: tuple[str, str]) -> FeatureFrame:
    store = MemoryFeatureStore()
    store.fold("user", _events(*did), Stamp("t", 0, 0))
    return store.read("user", [USER], 10_000)


def _query(user: FeatureFrame) -> Query:
    return Query(request_id="r", surface="feed", user_id=USER, k=3, now_ms=1, seed=7, user=user)


def test_shipped_engagements_are_those_of_their_role() -> None:
    roles = [s.name for s in SHIPPED if s.role in ("engagement", "conversion")]
    assert [name for name in roles if name != "query_click"] == [*ENGAGED]


def test_activity_counts_declared_engagements_and_conversions_and_nothing_else() -> None:
    activity = Activity()
    activity.fold(_events(*EVERY))
    assert activity.engaged(USER) == {"v1": 1_000, "v2": 1_001}
    assert [item_id for item_id, _ in activity.neighbours("v1")] == ["v2"]
    assert activity.latest(1)[0].events == len(EVERY)


def test_a_removed_declaration_counts_no_longer() -> None:
    with declared(Contract(signals=Signals((), SIGNALS.declared))):
        activity = Activity()
        activity.fold(_events(*EVERY))
    assert activity.engaged(USER) == {}


@pytest.mark.parametrize(
    ("did", "removed"), [(kind, kind in ("view", "purchase")) for kind, _ in EVERY]
)
def test_the_filter_removes_by_the_role_of_a_signal(did: str, removed: bool) -> None:
    asked = _query(_user((did, "v1"), ("play", "v9")))
    pool = Pool.of(tuple(Candidate(item_id, "given") for item_id in ("v1", "v9", "v5")))
    found = removed_by(AlreadyEngaged(Activity()), asked, pool)
    assert found.mask.tolist() == [removed, True, False]
    if removed:
        assert found.reason(0) == f"already engaged: {did}"


def test_the_filter_finds_in_activity_what_the_users_row_has_dropped() -> None:
    views = [("view", f"v{at}") for at in range(60)]
    activity = Activity()
    activity.fold(_events(*views))
    pool = Pool.of(tuple(Candidate(f"v{at}", "given") for at in range(61)))
    asked = _query(_user(*views))
    assert removed_by(AlreadyEngaged(activity), asked, pool).mask.tolist() == [True] * 60 + [False]


def test_popularity_counts_them_as_the_kinds_that_they_stand_for() -> None:
    store = MemoryFeatureStore()
    did = (("view", "v1"), ("purchase", "v2"), ("play", "v3"), ("order", "v4"))
    unpopular = (("goods_returned", "v5"), ("banner", "v6"))
    store.fold("video", _events(*did, *unpopular), Stamp("t", 0, 0))
    score = popularity_of(store.read("video", [f"v{n}" for n in range(1, 7)], 10_000), 1).score
    assert score[0] == score[2] > 0
    assert score[1] == score[3] > score[0]
    assert score[4] == score[5] == 0


def test_a_users_taste_weighs_a_conversion_as_an_order(stage_deps: StageDependencies) -> None:
    for own, shipped in (("view", "play"), ("purchase", "order")):
        weights = [
            recent_engagements(_query(_user((kind, "v1"))), stage_deps.catalogue).weights.tolist()
            for kind in (own, shipped)
        ]
        assert weights[0] == weights[1] != []


def test_models_of_shipped_kinds_read_them_as_those_that_they_stand_for() -> None:
    user = _user(*EVERY)
    _, kinds = history_columns(user)
    found = [HISTORY_KINDS[code - 1] for code in kinds[0] if code]
    assert found == ["order", "play"]
    assert text_list(assemble_request(user, 1, 10_000)["history_kind"]) == ["order", "play"]


def test_the_reasoner_learns_from_them() -> None:
    names = {number: name for name, number in SIGNALS.number.items()}
    events = pl.DataFrame(_events(*EVERY, ("like", "v5"))).with_columns(
        pl.col("kind").replace_strict(names, return_dtype=pl.String)
    )
    log = TrainingLog(events, pl.DataFrame(), pl.DataFrame(), 10_000)
    assert _pairs(engagements(log)) == [("play", "v1"), ("order", "v2"), ("like", "v5")]


def _pairs(events: pl.DataFrame) -> Sequence[tuple[str, str]]:
    return events.select("kind", "video_id").rows()
