"""The replay: in order, once, marked as history, resumable after any stop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from deploy.simulation import replay
from deploy.simulation.history import History
from streams.bus.contract import BusError, Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.contract.events import CATALOGUE_EVENT, KIND_CODE
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import BEHAVIOUR, CATALOGUE, topic_specs
from streams.event_log import EventLog

SMALL = 12_000


@pytest.fixture(scope="module")
def short(past: History) -> History:
    return dataclasses.replace(past, frame=past.frame.head(SMALL))


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    return bus


def _records(bus: MemoryBus, topic: str) -> list[Record]:
    return [r for p, (low, high) in bus.ends(topic).items() for r in bus.scan(topic, p, low, high)]


def _ids(records: Sequence[Record]) -> list[str]:
    return [json.loads(record.value or b"")["event_id"] for record in records]


class _Stopping(MemoryBus):
    """A bus whose producer fails after so many writes."""

    def __init__(self, inner: MemoryBus, writes: int) -> None:
        self.inner, self.writes = inner, writes

    def topic_id(self, topic: str) -> str:
        return self.inner.topic_id(topic)

    def producer(self, *_: object, **__: object) -> _Stopping:  # type: ignore[override]
        return self

    def send(self, messages: Sequence[Outgoing]) -> None:
        if self.writes == 0:
            raise BusError("the broker went away")
        self.writes -= 1
        self.inner.producer().send(messages)

    def close(self) -> None: ...


@pytest.fixture
def no_progress() -> Callable[[int], None]:
    return lambda *_: None


def test_every_event_goes_out_once_marked_as_history(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    sent = replay.replay(bus, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
    records = _records(bus, BEHAVIOUR)
    assert sent == SMALL
    assert sorted(_ids(records)) == sorted(short.frame["event_id"])
    assert {record.header("tidemill-replay") for record in records} == {b"1"}


def test_the_catalogue_goes_out_whole(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    replay.replay(bus, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
    added = [CATALOGUE_EVENT.validate_json(r.value or b"") for r in _records(bus, CATALOGUE)]
    assert [event.item for event in added if event.kind == "item_added"] == short.items


def test_a_users_events_keep_their_order(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    replay.replay(bus, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
    user = short.frame["user_id"][0]
    mine = [i for i in _ids(_records(bus, BEHAVIOUR)) if i.startswith(f"ml:{user}:")]
    assert mine == short.frame.filter(user_id=user)["event_id"].to_list()


def test_a_stopped_replay_continues_where_it_stopped(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    with pytest.raises(BusError):
        replay.replay(
            _Stopping(bus, 2), short, tmp_path, progress=no_progress, log_dir=tmp_path / "log"
        )
    reached: list[int] = []
    replay.replay(
        bus,
        short,
        tmp_path,
        progress=reached.append,
        log_dir=tmp_path / "log",
    )
    assert reached == [replay.WRITE_RECORDS, 2 * replay.WRITE_RECORDS, SMALL]
    assert sorted(_ids(_records(bus, BEHAVIOUR))) == sorted(short.frame["event_id"])


def test_a_finished_replay_sends_nothing_again(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    replay.replay(bus, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
    assert replay.replay(bus, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log") == 0
    assert len(_records(bus, BEHAVIOUR)) == SMALL


def test_a_recreated_topic_gets_only_events_that_the_log_lacks(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    with pytest.raises(BusError):
        replay.replay(
            _Stopping(bus, 2), short, tmp_path, progress=no_progress, log_dir=tmp_path / "log"
        )
    logged = short.frame.head(4_000)
    codes = [KIND_CODE[kind] for kind in logged["kind"]]
    columns = {**logged.to_dict(as_series=False), "kind": codes}
    table = pa.table({name: columns[name] for name in EVENT_SCHEMA.names}, schema=EVENT_SCHEMA)
    EventLog(tmp_path / "log").append(Delivery("events.by_user", Stamp("first", 0, 0), table))
    fresh = MemoryBus()
    fresh.ensure_topics(topic_specs(2))
    sent = replay.replay(fresh, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
    assert sent == SMALL - 4_000
    assert not set(_ids(_records(fresh, BEHAVIOUR))) & set(logged["event_id"])


def test_another_shift_in_time_is_refused(
    bus: MemoryBus, short: History, tmp_path: Path, no_progress: Callable[[int], None]
) -> None:
    replay.replay(bus, short, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
    moved = dataclasses.replace(short, shift_ms=short.shift_ms + 1)
    with pytest.raises(replay.OtherHistory, match="TIDEMILL_HOME"):
        replay.replay(bus, moved, tmp_path, progress=no_progress, log_dir=tmp_path / "log")
