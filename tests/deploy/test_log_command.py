"""`tidemill log` shows, merges and shortens the log, without a running stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from deploy.cli.main import build
from deploy.settings import load
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS, HOUR_MS, WallClock
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, exit_code: int = 0) -> str:
        done = CliRunner().invoke(build(), ["log", *arguments])
        assert done.exit_code == exit_code, done.output
        return done.output

    return invoke


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    """Twenty events of ten days ago and twenty of ten hours ago, in batches of four."""
    held, now = EventLog(tmp_path / "log"), WallClock().now_ms()
    for offset in range(10):
        at_ms = now - (10 * DAY_MS if offset < 5 else 10 * HOUR_MS)
        rows = [_event(f"{offset}/{row}", at_ms) for row in range(4)]
        table = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
        held.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), table))
    return held


def _event(event_id: str, at_ms: int) -> dict[str, object]:
    return {"event_id": event_id, "user_id": "u", "kind": KIND_CODE["play"], "event_time_ms": at_ms,
            "ingested_at_ms": at_ms, "surface": "feed", "origin": "live", "late": False,
            "duplicate": False, "source_partition": 0, "source_offset": 0}  # fmt: skip


def _row(output: str, name: str) -> list[str]:
    line = next(line for line in output.splitlines() if f" {name} " in line)
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_it_shows_merges_and_drops(run: Run, log: EventLog) -> None:
    found = run("show")
    assert _row(found, "rows") == ["40", "0"]
    assert _row(found, "batches not yet in Parquet") == ["10", "0"]
    assert "log: 2 files merged into 2, 40 rows rewritten" in run("compact")
    assert _row(run("show"), "hours") == ["2", "0"]
    assert "everything is kept" in run("retain")
    assert "log: 20 rows dropped; it begins at" in run("retain", "--days", "5")
    found = run("show")
    assert _row(found, "rows") == ["20", "0"]
    assert _row(found, "dropped before")[0].endswith("UTC")
    assert log.read().height == 20


def test_the_setting_says_how_long_the_log_is_kept(
    run: Run, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().log.retention_days is None
    monkeypatch.setenv("TIDEMILL_LOG__RETENTION_DAYS", "30")
    run("compact")
    assert "log: 0 rows dropped" in run("retain")
    monkeypatch.setenv("TIDEMILL_LOG__RETENTION_DAYS", "5")
    assert "log: 20 rows dropped" in run("retain")
    assert log.begins_at_ms() is not None
