"""`tidemill features` works, and its errors name the fix."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from deploy import wiring
from deploy.cli.features import app
from deploy.settings import Settings
from features.online.redis_store import FeastFeatureStore
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import HOUR_MS, WallClock
from streams.contract.declaration import contract, declared
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.storage.compaction import retain


@pytest.fixture
def run(valkey, tmp_path, monkeypatch):
    def invoke(*arguments: str, address: str = valkey):
        monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
        monkeypatch.setenv("TIDEMILL_STORE__KIND", "external")
        monkeypatch.setenv("TIDEMILL_STORE__ADDRESS", address)
        monkeypatch.setenv("TIDEMILL_STORE__DB", "5")
        monkeypatch.setenv("COLUMNS", "200")
        return CliRunner().invoke(app, arguments)

    yield invoke
    FeastFeatureStore(valkey, 5).tear_down()


@pytest.fixture
def like(event_table):
    now = WallClock().now_ms()
    return event_table([{"kind": "like", "event_time_ms": now, "user_id": "ann", "video_id": "v"}])


def test_backfill_fills_the_store_and_diff_finds_nothing(run, like, tmp_path):
    EventLog(tmp_path / "log").append(Delivery(EVENTS_BY_USER, Stamp("U", 0, 0), like))
    filled = run("backfill", "--without-broker")
    assert filled.exit_code == 0, filled.output
    assert "1 events folded" in filled.output
    same = run("diff")
    assert same.exit_code == 0, same.output
    assert "0 differences" in same.output
    assert "like_count_1h" in run("show", "user", "ann").output


def test_a_rebuild_from_a_shortened_log_names_its_start(run, like, tmp_path):
    log = EventLog(tmp_path / "log")
    log.append(Delivery(EVENTS_BY_USER, Stamp("U", 0, 0), like))
    assert "the log begins at" not in run("backfill", "--without-broker").output
    log.flush()
    assert retain(log.segments, WallClock().now_ms() + 2 * HOUR_MS) == 1
    assert "the log begins at" in run("backfill", "--without-broker", "--rebuild").output
    assert "the log begins at" in run("diff").output


def test_diff_prints_the_difference_and_fails(run, like, valkey):
    FeastFeatureStore(valkey, 5).fold("user", like, Stamp("U", 0, 0))
    answer = run("diff")
    assert answer.exit_code == 1
    assert "ann" in answer.output


def test_an_unknown_user_is_shown_as_absent(run):
    answer = run("show", "user", "unknown")
    assert answer.exit_code == 0
    assert "absent" in answer.output


def test_a_users_attributes_are_shown_by_name(run, event_table, tmp_path, valkey):
    with declared(contract()):
        wiring.declare(Settings(home=tmp_path, users={"attributes": {"plan": "label"}}))
        text = '{"plan":"gold","season":"winter"}'
        now = WallClock().now_ms()
        event = {"kind": "profile", "event_time_ms": now, "user_id": "ann", "text": text}
        FeastFeatureStore(valkey, 5).fold("user", event_table([event]), Stamp("U", 0, 0))
        shown = run("show", "user", "ann").output
    assert "attributes.plan" in shown
    assert "gold" in shown
    assert text not in shown


def test_freshness_without_folds_says_so(run):
    assert "no live fold" in run("freshness").output


def test_apply_writes_the_registry(run, tmp_path):
    answer = run("apply")
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "registry.db").exists()


def test_a_store_that_is_down_is_reported_in_one_line(run, free_port):
    answer = run("show", "user", "ann", address=f"127.0.0.1:{free_port}")
    assert answer.exit_code == 1
    assert "StoreDown" in answer.output
    assert "Traceback" not in answer.output
