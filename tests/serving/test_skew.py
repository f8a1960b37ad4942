"""Laws of served features: a correct log shows no skew, a planted skew is found and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest

from features.memory_store import MemoryFeatureStore
from features.store import EntityName
from models.monitoring.served_log import SCHEMA, ServedLog, ServedSlate
from models.monitoring.skew import measure_skew
from models.ranking.ple.features import ITEM_FEATURES
from models.recipe import TrainingLog
from serving.gateway import SERVED, SKEW
from serving.monitoring.served_features import ServedFeatures
from serving.pipeline.query import RankerInputs
from serving.state.feature_rows import KEEP_MS
from streams.bus.contract import Bus, Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.catalogue import items_frame
from streams.contract.events import KIND_CODE, CatalogueItem
from streams.contract.schema import EVENT_SCHEMA, from_ipc
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.outcomes import FEEDBACK_SCHEMA

Make = Callable[..., Any]
USERS, EACH, VIDEOS = 6, 14, 60
COUNTED = ("play", "like", "long_view")


def history() -> list[Outgoing]:
    """A replayed history of a few users, ingested at its event times."""
    now_ms, messages = time.time_ns() // 1_000_000, []
    for user in range(USERS):
        for step in range(EACH):
            event = {
                "event_id": f"{user}-{step}",
                "user_id": f"user-{user}",
                "kind": ("play", "like", "long_view")[step % 3],
                "video_id": f"v{(video := (user * 7 + step * 5) % VIDEOS)}",
                "author_id": f"a{video % 9}",
                "event_time_ms": now_ms - (EACH - step) * 3_600_000,
                "origin": "replayed",
            }
            messages.append(Outgoing(BEHAVIOUR, orjson.dumps(event), event["user_id"].encode()))
    return messages


def logged(bus: Bus, folder: Path) -> TrainingLog:
    """The event log as the log-writer would have written it from the topic."""
    log, consumer = EventLog(folder), bus.consumer([EVENTS_BY_USER], f"log-{folder.name}")
    while records := consumer.poll(500, 0.3):
        for record in records:
            stamp = Stamp(bus.topic_id(EVENTS_BY_USER), record.partition, record.offset)
            log.append(Delivery(EVENTS_BY_USER, stamp, from_ipc(record.value or b"")))
    none = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(none, pl.DataFrame)
    return TrainingLog(log.read(), catalogue(), none, time.time_ns() // 1_000_000 + 1)


def catalogue() -> pl.DataFrame:
    genres = ("Drama", "Comedy", "Thriller", "Sci-Fi", "Film-Noir", "Romance")
    items = (
        CatalogueItem(
            item_id=f"v{n}",
            title=f"Video {n}",
            categories=(genres[n % 6], genres[(n // 6) % 6]),
            author_id=f"a{n % 9}",
            duration_ms=60_000 + n,
            created_ms=1_700_000_000_000 + n,
        )
        for n in range(VIDEOS)
    )
    return items_frame((item, True) for item in items)


@pytest.fixture
def store() -> MemoryFeatureStore:
    return MemoryFeatureStore()


@pytest.fixture
def harness(make_harness: Make, store: MemoryFeatureStore, tmp_path: Path) -> Any:
    """A gateway behind the real batcher, sequencer and folds, with a folded history."""
    made = make_harness(store=store, state_dir=tmp_path / "gateway")
    made.bus.producer().send(history())
    for user in range(USERS):
        made.wait_until(lambda u=user: len(made.engaged(f"user-{u}")) == EACH)
    await_folded(made, store, video=USERS * EACH, author=USERS * EACH)
    made.gateway.popularity.refresh()
    return made


def await_folded(harness: Any, store: MemoryFeatureStore, *, video: int, author: int) -> None:
    """Until so many events count for videos and for authors too, and no row is kept that was read
    before: then none is in flight."""
    ids = {"video": [f"v{n}" for n in range(VIDEOS)], "author": [f"a{n}" for n in range(9)]}

    def counted(entity: EntityName) -> int:
        columns = store.read(entity, ids[entity], time.time_ns() // 1_000_000).columns
        return int(sum(columns[f"{kind}_count_all"].sum() for kind in COUNTED))

    harness.wait_until(lambda: (counted("video"), counted("author")) == (video, author))
    time.sleep(KEEP_MS / 1e3)


def served_by(harness: Any) -> pl.DataFrame:
    harness.gateway.served.flush()
    return ServedLog(harness.deps.config.state_dir / SERVED).read()


def test_a_correct_log_shows_no_skew(
    harness: Any, store: MemoryFeatureStore, tmp_path: Path
) -> None:
    time.sleep(KEEP_MS / 1e3)  # rows that were read before are served no longer
    for user in range(USERS):
        harness.feed(f"user-{user}")
    for user in range(2):  # a click reaches the next slate without skew
        harness.send_event("like", f"v{user}", f"user-{user}")
        harness.wait_until(lambda u=user: len(harness.engaged(f"user-{u}")) == EACH + 1)
    await_folded(harness, store, video=USERS * EACH + 2, author=USERS * EACH)  # likes name none
    time.sleep(KEEP_MS / 1e3)  # rows that were read before are served no longer
    for user in range(USERS):
        harness.feed(f"user-{user}")
    harness.feed("unknown-user")
    served = served_by(harness)
    found = measure_skew(served, logged(harness.bus, tmp_path / "log"), in_flight_ms=0)
    assert found.clean, found.skewed
    assert found.slates == 2 * USERS + 1
    seen = np.concatenate(served["video_x"].to_list()).reshape(-1, len(ITEM_FEATURES))
    of_authors = [n for n, name in enumerate(ITEM_FEATURES) if "author" in name]
    varied = {ITEM_FEATURES[n] for n in of_authors if seen[:, n].std() > 0}
    assert {"author_log_play_count_all", "log_author_engaged_by_user"} <= varied
    assert found.candidates > 50
    assert found.stale == 0


def test_a_planted_skew_is_found_and_measured(
    harness: Any, store: MemoryFeatureStore, tmp_path: Path
) -> None:
    """The store counts plays of an item and its author that are not in the log."""
    target = harness.feed("user-0")["items"][0]["video_id"]
    ghost = {name: [None] * 4 for name in EVENT_SCHEMA.names} | {
        "event_id": [f"ghost-{n}" for n in range(4)],
        "user_id": ["ghost"] * 4,
        "kind": [KIND_CODE["play"]] * 4,
        "event_time_ms": [time.time_ns() // 1_000_000 - 1_000] * 4,
        "ingested_at_ms": [time.time_ns() // 1_000_000 - 1_000] * 4,
        "surface": ["external"] * 4,
        "origin": ["live"] * 4,
        "video_id": [target] * 4,
        "author_id": [f"a{int(target[1:]) % 9}"] * 4,
        "late": [False] * 4,
        "duplicate": [False] * 4,
        "source_partition": [0] * 4,
        "source_offset": [0, 1, 2, 3],
    }
    for entity in ("video", "author"):
        store.fold(entity, pa.table(ghost, schema=EVENT_SCHEMA), Stamp("planted", 0, 0))
    time.sleep(KEEP_MS / 1e3)  # rows that were read before are served no longer
    before = served_by(harness)
    other = "v1" if int(target[1:]) % 9 != 1 else "v2"
    harness.feed("user-0", candidates=[target, other])
    served = served_by(harness).filter(~pl.col("request_id").is_in(before["request_id"].implode()))
    log = logged(harness.bus, tmp_path / "log")
    found = {each.feature: each for each in measure_skew(served, log, in_flight_ms=0).skewed}
    for column in ("log_play_count_all", "author_log_play_count_all"):
        planted = found[f"video {column}"]
        assert planted.differing == 1
        assert planted.served > planted.offline
        assert np.expm1(planted.served) - np.expm1(planted.offline) == pytest.approx(4, abs=1e-3)
        assert planted.largest == pytest.approx(planted.served - planted.offline, abs=1e-6)
    assert not [name for name in found if name.startswith("user ")]


def test_slates_with_events_in_flight_are_skipped_and_counted(harness: Any, tmp_path: Path) -> None:
    harness.feed("user-0")
    served = served_by(harness)
    log = logged(harness.bus, tmp_path / "log")
    soon = log.events.filter(pl.col("user_id") == "user-0").head(1)
    at = int(served["served_at_ms"][0]) - 5
    soon = soon.with_columns(event_id=pl.lit("new"), event_time_ms=at, ingested_at_ms=at)
    late = replace(log, events=pl.concat([log.events, soon]).sort("event_time_ms", "event_id"))
    assert not measure_skew(served, late, in_flight_ms=0).clean
    found = measure_skew(served, late, in_flight_ms=50)
    assert found.clean
    assert (found.slates, found.in_flight) == (0, 1)


def test_erasure_deletes_served_features(harness: Any) -> None:
    harness.feed("user-0")
    harness.feed("user-1")
    assert harness.client.delete("/v1/users/user-0").status_code == 202
    assert set(served_by(harness)["user_id"]) == {"user-1"}


def test_the_metric_shows_the_last_check(harness: Any) -> None:
    body = {"slates": 3, "candidates": 30, "differing": {"video log_price": 7}}
    (harness.deps.config.state_dir / SKEW).write_bytes(orjson.dumps(body))
    harness.feed("user-0")
    harness.gateway.served.flush()
    text = harness.client.get("/metrics").text
    assert 'tidemill_feature_skew{feature="video log_price"} 7.0' in text
    assert 'tidemill_feature_skew_checked{what="candidates"} 30.0' in text
    assert 'tidemill_served_slates{outcome="kept"} 1.0' in text


def slate(n: int) -> ServedSlate:
    one = np.zeros(3, np.float32)
    wide = np.zeros(len(ITEM_FEATURES), np.float32)
    return ServedSlate(f"r{n}", f"u{n % 2}", n, "r1", False, one, np.zeros(2, int), ("v",), wide)


def test_the_log_is_bounded_and_reads_the_newest_files(tmp_path: Path) -> None:
    log = ServedLog(tmp_path, keep_files=3)
    for n in range(5):
        log.append([slate(n)])
    assert log.read()["request_id"].to_list() == ["r2", "r3", "r4"]
    assert log.read(1)["request_id"].to_list() == ["r4"]
    assert ServedLog(tmp_path / "none").read().schema == SCHEMA


class SlateStub:
    """A slate of user `u` with the ranker's inputs."""

    query = type("Q", (), {"slate_id": "r", "user_id": "u", "now_ms": 1, "stale": False,
                           "release": type("R", (), {"release_id": "r1"})})  # fmt: skip
    items = (type("C", (), {"item_id": "v"}),)
    ranker_inputs = RankerInputs(np.zeros(1), np.zeros(1, int), np.zeros((1, 1)))
    weights, log_density = {}, None


def test_a_full_queue_drops_and_counts_without_waiting() -> None:
    served = ServedFeatures(ServedLog(Path("/nowhere")), depth=2)
    for _ in range(5):
        served.record(SlateStub())  # type: ignore[arg-type]
    assert served.dropped == 3


def test_erasure_covers_a_queue_longer_than_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.monitoring.served_features._SLATES_PER_FILE", 2)
    log = ServedLog(tmp_path)
    served = ServedFeatures(log)
    for _ in range(5):
        served.record(SlateStub())  # type: ignore[arg-type]
    served.erase("u")
    served.flush()
    assert served.kept == 5
    assert log.read().height == 0
