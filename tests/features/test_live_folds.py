"""Live folds retry while the store is down, count every event once, and record freshness."""

from __future__ import annotations

import threading
import time

import pytest

from deploy.services import process
from deploy.services.valkey import Valkey
from features.definitions import DEFINITIONS
from features.live.freshness import Freshness, read_freshness
from features.live.worker import consumer_group, fold_delivery, fold_input_schema
from features.memory_store import MemoryFeatureStore
from features.online.redis_store import FeastFeatureStore
from features.store import DefinitionChanged, RebuildIdChanged, Status, StoreDown
from streams.bus.contract import Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.contract.clock import ManualClock
from streams.contract.events import KIND_CODE
from streams.contract.topics import ERASURES, EVENTS_BY_USER, topic_specs
from streams.erasure import consume_erasures

NOW = 1_700_000_000_000


@pytest.fixture
def delivery(event_table):
    def build(offset: int, *likes: int) -> Delivery:
        events = [
            {"kind": "like", "event_time_ms": at, "event_id": f"{offset}-{at}", "video_id": "v"}
            for at in likes
        ]
        return Delivery(EVENTS_BY_USER, Stamp("one", 0, offset), event_table(events))

    return build


def likes(store) -> int:
    return int(store.read("user", ["u"], NOW + 1000).columns["like_count_all"][0])


