"""Exported Parquet files hold what log, store and feedback hold."""

from __future__ import annotations

import polars as pl

from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.offline.export import export_features, export_feedback, export_log
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.event_log import EventLog
from streams.progress import no_progress

NOW = 1_700_000_000_000


def _events(event_table, count=50):
    return event_table(
        [
            {"user_id": f"u{i % 7}", "kind": "like" if i % 3 else "play", "event_id": f"e{i}",
             "event_time_ms": NOW - i * 1_000, "video_id": f"v{i % 5}"}
            for i in range(count)
        ]
    )  # fmt: skip


def test_the_log_is_exported_whole_with_kinds_by_name(event_table, tmp_path):
    log, stamp = EventLog(tmp_path / "log"), Stamp("t", 0, 0)
    log.append(Delivery("events.by_user", stamp, _events(event_table)))
    assert export_log(tmp_path / "log", tmp_path / "out") == 50
    found = pl.read_parquet(tmp_path / "out" / "log.parquet").sort("event_time_ms", "event_id")
    right = log.read(duplicates=True)
    assert found.select(right.columns).equals(right)


def test_features_are_exported_as_a_reader_has_them(event_table, tmp_path):
    store = MemoryFeatureStore()
    store.fold("user", _events(event_table), Stamp("t", 0, 0))
    ids = [*sorted(store.ids("user")), "unknown"]
    assert export_features(store, "user", ids, NOW, tmp_path, no_progress) == 7
    found = pl.read_parquet(tmp_path / "features_user.parquet")
    right = store.read("user", ids[:7], NOW)
    assert found["id"].to_list() == ids[:7]
    assert found.columns == ["id", "last_event_ms", *DEFINITIONS["user"].columns]
    for name in DEFINITIONS["user"].columns:
        assert found[name].to_list() == [
            list(v) if isinstance(v, list) else v for v in right.columns[name].tolist()
        ], name
    assert found["play_count_all"].sum() == 17


def test_no_feedback_is_an_empty_file(tmp_path):
    assert export_feedback(tmp_path / "feedback", tmp_path / "out") == 0
    assert len(pl.read_parquet(tmp_path / "out" / "feedback.parquet")) == 0
