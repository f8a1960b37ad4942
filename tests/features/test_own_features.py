"""Counts of declared signals and an owner's features: the same online, offline and rebuilt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from deploy import wiring
from deploy.settings import Settings, SettingsError
from features.definitions import (
    ALL,
    DEFINITIONS,
    SHIPPED,
    WEEK,
    Count,
    FeatureConflict,
    LastN,
    Sum,
)
from features.feast.registry import feast_objects
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.join import features_as_of
from streams.bus.contract import Stamp
from streams.contract.clock import DAY_MS
from streams.contract.declaration import Contract, contract, declare, declared
from streams.contract.schema import event_schema
from streams.contract.signals import Signal, Signals

T0 = 1_700_000_000_000
NOW = T0 + 2 * DAY_MS
SIGNALS = Signals(
    (
        Signal("rating", 64, "engagement", ("value", "dwell"), 3_600_000),
        Signal("view", 90, "exposure", ("text",), 3_600_000),
    )
)
OWN = {
    "user": (
        Sum("dwell_ms", ("rating",), (WEEK, ALL), name="rating_dwell"),
        LastN("rated_item", "video_id", ("rating",), 3, "rated_kind", "rated_time_ms"),
        LastN("seen_words", "text", ("view",), 2),
    ),
    "video": (LastN("rated_by", "user_id", ("rating",), 5),),
}


@pytest.fixture
def own() -> Iterator[None]:
    with declared(Contract(signals=SIGNALS)):
        DEFINITIONS.add(OWN)
        yield
        DEFINITIONS.add({})


def _events() -> pa.Table:
    rng = np.random.default_rng(5)
    number = SIGNALS.number
    rows = []
    for place in range(200):
        kind = ("rating", "view", "play")[place % 3]
        at = T0 + int(rng.integers(DAY_MS))
        rows.append(
            dict.fromkeys(event_schema().names)
            | {
                "event_id": f"e{place}", "user_id": f"u{rng.integers(5)}", "kind": number[kind],
                "event_time_ms": at, "ingested_at_ms": at, "surface": "feed", "origin": "live",
                "video_id": f"v{rng.integers(7)}", "late": False, "duplicate": False,
                "source_partition": 0, "source_offset": place,
                "dwell_ms": int(rng.integers(100)) if kind != "view" else None,
                "value": float(place) if kind == "rating" else None,
                "text": f"w{place}" if kind == "view" else None,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=event_schema())


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("entity", ["user", "video"])
def test_the_fold_and_the_point_in_time_join_agree(entity: str) -> None:
    events, store = _events(), MemoryFeatureStore()
    store.fold(entity, events, Stamp("t", 0, 0))
    ids = sorted(store.ids(entity))
    online = store.read(entity, ids, NOW)
    labels = pl.DataFrame({DEFINITIONS[entity].id_column: ids, "time_ms": [NOW] * len(ids)})
    offline = features_as_of(pl.DataFrame(events), labels, entity)
    assert online.columns.keys() == offline.columns.keys()
    for name, values in online.columns.items():
        assert [*values] == [*offline.columns[name]], name


@pytest.mark.usefixtures("own")
def test_values_are_those_of_the_events() -> None:
    events, store = _events(), MemoryFeatureStore()
    store.fold("user", events, Stamp("t", 0, 0))
    got = store.read("user", ["u1"], NOW).columns
    mine = pl.DataFrame(events).filter(pl.col("user_id") == "u1").sort("event_time_ms")
    rated, viewed = (mine.filter(pl.col("kind") == number) for number in (64, 90))
    assert got["rating_count_all"][0] == got["rating_count_7d"][0] == rated.height
    assert got["view_count_all"][0] == viewed.height
    assert got["rating_dwell_sum_all"][0] == rated["dwell_ms"].sum()
    assert got["rated_item"][0] == rated["video_id"].reverse().head(3).to_list()
    assert got["rated_kind"][0] == ["rating"] * 3
    assert got["seen_words"][0] == viewed["text"].reverse().head(2).to_list()


@pytest.mark.usefixtures("own")
def test_feast_gets_the_same_columns() -> None:
    assert "rated_by" in DEFINITIONS["video"].columns
    found = str(feast_objects(DEFINITIONS["video"]))
    assert "rated_by" in found
    assert "view_count_30d" in found


def test_without_declarations_rows_keep_their_layout() -> None:
    for entity, definition in SHIPPED.items():
        assert DEFINITIONS[entity] is definition
    with declared(Contract(signals=SIGNALS)):
        assert DEFINITIONS["query"] is SHIPPED["query"]
        counters = DEFINITIONS["user"].counters
        assert counters[: len(SHIPPED["user"].counters)] == SHIPPED["user"].counters
        assert DEFINITIONS["user"].fingerprint != SHIPPED["user"].fingerprint
    assert DEFINITIONS["user"] is SHIPPED["user"]


@pytest.mark.parametrize(
    ("entity", "feature", "named"),
    [
        ("item", Count("play"), "declares one Key"),
        ("user", Count("bookmark"), "'bookmark' is no signal"),
        ("user", Count("play"), "'play_count_1h' is declared twice"),
        ("video", LastN("select", "user_id", ("play",), 5), "SQL"),
        ("video", LastN("entity_id", "user_id", ("play",), 5), "Feast"),
        ("video", LastN("video_row_status", "user_id", ("play",), 5), "whether a row is there"),
        ("user", LastN("status", "video_id", ("play",), 5), "name of the contract"),
        ("user", LastN("user_id", "video_id", ("play",), 5), "name of the contract"),
        ("user", Sum("dwell_ms", ("play",), (ALL,), name="My dwell"), "single underscores"),
        ("video", LastN("by_user", "user", ("play",), 5), "'user' is no event column"),
        ("video", Sum("query", ("play",), (ALL,)), "'query' is no event column"),
    ],
)
def test_a_wrong_feature_is_named_and_changes_nothing(
    entity: str, feature: Count | LastN | Sum, named: str
) -> None:
    with pytest.raises(FeatureConflict, match=named):
        DEFINITIONS.add({entity: (feature,)})
    assert DEFINITIONS["user"] is SHIPPED["user"]


FILE = """
from features.definitions import ALL, Count, LastN
FEATURES = {"video": [LastN("rated_by", "user_id", ("rating",), 5)], "query": [Count("play", (ALL,))]}
"""


@pytest.fixture
def _restored() -> Iterator[None]:
    before = contract()
    yield
    declare(before)
    DEFINITIONS.add({})


@pytest.mark.usefixtures("_restored")
def test_the_settings_name_the_file_and_the_signals(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text(FILE)
    settings = Settings(
        home=tmp_path,
        signals={"rating": {"role": "engagement", "payload": ["value"]}},
        features={"file": tmp_path / "features.py"},
    )
    wiring.declare(settings)
    assert "rated_by" in DEFINITIONS["video"].columns
    assert "play_count_all" in DEFINITIONS["query"].columns
    assert "rating_count_1h" in DEFINITIONS["author"].columns


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(
    ("source", "named"),
    [("1 / 0", "division"), ("x = 1", "FEATURES"), ("FEATURES = {'user': [3]}", "3 is no feature"),
     ("FEATURES = {'user': [Count]}", "Count")],
)  # fmt: skip
def test_a_file_that_is_wrong_is_named(tmp_path: Path, source: str, named: str) -> None:
    path = tmp_path / "features.py"
    path.write_text(source)
    with pytest.raises(SettingsError, match=named):
        wiring.declare(Settings(home=tmp_path, features={"file": path}))
