"""Whatever a topic holds, its consumers go on with the next message, also after a restart.

TIDEMILL_FUZZ_EXAMPLES sets the drawn examples for each topic (default 8; the long form: 2,000).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings

from benchmarks.fuzz.messages import (
    ADDED,
    ITEM,
    NOW,
    VALID,
    bad_messages,
    plain_messages,
    with_value,
)
from features.live.worker import fold_delivery, fold_input_schema
from features.memory_store import MemoryFeatureStore
from streams.bus.contract import Bus, Outgoing
from streams.bus.delivery import combine, in_order
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue, CatalogueLog, consume_catalogue
from streams.contract.bounds import future_limit_ms
from streams.contract.clock import ManualClock
from streams.contract.events import CATALOGUE_EVENT, CatalogueEvent
from streams.contract.schema import to_ipc
from streams.contract.topics import (
    ADMITTED,
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    CATALOGUE,
    ENTITY_TOPIC,
    ERASURES,
    EVENTS_BY_ITEM,
    EVENTS_BY_USER,
    topic_specs,
)
from streams.erasure import ErasureJournal, consume_erasures, erasure_message
from streams.event_log import EventLog
from streams.feedback.store import FeedbackStore
from streams.ingest import fanout, sequencer, service
from streams.ingest.dead_letters import (
    DeadLetterWriter,
    dead_letter_message,
    scan_dead_letters,
)
from streams.ingest.fanout import FanOut
from streams.ingest.loop import IngestConfig, IngestLoop
from streams.ingest.replay import replay
from streams.ingest.sequencer import Sequencer
from streams.ingest.service import Batcher
from streams.workers.config import WorkerConfig
from streams.workers.driver import FetchedMessage
from streams.workers.worker import _Worker

CLOCK = ManualClock(NOW)
LATEST = partial(future_limit_ms, CLOCK)
EXAMPLES = int(os.environ.get("TIDEMILL_FUZZ_EXAMPLES", "8"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def _bus(topic: str, messages: Sequence[Outgoing], good: Sequence[Outgoing]) -> Bus:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    bus.producer().send([*good[:1], *messages, *good[1:]])
    assert topic in {message.topic for message in good}
    return bus


def _until(
    condition: Callable[[], bool], stop: threading.Event, work: Callable[[], object]
) -> None:
    """Runs a consumer until the condition holds; what it raises is raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 60
    while not condition() and not failures and time.monotonic() < deadline:
        time.sleep(0.001)
    stop.set()
    thread.join()
    if failures:
        raise failures[0]
    assert condition()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MIN_POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(sequencer, "_MIN_POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(sequencer, "_LINGER_S", 0.0)
    monkeypatch.setattr(service, "_MIN_POLL_INTERVAL_S", 0.0)


@FUZZ
@given(bad_messages(CATALOGUE))
@example(plain_messages(CATALOGUE))
def test_the_catalogue_goes_on(messages: list[Outgoing]) -> None:
    good = [
        Outgoing(CATALOGUE, json.dumps(with_value(ADDED, ("item", "video_id"), name)).encode())
        for name in ("first", "last")
    ]
    bus = _bus(CATALOGUE, messages, good)
    with TemporaryDirectory() as folder:
        for group in ("before", "restarted"):  # which reads the topic from its start
            catalogue = _followed_catalogue(bus, group, Path(folder))
            assert catalogue.available("first")
            assert CatalogueLog(Path(folder)).load().available("last")
            assert {"first", "last"} <= set(catalogue.to_frame()["video_id"])


def _followed_catalogue(bus: Bus, group: str, folder: Path) -> Catalogue:
    """What a consumer knows once it has read the last good item."""
    log, catalogue, stop = CatalogueLog(folder), Catalogue(), threading.Event()
    writer = DeadLetterWriter(bus, CLOCK)

    def take(events: list[CatalogueEvent]) -> None:
        log.append(events)
        for event in events:
            catalogue.apply(event)

    def work() -> None:
        consume_catalogue(bus, take, stop, group=group, latest_ms=LATEST, on_rejected=writer)

    _until(lambda: catalogue.available("last"), stop, work)
    return catalogue


@FUZZ
@given(bad_messages(ERASURES))
@example(plain_messages(ERASURES))
def test_erasures_go_on_in_every_process(messages: list[Outgoing]) -> None:
    good = [erasure_message(name, NOW) for name in ("first", "last")]
    bus = _bus(ERASURES, messages, good)
    with TemporaryDirectory() as folder:
        for group in ("before", "restarted"):
            erased = _erased(bus, group, Path(folder))
            assert "first" in erased
            assert ErasureJournal(Path(folder) / "erasures.jsonl").read()["last"] == NOW


def _erased(bus: Bus, group: str, folder: Path) -> list[str]:
    """The users that a process has erased once it has read the last good erasure."""
    erased: list[str] = []
    stop = threading.Event()
    log, journal = EventLog(folder / "log"), ErasureJournal(folder / "erasures.jsonl")
    feedback = FeedbackStore(folder / "feedback", key=b"k" * 32, windows_ms={"play": 1})
    store = MemoryFeatureStore()
    stores = [journal.append, log.erase, feedback.erase, store.erase]
    stores.append(lambda user, _: erased.append(user))

    def work() -> None:
        consume_erasures(bus, stores, stop, group=group, latest_ms=LATEST)

    _until(lambda: "last" in erased, stop, work)
    journal.restore(bus, LATEST)
    _run([Batcher(bus, CLOCK, IngestConfig())])
    return erased


def _run(loops: Sequence[IngestLoop]) -> None:
    """Each loop until its input is read."""
    for loop in loops:
        while loop.run_once(0.0):
            pass
        loop.close()


def _batch(event_table: Callable[..., pa.Table], name: str) -> bytes:
    table = event_table([{"event_id": name, "user_id": name, "video_id": "v"}])
    return to_ipc(table.combine_chunks().to_batches()[0])


def _event(name: str) -> bytes:
    return json.dumps(VALID[BEHAVIOUR] | {"event_id": name, "user_id": name}).encode()


def _loops(bus: Bus, group: str) -> dict[str, list[Callable[[], IngestLoop]]]:
    alone, shared = IngestConfig(group=group), IngestConfig(group=group, replicas=2)
    return {
        BEHAVIOUR: [lambda: Batcher(bus, CLOCK, alone), lambda: Batcher(bus, CLOCK, shared)],
        BEHAVIOUR_DEAD: [lambda: Batcher(bus, CLOCK, alone)],
        ADMITTED: [lambda: Sequencer(bus, CLOCK, shared)],
        EVENTS_BY_USER: [lambda: FanOut(bus, alone)],
    }


WRITTEN = {
    BEHAVIOUR: EVENTS_BY_USER, BEHAVIOUR_DEAD: EVENTS_BY_USER, ADMITTED: EVENTS_BY_USER,
    EVENTS_BY_USER: EVENTS_BY_ITEM,
}  # fmt: skip


@pytest.mark.parametrize("topic", list(WRITTEN))
def test_the_ingest_loops_go_on(topic: str, event_table: Callable[..., pa.Table]) -> None:
    @FUZZ
    @given(bad_messages(topic))
    @example(plain_messages(topic))
    def go_on(messages: list[Outgoing]) -> None:
        internal = topic in (ADMITTED, EVENTS_BY_USER)
        good = [
            Outgoing(topic, _batch(event_table, name), partition=0)
            if internal
            else Outgoing(BEHAVIOUR, _event(name), partition=0)
            for name in ("first", "last")
        ]
        bus = _bus(topic if internal else BEHAVIOUR, messages, good)
        for group in ("before", "restarted"):
            before = bus.ends(WRITTEN[topic])[0][1]
            _run([make() for make in _loops(bus, group)[topic]])
            if group == "before":
                assert bus.ends(WRITTEN[topic])[0][1] > before
        replay(bus, lambda dead: dead.record.value)

    go_on()


def test_dead_letters_go_on() -> None:
    @FUZZ
    @given(bad_messages(BEHAVIOUR_DEAD))
    @example(plain_messages(BEHAVIOUR_DEAD))
    def go_on(messages: list[Outgoing]) -> None:
        bus = MemoryBus()
        bus.ensure_topics(topic_specs(1))
        record = next(
            iter(_bus(BEHAVIOUR, [], [Outgoing(BEHAVIOUR, b"{")]).scan(BEHAVIOUR, 0, 0, 1))
        )
        good = dead_letter_message(record, "not_json", "why", "id", NOW)
        bus.producer().send([good, *messages, good._replace(value=b"[")])
        assert [d.record.value for d in scan_dead_letters(bus)] == [b"{", b"["]
        assert replay(bus, lambda dead: dead.record.value).sent == 2

    go_on()


@pytest.mark.parametrize("topic", list(ENTITY_TOPIC.values()))
def test_workers_go_on(
    topic: str, event_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory
) -> None:
    entity: Any = next(name for name, own in ENTITY_TOPIC.items() if own == topic)

    class Ids:
        def confirm(self, *_: object) -> str:
            return "id"

    @FUZZ
    @given(bad_messages(topic))
    @example(plain_messages(topic))
    def go_on(messages: list[Outgoing]) -> None:
        path = tmp_path_factory.mktemp("worker")
        log = EventLog(path / "log")
        feedback = FeedbackStore(path / "feedback", key=b"k" * 32, windows_ms={"play": 1})
        store = MemoryFeatureStore()
        fold = fold_delivery(store, entity, clock=CLOCK)
        write = {topic: in_order(log.append, feedback.join)} if topic == EVENTS_BY_USER else {}
        values = [_batch(event_table, "first"), *(m.value for m in messages)]
        values.append(_batch(event_table, "last"))
        headers: list[Any] = [{}, *(m.headers for m in messages), {}]
        fetched = [
            FetchedMessage(topic, 0, offset, value or b"", own, 0.0)
            for offset, (value, own) in enumerate(zip(values, headers, strict=True))
        ]
        config = WorkerConfig(bootstrap_servers="", data_dir=path)
        folds = WorkerConfig(
            bootstrap_servers="", data_dir=path, schemas={topic: fold_input_schema(entity)}
        )
        for handlers, own_config in ((write, config), ({topic: fold}, folds)):
            if handlers:
                worker = _Worker(handlers, Ids(), own_config)  # type: ignore[arg-type]
                worker._process(topic, fetched)
                for one in fetched:
                    worker._process(topic, [one])
        if write:
            assert sorted(log.read()["event_id"]) == ["first", "last"]
        assert combine([worker._decode(each, "id") for each in fetched]).table.num_rows == 2

    go_on()


def test_a_broken_catalogue_event_is_a_dead_letter_with_its_cause_and_fix() -> None:
    """Among them the messages that vanished without a trace."""
    causes = {
        b'{"video_id": "x2", "title": "T"}': ("missing_field", "item_added"),
        json.dumps(with_value(ADDED, ("item", "author_id"), "")).encode(): (
            "out_of_bounds", "author_id",
        ),
        json.dumps(with_value(ADDED, ("item", "created_ms"), NOW // 1_000)).encode(): (
            "out_of_bounds", "seconds: multiply by 1000",
        ),
        json.dumps(with_value(ADDED, ("event_time_ms",), NOW * 1_000)).encode(): (
            "out_of_bounds", "microseconds: divide by 1000",
        ),
        json.dumps(with_value(ADDED, ("event_time_ms",), NOW + 10**9)).encode(): (
            "future", f"event_time_ms {NOW + 10**9}",
        ),
        b"{": ("not_json", ""),
    }  # fmt: skip
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    bus.producer().send([Outgoing(CATALOGUE, value, b"k", headers={"h": b"1"}) for value in causes])
    stop = threading.Event()
    writer = DeadLetterWriter(bus, CLOCK)
    _until(
        lambda: len(list(scan_dead_letters(bus))) == len(causes),
        stop,
        lambda: consume_catalogue(
            bus, lambda _: None, stop, group="g", latest_ms=LATEST, on_rejected=writer
        ),
    )
    for offset, dead in enumerate(scan_dead_letters(bus)):
        cause, detail = causes[dead.record.value or b""]
        assert (dead.cause.cause, dead.cause.topic) == (cause, CATALOGUE)
        assert detail in dead.cause.detail
        assert (dead.cause.offset, dead.cause.topic_id) == (offset, bus.topic_id(CATALOGUE))
        assert (dead.record.key, dead.record.headers) == (b"k", (("h", b"1"),))


def test_a_message_that_a_store_cannot_apply_is_a_dead_letter_and_the_others_are_applied() -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    bus.producer().send([erasure_message(user, NOW) for user in ("a", "bad", "z")])
    erased: set[str] = set()

    def erase(user: str, _: int) -> None:
        if user == "bad":
            raise OverflowError("too large")
        erased.add(user)

    stop, writer = threading.Event(), DeadLetterWriter(bus, CLOCK)
    _until(
        lambda: bool(list(scan_dead_letters(bus))),
        stop,
        lambda: consume_erasures(bus, [erase], stop, group="g", on_rejected=writer),
    )
    (dead,) = scan_dead_letters(bus)
    assert (dead.cause.cause, dead.cause.topic, dead.cause.offset) == ("failed", ERASURES, 1)
    assert erased == {"a", "z"}


def test_a_daily_replay_changes_nothing() -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    bus.producer().send([Outgoing(BEHAVIOUR, b"broken", b"k", headers={"h": b"1"})])
    sent = []
    for _ in range(4):
        _run([Batcher(bus, CLOCK, IngestConfig())])
        done = replay(bus, lambda dead: dead.record.value)
        sent.append((done.sent, done.known))
    assert sent == [(1, 0), (0, 2), (0, 2), (0, 2)]
    assert len(list(scan_dead_letters(bus))) == 2
    assert replay(bus, lambda _: b"repaired", again=False).sent == 1
    assert replay(bus, lambda dead: dead.record.value, again=True).sent == 1


def test_catalogue_events_that_the_contract_accepts_fit_every_reader() -> None:
    latest = CATALOGUE_EVENT.validate_python(
        with_value(ADDED, ("item",), {**ITEM, "duration_ms": 30 * 86_400_000, "price_cents": 10**9})
    )
    catalogue = Catalogue()
    catalogue.apply(latest)
    assert catalogue.to_frame()["price_cents"].to_list() == [10**9]
