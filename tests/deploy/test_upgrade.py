"""A home that commit 3de34bd wrote starts with today's code: log, feedback, release, settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from deploy import renamed, state, wiring
from deploy.settings import Settings, load
from features.definitions import DEFINITIONS
from features.feast.registry import open_store
from features.offline.backfill import backfill
from features.offline.diff import diff_against_log, rebuild_in_memory
from models.client import ModelUnavailable
from models.release.bundle import ReleaseError, signature_mismatch
from models.release.canary import read_canary
from models.release.store import ReleaseStore
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.catalogue import CatalogueLog
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.erasure import ErasureJournal
from streams.event_log import EventLog
from streams.feedback.store import FeedbackStore, read_feedback
from streams.storage.compaction import compact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OLD = "3de34bd059ec7a1b8853ae9ad27273974c539ee6"
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("make_old_home.py")
PACKAGES = ("streams", "features", "models", "serving", "deploy")
KEY = bytes(range(32))
END_MS = 1_700_100_000_000
RETRAIN = "tidemill models train"


@dataclass(frozen=True)
class OldHome:
    """A home of the old code, and what the old code read from it."""

    path: Path
    events: list[dict[str, Any]]
    counted: int
    feedback: list[dict[str, Any]]
    begins_at_ms: int | None

    @property
    def log(self) -> EventLog:
        return EventLog(self.path / "log")

    @property
    def settings(self) -> Settings:
        return Settings(home=self.path, triton={"kind": "in_process"})


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old commit's tree."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", f"{OLD}^{{commit}}"], capture_output=True)
    if known.returncode != 0:
        pytest.skip(f"commit {OLD[:7]} is not in this checkout's history (a shallow clone?)")
    packed = subprocess.run([*git, "archive", OLD, *PACKAGES], capture_output=True, check=True)
    folder = tmp_path_factory.mktemp("old-code")
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old_home(made_home: OldHome, tmp_path: Path) -> OldHome:
    """A copy that a test may change."""
    subprocess.run(["cp", "-a", f"{made_home.path}/.", str(tmp_path / "home")], check=True)
    return OldHome(**(made_home.__dict__ | {"path": tmp_path / "home"}))


@pytest.fixture(scope="module")
def made_home(old_code: Path, valkey: str, tmp_path_factory: pytest.TempPathFactory) -> OldHome:
    home = tmp_path_factory.mktemp("old-home")
    # Without the JIT the old kernels need no minutes to compile.
    environment = os.environ | {"PYTHONPATH": str(old_code), "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(home), valkey],
        cwd=home, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return OldHome(home, **json.loads(done.stdout.splitlines()[-1]))


def _plain(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return json.loads(json.dumps(rows.to_dicts()))  # type: ignore[no-any-return]


def _likes(table: pa.Table | pl.DataFrame) -> int:
    return sum(kind == "like" for kind in table["kind"].to_list())


def test_the_log_is_read_as_it_was_written(old_home: OldHome) -> None:
    log = old_home.log
    assert _plain(log.read(duplicates=True).sort("event_id")) == old_home.events
    assert len(log.read()) == old_home.counted < len(old_home.events)
    assert log.begins_at_ms() == old_home.begins_at_ms


def test_the_log_continues_and_compacts(old_home: OldHome) -> None:
    row = dict.fromkeys(EVENT_SCHEMA.names) | {
        "event_id": "new", "user_id": "u1", "kind": KIND_CODE["like"], "event_time_ms": END_MS,
        "ingested_at_ms": END_MS, "surface": "feed", "origin": "live", "video_id": "v1",
        "late": False, "duplicate": False, "source_partition": 0, "source_offset": 99,
    }  # fmt: skip
    table = pa.Table.from_pylist([row], schema=EVENT_SCHEMA)
    log = old_home.log
    log.append(Delivery(EVENTS_BY_USER, Stamp("second", 0, 99), table))
    log.flush()
    compact(log.segments, END_MS + 48 * 3_600_000)
    found = _plain(log.read(duplicates=True).sort("event_id"))
    assert [each for each in found if each["event_id"] != "new"] == old_home.events
    assert len(found) == len(old_home.events) + 1


def test_rows_are_rebuilt_from_the_log(old_home: OldHome, valkey: str) -> None:
    memory = rebuild_in_memory(old_home.log)
    events = old_home.log.read()
    for entity in ("user", "video", "author"):
        ids = sorted(memory.ids(entity))
        assert ids == sorted(set(events[DEFINITIONS[entity].id_column].drop_nulls()))
        counts = memory.read(entity, ids, END_MS).columns["like_count_all"]
        assert int(np.sum(counts)) == _likes(events)
    store = open_store(
        registry_path=old_home.path / "registry.db", address=valkey, db=0, project="upgrade"
    )
    backfill(old_home.path / "log", store)
    assert list(diff_against_log(old_home.path / "log", store, END_MS)) == []
    store.tear_down()


def test_the_feast_registry_takes_todays_declarations(old_home: OldHome, valkey: str) -> None:
    store = open_store(
        registry_path=old_home.path / "registry.db", address=valkey, db=0, project="upgrade"
    )
    backfill(old_home.path / "log", store)
    store.apply()
    client = store.feast_client()
    row = client.get_online_features(
        features=client.get_feature_service("user"),
        entity_rows=[{"user_id": "u1", "now_ms": END_MS}],
    ).to_dict()
    ours = store.read("user", ["u1"], END_MS)
    assert row["like_count_all"] == ours.columns["like_count_all"].tolist()
    store.tear_down()


def test_feedback_is_read_and_continues(old_home: OldHome) -> None:
    folder = old_home.path / "feedback"
    read = _plain(read_feedback(folder).sort("impression_id"))
    assert [{name: row[name] for name in old_home.feedback[0]} for row in read] == old_home.feedback
    assert {row[name] for row in read for name in row.keys() - old_home.feedback[0]} == {None}
    shown = next(row for row in old_home.events if row["kind"] == "shown")
    event = shown | {
        "event_id": "new", "kind": KIND_CODE["play"], "event_time_ms": shown["event_time_ms"] + 1,
    }  # fmt: skip
    table = pa.Table.from_pylist([event], schema=EVENT_SCHEMA)
    store = FeedbackStore(folder, key=KEY, windows_ms={"play": 600_000})
    store.join(Delivery(EVENTS_BY_USER, Stamp("second", 0, 99), table))
    assert len(read_feedback(folder)) == len(old_home.feedback)
    changed = read_feedback(folder).filter(pl.col("revision") > 1)
    assert changed["play"].to_list() == [True]


def test_the_old_release_is_served_or_refused_with_the_command_that_retrains(
    old_home: OldHome,
) -> None:
    release = ReleaseStore(old_home.path / "releases").current()
    assert release is not None
    assert (release.release_id, dict(release.models)) == ("r0001", {"ranker": 1})
    bundle = ReleaseStore(old_home.path / "releases").bundle("ranker", 1)
    canary = read_canary(bundle.path)
    assert canary is not None
    inputs = canary.request

    def served() -> dict[str, np.ndarray]:
        wiring.fill_repository(old_home.settings)
        return wiring.model_client(old_home.settings).infer("ranker", inputs)

    if why := signature_mismatch(bundle):
        assert RETRAIN in why
        with pytest.raises((ModelUnavailable, ReleaseError), match=RETRAIN):
            served()
    else:
        assert np.isfinite(served()["score"]).all()


def test_the_old_settings_file_works_and_warns(
    old_home: OldHome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renamed.warn.cache_clear()
    monkeypatch.setenv("TIDEMILL_SETTINGS", str(old_home.path / "settings.toml"))
    settings = load()
    assert (settings.broker.partitions, settings.ingest.replicas) == (2, 1)
    assert settings.telemetry.metrics_ports == {
        "log-writer": 9101, "features": 9102, "kafka-requests": 9103,
    }  # fmt: skip
    for new in ("ingest.replicas", "log-writer", "kafka-requests"):
        assert f"is now {new}" in caplog.text


def test_the_old_stack_file_keys_catalogue_and_erasures_are_read(old_home: OldHome) -> None:
    assert state.read_settings(old_home.path).ingest.replicas == 1
    key = json.loads((old_home.path / "keys.json").read_text())["impression_key"]
    assert state.impression_key(old_home.path) == key
    assert len(list(CatalogueLog(old_home.path / "log").events())) == 9
    journal = ErasureJournal(old_home.settings.erasures_path)
    assert list(journal.read()) == ["erased-user"]