class Flaky(MemoryFeatureStore):
    """Fails `failures` times; every second failure comes after the write."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def fold(self, entity, events, stamp):
        if self.failures:
            self.failures -= 1
            if self.failures % 2:
                super().fold(entity, events, stamp)
            raise StoreDown("no answer")
        return super().fold(entity, events, stamp)


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_a_store_that_was_down_counts_each_event_once(delivery, failures):
    store, waits = Flaky(failures), []
    handle = fold_delivery(store, "user", sleep=waits.append)
    handle(delivery(0, NOW, NOW + 1))
    handle(delivery(1, NOW + 2))
    assert likes(store) == 3
    assert len(waits) == failures
    assert waits == sorted(waits)


def test_the_store_s_error_is_raised_when_retries_end(delivery):
    handle = fold_delivery(Flaky(10**6), "user", retry_for_s=5, sleep=lambda _: None)
    with pytest.raises(StoreDown, match="no answer"):
        handle(delivery(0, NOW))


@pytest.mark.parametrize("entity", DEFINITIONS)
def test_a_fold_of_the_declared_input_columns_equals_a_fold_of_all(entity, event_table):
    named = {"video_id": "v", "author_id": "a", "query": "q", "dwell_ms": 7, "amount_cents": 9}
    events = [
        {"kind": kind, "event_time_ms": NOW + place, "duplicate": place == 3, **named}
        for place, kind in enumerate(KIND_CODE)
    ]
    whole, some = MemoryFeatureStore(), MemoryFeatureStore()
    table, names = event_table(events), fold_input_schema(entity).names
    for store, columns in ((whole, table), (some, table.select(names))):
        fold_delivery(store, entity)(Delivery("t", Stamp("one", 0, 1), columns))
    assert len(names) < len(table.column_names)
    assert whole._rows == some._rows != MemoryFeatureStore()._rows


def test_a_dead_server_raises_store_down_with_its_address(free_port, delivery):
    store = FeastFeatureStore(f"127.0.0.1:{free_port}", 0, timeout_s=0.5)
    assert not store.healthy()
    for ask in (
        lambda: store.read("user", ["u"], NOW),
        lambda: store.fold("user", delivery(0, NOW).table, Stamp("one", 0, 0)),
        lambda: store.erase("u"),
    ):
        with pytest.raises(StoreDown, match=rf"127.0.0.1:{free_port}.*tidemill status"):
            ask()


def test_a_restarted_server_is_detected_and_refilled_from_the_start(tmp_path, free_port, delivery):
    server = Valkey(tmp_path, port=free_port)
    deliveries = [delivery(i, NOW + i) for i in range(4)]
    child = process.start(server, 20)
    store = FeastFeatureStore(server.address, 0, cached_rows=100)
    handle = fold_delivery(store, "user", retry_for_s=0.5, sleep=time.sleep)
    try:
        handle(deliveries[0])
        handle(deliveries[1])
    finally:
        child.stop()
    with pytest.raises(StoreDown):
        handle(deliveries[2])
    child = process.start(server, 20)
    try:
        assert store.healthy()
        assert store.read("user", ["u"], NOW).status[0] == Status.ABSENT
        with pytest.raises(RebuildIdChanged):
            handle(deliveries[2])
        again = FeastFeatureStore(server.address, 0, cached_rows=100)
        assert consumer_group("f", again.rebuild_id()) != consumer_group("f", store.rebuild_id())
        for each in deliveries:
            fold_delivery(again, "user")(each)
        assert likes(store) == 4
    finally:
        child.stop()


def test_two_workers_on_one_row_lose_nothing(valkey, online, delivery):
    """A zombie and its successor fold the same deliveries concurrently, from stale caches."""
    twin = FeastFeatureStore(valkey, 0, online.project, cached_rows=1000)
    deliveries = [delivery(i, NOW + i, NOW + 500 + i) for i in range(60)]
    errors: list[Exception] = []

    def work(store) -> None:
        try:
            for each in deliveries:
                fold_delivery(store, "user")(each)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in (online, twin)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert errors == []
    assert likes(online) == 120


def test_two_workers_on_different_partitions_of_one_row_both_count(valkey, online, event_table):
    twin = FeastFeatureStore(valkey, 0, online.project, cached_rows=1000)

    def work(store, partition) -> None:
        for offset in range(40):
            event = {"kind": "like", "event_time_ms": NOW, "event_id": f"{partition}-{offset}"}
            store.fold("user", event_table([event]), Stamp("one", partition, offset))

    threads = [threading.Thread(target=work, args=(s, p)) for p, s in enumerate((online, twin))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert likes(online) == 80


def test_rows_of_other_declarations_are_refused_with_the_migration_command(online, monkeypatch):
    online.rebuild_id()
    connection = online.connection
    reopened = FeastFeatureStore(connection.address, connection.db, online.project)
    monkeypatch.setattr("features.online.rebuild._fingerprints", lambda: b'{"user":1}')
    with pytest.raises(DefinitionChanged, match="features backfill --rebuild"):
        reopened.rebuild_id()


def test_live_folds_record_freshness(online, delivery):
    assert read_freshness(online) == []
    clock = ManualClock(NOW + 40)
    fold_delivery(online, "user", clock=clock)(delivery(0, NOW - 9, NOW))
    assert read_freshness(online) == [Freshness("user", NOW, NOW + 40)]
    assert read_freshness(online)[0].lag_ms == 40


@pytest.mark.parametrize("value", [b"{", b"", None, b'{"user_id": "u"}'])
def test_erasures_reach_the_store_after_a_malformed_one(value, delivery):
    bus, store, stop = MemoryBus(), MemoryFeatureStore(), threading.Event()
    bus.ensure_topics(topic_specs(1))
    fold_delivery(store, "user")(delivery(0, NOW))
    good = b'{"user_id": "u", "at_ms": %d}' % NOW
    bus.producer().send([Outgoing(ERASURES, value, b"u"), Outgoing(ERASURES, good, b"u")])
    reader = threading.Thread(
        target=consume_erasures, args=(bus, [store.erase], stop), kwargs={"group": "erasures"}
    )
    reader.start()
    deadline = time.monotonic() + 10
    while likes(store) and time.monotonic() < deadline:
        time.sleep(0.02)
    stop.set()
    reader.join()
    assert likes(store) == 0


def test_erasing_again_up_to_the_same_time_keeps_later_events(store, delivery):
    store.erase("u", NOW)
    store.fold("user", delivery(0, NOW + 1).table, Stamp("one", 0, 0))
    store.erase("u", NOW)
    assert likes(store) == 1
