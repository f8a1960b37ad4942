"""A Feast repository over the event log: history, saved datasets, `feast` commands and its server."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from feast import FeatureStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

from deploy.services.process import free_port, wait_until
from features.definitions import DEFINITIONS
from features.feast.offline_store import with_now_ms
from features.feast.registry import open_store
from features.offline.point_in_time.join import join_features
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog

pytestmark = pytest.mark.usefixtures("store")
NOW = 1_700_000_000_000
HOUR = 3_600_000


@pytest.fixture
def table(event_table: Any) -> Any:
    """Plays and likes of three users over two days, some of which arrive an hour late."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(600):
        time_ms = NOW - int(rng.integers(1, 48 * HOUR))
        rows.append(
            {
                "event_id": f"e{number}",
                "user_id": f"u{number % 3}",
                "video_id": f"v{rng.integers(5)}",
                "kind": ["play", "like", "order"][number % 3],
                "event_time_ms": time_ms,
                "ingested_at_ms": time_ms + (HOUR if number % 7 == 0 else 50),
                "duplicate": number % 50 == 49,
            }
        )
    return event_table(rows)


@pytest.fixture
def store(valkey: str, tmp_path: Path, table: Any) -> Any:
    log = EventLog(tmp_path / "log")
    log.append(Delivery(EVENTS_BY_USER, Stamp("topic", 0, 1), table))
    found = open_store(
        registry_path=tmp_path / "registry.db", address=valkey, db=9, project="offline"
    )
    found.rebuild_id()
    found.fold("user", table, Stamp("topic", 0, 1))
    found.apply()
    found.write_repository(tmp_path / "feast", tmp_path / "log")
    yield found
    found.tear_down()


def entity_frame(count: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    times = NOW - rng.integers(0, 50 * HOUR, count)
    users = [f"u{n % 4}" for n in range(count)]  # u3 has no event
    videos = [f"v{n % 6}" for n in range(count)]
    moments = pd.to_datetime(times, unit="ms", utc=True)
    return with_now_ms(
        pd.DataFrame({"user_id": users, "video_id": videos, "event_timestamp": moments})
    )


def equal(found: pd.Series, expected: pl.Series) -> bool:
    mine = [list(v) if isinstance(v, np.ndarray) else v for v in found.tolist()]
    return all(
        a == b or (a != a and b is None) for a, b in zip(mine, expected.to_list(), strict=True)
    )


def test_history_equals_the_point_in_time_join_and_loses_no_row(tmp_path: Path, table: Any) -> None:
    client = FeatureStore(repo_path=str(tmp_path / "feast"))
    frame = entity_frame()
    found = client.get_historical_features(
        entity_df=frame, features=client.get_feature_service("user")
    ).to_df()
    assert found["user_id"].tolist() == frame["user_id"].tolist()
    events = pl.DataFrame(table)
    labels = pl.DataFrame({"user_id": frame["user_id"], "time_ms": frame["now_ms"]})
    expected = join_features(events, labels, "user")
    for name in DEFINITIONS["user"].column_types:
        assert equal(found[name], expected[name]), name
    assert set(found["user_row_status"]) == {"present", "absent"}


def test_several_entities_full_names_and_a_saved_dataset(tmp_path: Path) -> None:
    client = FeatureStore(repo_path=str(tmp_path / "feast"))
    refs = ["user_features:play_count_all", "video_features:like_count_all"]
    job = client.get_historical_features(
        entity_df=entity_frame(), features=refs, full_feature_names=True
    )
    frame = job.to_df()
    names = ["user_features__play_count_all", "video_features__like_count_all"]
    assert list(frame.columns[-2:]) == names
    assert frame[names].to_numpy().sum() > 0
    path = str(tmp_path / "saved.parquet")
    client.create_saved_dataset(job, "saved", SavedDatasetFileStorage(path))
    again = client.get_saved_dataset("saved").to_df()
    assert len(again) == len(frame)
    assert sorted(again[names[0]]) == sorted(frame[names[0]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.assign(now_ms=frame["now_ms"] + 1), "with_now_ms"),
        (lambda frame: frame.drop(columns="user_id"), "user_id"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    client = FeatureStore(repo_path=str(tmp_path / "feast"))
    with pytest.raises(ValueError, match=says):
        client.get_historical_features(
            entity_df=change(entity_frame()), features=["user_features:play_count_all"]
        ).to_df()


def feast(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "feast.cli.cli", "-c", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_feast_s_commands_take_the_repository_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "feast"
    assert (folder / "feature_store.yaml").stat().st_mode & 0o077 == 0
    assert yaml.safe_load((folder / "feature_store.yaml").read_text())["project"] == "offline"
    applied = feast(folder, "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    client = FeatureStore(repo_path=str(folder))
    names = {service.name for service in client.list_feature_services()}
    assert names == {"user", "video", "author", "query"}


def test_feast_serve_answers_with_the_features_of_the_store(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "feast.cli.cli", "-c", str(tmp_path / "feast"), "serve"]
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen([*command, "-p", str(port)], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: server.poll() is not None or _answers(f"{url}/health"), 180.0)
        body = {
            "feature_service": "user",
            "entities": {"user_id": ["u0", "u9"], "now_ms": [NOW, NOW]},
        }
        reply = httpx.post(f"{url}/get-online-features", json=body, timeout=60.0)
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        names = answer["metadata"]["feature_names"]
        status = answer["results"][names.index("user_row_status")]["values"]
        assert status == ["present", "absent"]
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        time.sleep(0.2)
        return False


def test_materialize_runs_the_backfill_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself is tested with a stack; here, that Feast calls it and says why it failed."""
    monkeypatch.setenv("TIDEMILL_STORE__KIND", "external")
    monkeypatch.setenv("TIDEMILL_STORE__ADDRESS", "127.0.0.1:1")
    client = FeatureStore(repo_path=str(tmp_path / "feast"))
    with pytest.raises(RuntimeError, match="features backfill"):
        client.materialize(datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC))
