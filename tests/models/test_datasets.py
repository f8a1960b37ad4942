"""Laws of training data: it equals the log on disk, and nothing in it is newer than its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from deploy import state
from deploy.cli import models as models_cli
from deploy.settings import Settings
from models.recipe import NotEnoughData, TrainingLog
from models.release.store import Quarantine, ReleaseStore
from models.training import build
from models.training.datasets import features_at, load_training_log, log_until, split_time_ms
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.catalogue import CatalogueLog
from streams.contract.events import KIND_CODE, CatalogueItem, ItemAdded
from streams.contract.impression import Impression, sign
from streams.contract.schema import EVENT_SCHEMA, conform
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.outcomes import FEEDBACK_TASKS
from streams.feedback.store import FeedbackStore

T0 = 1_700_000_000_000


def delivery(events: pl.DataFrame) -> Delivery:
    codes = pl.col("kind").replace_strict(KIND_CODE, return_dtype=pl.UInt8)
    table = conform(pa.table(events.with_columns(codes).to_arrow()), EVENT_SCHEMA)
    return Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), table)


def test_the_log_on_disk_becomes_training_data(before_slates: TrainingLog, tmp_path: Path) -> None:
    EventLog(tmp_path / "log").append(delivery(before_slates.events))
    item = CatalogueItem(video_id="v1", title="Film", genres=("Drama",))
    added = ItemAdded(event_id="c1", event_time_ms=1_700_000_000_000, item=item)
    CatalogueLog(tmp_path / "log").append([added])
    middle = split_time_ms(before_slates, 0.5)
    found = load_training_log(tmp_path / "log", tmp_path / "feedback", middle)
    expected = before_slates.events.filter(pl.col("event_time_ms") < middle)
    assert found.events["event_id"].to_list() == expected["event_id"].to_list()
    assert found.events["kind"].to_list() == expected["kind"].to_list()
    assert found.items["video_id"].to_list() == ["v1"]
    assert found.feedback.is_empty()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_commands_do_not_read_what_a_rollback_quarantined(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models train` and `evaluate` as they read a home in which r0002 was rolled back."""
    settings = Settings(home=tmp_path)
    ReleaseStore(settings.releases_dir).quarantine(Quarantine("r0002", T0, T0 + 100, "bad"))
    key, windows = b"k" * 32, dict.fromkeys(FEEDBACK_TASKS, 10)
    store = FeedbackStore(settings.feedback_dir, key=key, windows_ms=windows)
    rows = []
    for number, (release, at_ms) in enumerate(
        [("r0001", T0 + 10), ("r0002", T0 - 1), ("r0002", T0), ("r0002", T0 + 100)]
    ):
        impression = Impression(
            request_id=f"q{number}", surface="feed", user_id="u", video_id="v", slot=0,
            propensity=1.0, release=release, served_at_ms=at_ms,
        )  # fmt: skip
        shown = {"kind": "shown", "user_id": "u", "video_id": "v", "event_id": f"{number}"}
        token = {"impression": sign(impression, key), "event_time_ms": at_ms}
        rows.append(shown | token)
    store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), _table(rows)))
    read: list[TrainingLog] = []

    def record(_: str, log: TrainingLog, *__: object, **___: object) -> None:
        read.append(log)
        raise NotEnoughData("enough")

    monkeypatch.setattr(state, "settings_in_use", lambda: settings)
    monkeypatch.setattr(build, f"{command}_model", record)
    CliRunner().invoke(models_cli.app, [command, "ranker"])
    assert sorted(read[0].feedback["request_id"]) == ["q0", "q1", "q3"]


def _table(rows: list[dict[str, str | int]]) -> pa.Table:
    plain = {
        "kind": KIND_CODE["shown"], "ingested_at_ms": T0, "surface": "feed", "origin": "live",
        "late": False, "duplicate": False, "source_partition": 0, "source_offset": 0,
    }  # fmt: skip
    return pa.Table.from_pylist([{**row, **plain} for row in rows], schema=EVENT_SCHEMA)


def test_nothing_newer_than_the_split_is_kept(small_log: TrainingLog) -> None:
    split_ms = split_time_ms(small_log, 0.8)
    earlier = log_until(small_log, split_ms)
    assert 0 < earlier.events.height < small_log.events.height
    assert earlier.events["ingested_at_ms"].to_numpy().max() < split_ms
    assert earlier.feedback["matured_at_ms"].to_numpy().max() < split_ms


def test_features_of_a_row_do_not_depend_on_later_events(
    small_log: TrainingLog,
) -> None:
    split_ms = split_time_ms(small_log, 0.6)
    ids, times = ["u1", "u2", "unknown"], np.array([split_ms - 1] * 3)
    whole = features_at(small_log, "user", ids, times)
    earlier = features_at(log_until(small_log, split_ms), "user", ids, times)
    for name, column in whole.columns.items():
        assert column.tolist() == earlier.columns[name].tolist(), name


def test_an_empty_log_cannot_be_split(small_log: TrainingLog) -> None:
    empty = TrainingLog(small_log.events.clear(), small_log.items, small_log.feedback, 1)
    with pytest.raises(NotEnoughData, match="no events"):
        split_time_ms(empty)
