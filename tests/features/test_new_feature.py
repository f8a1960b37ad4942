"""A changed declaration: refused where stored rows do not match, served after a backfill."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.cli.features import app
from features import definitions
from features.definitions import DEFINITIONS, USER, Count
from features.feast.registry import open_store
from features.memory_store import MemoryFeatureStore
from features.offline.backfill import LiveTopics, backfill
from features.offline.diff import compare_stores
from features.online.redis_store import FeastFeatureStore
from features.store import DefinitionChanged, RebuildIdChanged
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS, WallClock
from streams.contract.topics import EVENTS_BY_USER, partition_of
from streams.event_log import EventLog

T0 = 1_700_000_000_000
NOW = T0 + 6 * DAY_MS
USERS = [f"u{i}" for i in range(12)]
PARTITIONS = 3
LIVE = LiveTopics(PARTITIONS, {"user": "U"})
WIDER = replace(USER, counters=(*USER.counters, Count("query_shown")))
NEW = "query_shown_count_all"


@pytest.fixture
def declare():
    """Replaces the shipped user definition, from which those in force are built."""
    shipped = definitions.SHIPPED

    def replace_user(definition):
        definitions.SHIPPED = {**shipped, "user": definition}
        DEFINITIONS.add({})

    yield replace_user
    definitions.SHIPPED = shipped
    DEFINITIONS.add({})


@pytest.fixture
def events():
    rng = np.random.default_rng(4)
    kinds = ["query_shown", "query_click", "like", "play", "shown"]
    return [
        {
            "kind": kinds[rng.integers(len(kinds))],
            "event_time_ms": T0 + int(rng.integers(5 * DAY_MS)),
            "user_id": USERS[rng.integers(len(USERS))],
            "video_id": f"v{rng.integers(9)}",
            "query": f"q{rng.integers(9)}",
            "source_partition": place % 2,
            "source_offset": place // 2,
            "duplicate": bool(rng.random() < 0.05),
        }
        for place in range(800)
    ]


@pytest.fixture
def batches(events, event_table):
    """Deliveries of the user topic, 50 events of the stream at a time."""
    table, offsets, deliveries = event_table(events), Counter(), []
    partition_by_event = np.array([partition_of(event["user_id"], PARTITIONS) for event in events])
    for start, partition in itertools.product(range(0, len(events), 50), range(PARTITIONS)):
        picked = np.flatnonzero(partition_by_event[start : start + 50] == partition) + start
        if len(picked):
            stamp = Stamp("U", partition, offsets[partition])
            deliveries.append(Delivery(EVENTS_BY_USER, stamp, table.take(picked)))
            offsets[partition] += 1
    return deliveries


@pytest.fixture
def opened(valkey, tmp_path):
    def another(project="wider"):
        return open_store(registry_path=tmp_path / "r.db", address=valkey, db=5, project=project)

    yield another
    another().tear_down()


def fold(store, deliveries):
    for delivery in deliveries:
        store.fold("user", delivery.table, delivery.stamp)


@pytest.mark.parametrize("logged", [0.0, 0.5, 1.0])
def test_a_new_feature_appears_without_a_gap_or_a_double_count(
    logged, events, batches, declare, opened, tmp_path
):
    before = opened()
    fold(before, batches[: len(batches) * 3 // 4])
    log = EventLog(tmp_path / "log")
    for delivery in batches[: int(len(batches) * logged)]:
        log.append(delivery)
    declare(WIDER)
    caught_up = iter(batches)

    def fold_some_live(_share, _what):
        fold(opened(), itertools.islice(caught_up, 5))

    backfill(tmp_path / "log", opened(), live=LIVE, chunk_rows=120, progress=fold_some_live)
    with pytest.raises(RebuildIdChanged):
        fold(before, batches[-1:])
    fold(opened(), caught_up)
    counted = [e for e in events if not e["duplicate"] and e["kind"] == "query_shown"]
    wanted = Counter(event["user_id"] for event in counted)
    read = opened().read("user", USERS, NOW)
    assert read.columns[NEW].tolist() == [wanted[user] for user in USERS]
    truth = MemoryFeatureStore()
    fold(truth, batches)
    assert list(compare_stores("user", USERS, opened(), truth, NOW)) == []


@pytest.mark.parametrize(
    "changed",
    [
        WIDER,
        replace(USER, counters=USER.counters[1:]),
        replace(USER, lists=(replace(USER.lists[0], n=9), *USER.lists[1:])),
        replace(USER, recent=USER.recent // 2),
    ],
    ids=["one more", "one less", "a shorter list", "a shorter memory"],
)
def test_declarations_that_stored_rows_do_not_match_are_refused_at_apply(
    changed, batches, declare, opened
):
    opened().apply()
    fold(opened(), batches[:3])
    declare(changed)
    with pytest.raises(DefinitionChanged, match="tidemill features backfill --rebuild"):
        opened().apply()


def test_the_command_names_the_migration_which_brings_the_new_feature(
    declare, valkey, tmp_path, event_table, monkeypatch
):
    now = WallClock().now_ms()
    table = event_table([{"kind": "query_shown", "event_time_ms": now, "user_id": "ann"}])
    EventLog(tmp_path / "log").append(Delivery(EVENTS_BY_USER, Stamp("U", 0, 0), table))
    settings = {"HOME": tmp_path, "STORE__KIND": "external", "STORE__ADDRESS": valkey}
    for name, value in (settings | {"STORE__DB": 5}).items():
        monkeypatch.setenv(f"TIDEMILL_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        return CliRunner().invoke(app, arguments)

    try:
        assert run("backfill", "--without-broker").exit_code == 0
        declare(WIDER)
        refused = run("apply")
        assert refused.exit_code == 1
        assert "tidemill features backfill --rebuild" in refused.output
        assert run("backfill", "--rebuild", "--without-broker").exit_code == 0
        assert run("apply").exit_code == 0
        assert NEW in run("show", "user", "ann").output
        assert "0 differences" in run("diff").output
    finally:
        FeastFeatureStore(valkey, 5).tear_down()


def test_diff_counts_the_differences_that_it_does_not_print(
    valkey, tmp_path, event_table, monkeypatch
):
    now = WallClock().now_ms()
    likes = [{"kind": "like", "event_time_ms": now, "user_id": f"u{i}"} for i in range(3)]
    for name, value in {"STORE__KIND": "external", "STORE__ADDRESS": valkey}.items():
        monkeypatch.setenv(f"TIDEMILL_{name}", value)
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
    monkeypatch.setenv("TIDEMILL_STORE__DB", "5")
    monkeypatch.setenv("COLUMNS", "200")
    store = FeastFeatureStore(valkey, 5)
    try:
        store.fold("user", event_table(likes), Stamp("U", 0, 0))
        whole = CliRunner().invoke(app, ["diff", "--limit", "1000"])
        some = CliRunner().invoke(app, ["diff", "--limit", "2"])
        found = sum(f"│ u{i} " in line for line in whole.output.splitlines() for i in range(3))
        assert whole.exit_code == some.exit_code == 1
        assert found > 20
        assert f"{found} differences" in whole.output
        assert f"{found} differences, 2 of them here" in some.output
    finally:
        store.tear_down()
