"""Laws of features as served: an honest log shows no skew, a planted one is found and sized."""

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
from models.monitoring.served_log import SCHEMA, ServedLog, ServedSlate
from models.monitoring.skew import skew
from models.ranking.ple.inputs import VIDEO_FEATURES
from models.recipe import TrainingLog
from serving.gateway import SERVED, SKEW
from serving.monitoring.served_features import ServedFeatures
from streams.bus.contract import Bus, Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.contract.events import KIND_CODE, CatalogueItem
from streams.contract.schema import EVENT_SCHEMA, from_ipc
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.outcomes import FEEDBACK_SCHEMA

Make = Callable[..., Any]
USERS, EACH, VIDEOS = 6, 14, 60


def history() -> list[Outgoing]:
    """A few users' past, replayed: it arrived when it happened."""
    now_ms, made = time.time_ns() // 1_000_000, []
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
            made.append(Outgoing(BEHAVIOUR, orjson.dumps(event), event["user_id"].encode()))
    return made


def logged(bus: Bus, folder: Path) -> TrainingLog:
    """The event log as the facts process would have written it from the topic."""
    log, consumer = EventLog(folder), bus.consumer([EVENTS_BY_USER], f"log-{folder.name}")
    while records := consumer.poll(500, 0.3):
        for record in records:
            stamp = Stamp(bus.epoch(EVENTS_BY_USER), record.partition, record.offset)
            log.append(Delivery(EVENTS_BY_USER, stamp, from_ipc(record.value or b"")))
    none = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(none, pl.DataFrame)
    return TrainingLog(log.read(), catalogue(), none, time.time_ns() // 1_000_000 + 1)


def catalogue() -> pl.DataFrame:
    genres = ("Drama", "Comedy", "Thriller", "Sci-Fi", "Film-Noir", "Romance")
    rows = [
        CatalogueItem(
            video_id=f"v{n}",
            title=f"Video {n}",
            genres=(genres[n % 6], genres[(n // 6) % 6]),
            author_id=f"a{n % 9}",
            duration_ms=60_000 + n,
            created_ms=1_000_000 + n,
        ).model_dump()
        for n in range(VIDEOS)
    ]
    frame = pl.DataFrame([row | {"genres": list(row["genres"])} for row in rows])
    return frame.with_columns(available=pl.lit(True))


@pytest.fixture
def store() -> MemoryFeatureStore:
    return MemoryFeatureStore()


@pytest.fixture
def mill(make_mill: Make, store: MemoryFeatureStore, tmp_path: Path) -> Any:
    """A gateway behind the real batcher, sequencer and folds, with a past that is folded."""
    made = make_mill(store=store, state_dir=tmp_path / "gateway")
    made.bus.producer().send(history())
    for user in range(USERS):
        made.until(lambda u=user: len(made.engaged(f"user-{u}")) == EACH)
    made.gateway.snapshot.refresh()
    time.sleep(0.3)  # the other entities' folds end too; nothing is in flight below
    return made


def served_by(mill: Any) -> pl.DataFrame:
    mill.gateway.served.flush()
    return ServedLog(mill.deps.state_dir / SERVED).read()


def test_an_honest_log_shows_no_skew(mill: Any, tmp_path: Path) -> None:
    for user in range(USERS):
        mill.feed(f"user-{user}")
    time.sleep(0.3)
    for user in range(2):  # what is clicked now is seen in the next slate, and no skew either
        mill.act("like", f"v{user}", f"user-{user}")
        mill.until(lambda u=user: len(mill.engaged(f"user-{u}")) == EACH + 1)
    time.sleep(0.3)
    for user in range(USERS):
        mill.feed(f"user-{user}")
    mill.feed("nobody-ever")
    served = served_by(mill)
    found = skew(served, logged(mill.bus, tmp_path / "log"), in_flight_ms=100)
    assert found.clean, found.skewed
    assert found.slates == 2 * USERS + 1
    seen = np.concatenate(served["video_x"].to_list()).reshape(-1, len(VIDEO_FEATURES))
    of_authors = [n for n, name in enumerate(VIDEO_FEATURES) if "author" in name]
    varied = {VIDEO_FEATURES[n] for n in of_authors if seen[:, n].std() > 0}
    assert {"author_log_play_count_all", "log_author_engaged_by_user"} <= varied
    assert found.candidates > 50
    assert found.stale == 0


def test_a_planted_skew_is_found_and_sized(
    mill: Any, store: MemoryFeatureStore, tmp_path: Path
) -> None:
    """The store counts plays of a video and its author that the log does not hold."""
    target = mill.feed("user-0")["items"][0]["video_id"]
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
    before = served_by(mill)
    other = "v1" if int(target[1:]) % 9 != 1 else "v2"
    mill.feed("user-0", candidates=[target, other])
    served = served_by(mill).filter(~pl.col("request_id").is_in(before["request_id"].implode()))
    log = logged(mill.bus, tmp_path / "log")
    found = {each.feature: each for each in skew(served, log, in_flight_ms=100).skewed}
    for column in ("log_play_count_all", "author_log_play_count_all"):
        planted = found[f"video {column}"]
        assert planted.differing == 1
        assert planted.served > planted.joined
        assert np.expm1(planted.served) - np.expm1(planted.joined) == pytest.approx(4, abs=1e-3)
        assert planted.largest == pytest.approx(planted.served - planted.joined, abs=1e-6)
    assert not [name for name in found if name.startswith("user ")]


def test_what_was_in_flight_is_left_out_and_counted(mill: Any, tmp_path: Path) -> None:
    mill.feed("user-0")
    served = served_by(mill)
    log = logged(mill.bus, tmp_path / "log")
    soon = log.events.filter(pl.col("user_id") == "user-0").head(1)
    at = int(served["served_at_ms"][0]) - 5
    soon = soon.with_columns(event_id=pl.lit("new"), event_time_ms=at, ingested_at_ms=at)
    late = replace(log, events=pl.concat([log.events, soon]).sort("event_time_ms", "event_id"))
    assert not skew(served, late, in_flight_ms=0).clean
    found = skew(served, late, in_flight_ms=50)
    assert found.clean
    assert (found.slates, found.in_flight) == (0, 1)


def test_erasure_reaches_what_was_served(mill: Any) -> None:
    mill.feed("user-0")
    mill.feed("user-1")
    assert mill.client.delete("/v1/users/user-0").status_code == 202
    assert set(served_by(mill)["user_id"]) == {"user-1"}


def test_the_metric_tells_the_last_check(mill: Any) -> None:
    body = {"slates": 3, "candidates": 30, "differing": {"video log_price": 7}}
    (mill.deps.state_dir / SKEW).write_bytes(orjson.dumps(body))
    mill.feed("user-0")
    mill.gateway.served.flush()
    told = mill.client.get("/metrics").text
    assert 'tidemill_feature_skew{feature="video log_price"} 7.0' in told
    assert 'tidemill_feature_skew_checked{what="candidates"} 30.0' in told
    assert 'tidemill_served_slates{outcome="kept"} 1.0' in told


def slate(n: int) -> ServedSlate:
    one = np.zeros(3, np.float32)
    wide = np.zeros(len(VIDEO_FEATURES), np.float32)
    return ServedSlate(f"r{n}", f"u{n % 2}", n, "r1", False, one, np.zeros(2, int), ("v",), wide)


def test_the_log_is_bounded_and_reads_newest(tmp_path: Path) -> None:
    log = ServedLog(tmp_path, keep_files=3)
    for n in range(5):
        log.append([slate(n)])
    assert log.read()["request_id"].to_list() == ["r2", "r3", "r4"]
    assert log.read(1)["request_id"].to_list() == ["r4"]
    assert ServedLog(tmp_path / "none").read().schema == SCHEMA


class Seen:
    """A slate of user `u` as the ranker saw it."""

    query = type("Q", (), {"request_id": "r", "user_id": "u", "now_ms": 1, "stale": False,
                           "release": type("R", (), {"release_id": "r1"})})  # fmt: skip
    items = (type("C", (), {"video_id": "v"}),)
    seen = {"user_x": np.zeros(1), "history": np.zeros(1, int), "video_x": np.zeros((1, 1))}  # noqa: RUF012
    weights, log_density = {}, None


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    kept = ServedFeatures(ServedLog(Path("/nowhere")), depth=2)
    for _ in range(5):
        kept.keep(Seen())  # type: ignore[arg-type]
    assert kept.dropped == 3


def test_an_erased_user_is_gone_from_a_queue_longer_than_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.monitoring.served_features._GATHER", 2)
    log = ServedLog(tmp_path)
    kept = ServedFeatures(log)
    for _ in range(5):
        kept.keep(Seen())  # type: ignore[arg-type]
    kept.erase("u")
    kept.flush()
    assert kept.kept == 5
    assert log.read().height == 0
