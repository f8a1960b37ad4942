"""`tidemill features skew`: its output, its exit code and the file for the metrics."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from deploy.cli.features import app
from models.monitoring.served_log import ServedLog, ServedSlate
from models.ranking.ple.features import HISTORY, ITEM_FEATURES, USER_FEATURES
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log with one play of u1 an hour ago, and an external store that is not used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIDEMILL_STORE__KIND", "external")
    monkeypatch.setenv("TIDEMILL_STORE__ADDRESS", "127.0.0.1:1")
    at = time.time_ns() // 1_000_000 - 3_600_000
    row = dict.fromkeys(EVENT_SCHEMA.names) | {
        "event_id": "one",
        "user_id": "u1",
        "kind": KIND_CODE["play"],
        "event_time_ms": at,
        "ingested_at_ms": at,
        "surface": "external",
        "origin": "live",
        "video_id": "v1",
        "late": False,
        "duplicate": False,
        "source_partition": 0,
        "source_offset": 0,
    }
    table = pa.Table.from_pylist([row], schema=EVENT_SCHEMA)
    EventLog(tmp_path / "home" / "log").append(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), table))
    return tmp_path / "home"


def run() -> tuple[int, str]:
    done = CliRunner().invoke(app, ["skew"])
    return done.exit_code, done.output


def test_without_a_served_slate_nothing_is_compared(home: Path) -> None:
    assert not (home / "gateway").exists()
    code, said = run()
    assert code == 0, said
    assert "0 slates" in said
    assert "no slate to compare" in said


def test_skew_is_an_error_and_is_written_for_the_metrics(home: Path) -> None:
    slate = ServedSlate(
        "r1",
        "u1",
        time.time_ns() // 1_000_000 - 60_000,
        "r0001",
        False,
        np.full(len(USER_FEATURES), 9, np.float32),
        np.zeros(HISTORY, np.int64),
        ("v1",),
        np.zeros(len(ITEM_FEATURES), np.float32),
    )
    ServedLog(home / "gateway" / "served").append([slate])
    code, said = run()
    assert code == 1, said
    assert "user log_play_count_all" in said
    kept = orjson.loads((home / "gateway" / "skew.json").read_bytes())
    assert kept["differing"]["user log_play_count_all"] == 1
    assert kept["slates"] == 1
