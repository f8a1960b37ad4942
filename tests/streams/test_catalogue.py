"""The catalogue follows the order of its topic, and its log holds each event once."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import catalogue as catalogue_module
from streams.bus.contract import Bus, Outgoing
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue, CatalogueLog, consume_catalogue
from streams.codec import inputs
from streams.codec.inputs import RejectedRecord
from streams.contract.events import CATALOGUE_EVENT, CatalogueEvent
from streams.contract.topics import CATALOGUE, TopicSpec

T0 = 1_700_000_000_000


def _added(item_id: str, at: int, title: str = "t", event_id: str | None = None) -> CatalogueEvent:
    item = {"video_id": item_id, "title": title, "genres": ("drama",)}
    body = {
        "kind": "item_added",
        "event_id": event_id or f"{item_id}@{at}",
        "event_time_ms": T0 + at,
    }
    return CATALOGUE_EVENT.validate_python({**body, "item": item})


def _down(item_id: str, at: int) -> CatalogueEvent:
    body = {"kind": "item_taken_down", "event_id": f"{item_id}-{at}", "event_time_ms": T0 + at}
    return CATALOGUE_EVENT.validate_python({**body, "video_id": item_id})


_EVENTS = st.lists(
    st.builds(
        lambda item_id, at, down: (
            _down(item_id, at) if down else _added(item_id, at, f"{item_id}{at}")
        ),
        st.sampled_from("abc"),
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=20,
)


def _fold(events: list[CatalogueEvent]) -> Catalogue:
    catalogue = Catalogue()
    for event in events:
        catalogue.apply(event)
    return catalogue


@given(_EVENTS)
def test_repeats_change_nothing(events: list[CatalogueEvent]) -> None:
    catalogue = _fold(events)
    version = catalogue.version
    for event in events:
        assert not catalogue.would_change(event)
        assert not catalogue.apply(event)
    assert catalogue.version == version


@given(_EVENTS)
def test_the_last_event_in_the_log_wins_whatever_the_clocks_say(
    events: list[CatalogueEvent],
) -> None:
    catalogue = Catalogue()
    for number, event in enumerate(events):
        event = event.model_copy(update={"event_id": f"{number}"})
        expected = catalogue.would_change(event)
        assert catalogue.apply(event) == expected
        item_id = event.video_id if event.kind == "item_taken_down" else event.item.video_id
        assert catalogue.available(item_id) == (event.kind != "item_taken_down")
        if event.kind != "item_taken_down":
            assert catalogue.get(item_id) == event.item


def test_an_item_taken_down_is_known_but_not_available() -> None:
    catalogue = _fold([_added("a", 1, "film"), _added("b", 1), _down("a", 2)])
    assert catalogue.available_ids() == ["b"]
    item = catalogue.get("a")
    assert item is not None
    assert item.title == "film"
    assert not catalogue.available("a")
    assert catalogue.to_frame()["available"].to_list() == [False, True]


def test_an_item_added_again_is_available_again() -> None:
    assert _fold([_added("a", 1), _down("a", 2), _added("a", 3)]).available("a")


def test_an_unknown_item_is_not_available() -> None:
    assert not Catalogue().available("unknown")
    assert Catalogue().get("unknown") is None
    assert Catalogue().to_frame().height == 0


def test_the_version_grows_only_with_a_change() -> None:
    catalogue = Catalogue()
    assert catalogue.apply(_added("a", 5))
    assert not catalogue.apply(_added("a", 5))  # a repeat
    assert not catalogue.apply(_added("a", 6))  # the same description
    assert not catalogue.apply(_down("b", 7))  # never there
    assert catalogue.version == 1
    assert catalogue.apply(_down("a", 4))
    assert not catalogue.apply(_down("a", 8))
    assert catalogue.version == 2


def test_many_events_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "_MERGED_AT", 3)
    events = [_added("a", at, f"{at}") for at in range(20)]
    catalogue = _fold(events)
    assert not any(map(catalogue.apply, events))
    assert catalogue.apply(_added("a", 20, "20"))


def test_the_log_keeps_each_event_once_across_writers(tmp_path: Path) -> None:
    one, two = CatalogueLog(tmp_path), CatalogueLog(tmp_path)
    events = [_added("a", 1), _added("b", 2), _down("a", 3)]
    assert one.append(events[:2]) == 2
    assert two.append(events) == 1
    assert one.append(events) == 0
    assert list(CatalogueLog(tmp_path).events()) == events
    assert CatalogueLog(tmp_path).load().available_ids() == ["b"]


@pytest.mark.parametrize("torn", [1, 20, 60])
def test_a_torn_last_line_is_written_again(tmp_path: Path, torn: int) -> None:
    log = CatalogueLog(tmp_path)
    log.append([_added("a", 1), _added("b", 2)])
    log.path.write_bytes(log.path.read_bytes()[:-torn])
    assert CatalogueLog(tmp_path).load().available_ids() == ["a"]
    assert CatalogueLog(tmp_path).append([_added("a", 1), _added("b", 2)]) == 1
    assert CatalogueLog(tmp_path).load().available_ids() == ["a", "b"]


def test_a_missing_log_is_an_empty_catalogue(tmp_path: Path) -> None:
    assert len(CatalogueLog(tmp_path / "none").load()) == 0


def test_an_invalid_record_does_not_block_valid_ones(bus: Bus, unique: str) -> None:
    bus.ensure_topics([TopicSpec(CATALOGUE, 1)])
    mine = f"film-{unique}"
    good = CATALOGUE_EVENT.dump_json(_added(mine, 1))
    values: list[bytes | None] = [b"\xff{", None, good, b'{"kind": "eaten"}']
    bus.producer().send([Outgoing(CATALOGUE, value, mine.encode()) for value in values])
    catalogue, rejected = Catalogue(), list[RejectedRecord]()
    stop = threading.Event()

    def take(events: list[CatalogueEvent]) -> None:
        for event in events:
            catalogue.apply(event)

    def collect(found: Sequence[RejectedRecord]) -> None:
        rejected.extend(each for each in found if each.record.key == mine.encode())
        if len(rejected) == 3:
            stop.set()

    timer = threading.Timer(30, stop.set)
    timer.start()
    consume_catalogue(bus, take, stop, group=f"g-{unique}", on_rejected=collect)
    timer.cancel()
    assert catalogue.available(mine)
    assert [(each.record.value, each.cause) for each in rejected] == [
        (b"\xff{", "not_json"),
        (None, "null_value"),
        (b'{"kind": "eaten"}', "unknown_kind"),
    ]


OLD_LINES = {
    "a time beyond int64": {"created_ms": 10**19},
    "a time in microseconds": {"created_ms": T0 * 1_000},
    "a negative time": {"created_ms": -1},
    "an endless item": {"duration_ms": 10**18},
    "a price beyond int64": {"price_cents": 10**30},
}


@pytest.mark.parametrize("own", OLD_LINES.values(), ids=list(OLD_LINES))
def test_a_stored_line_without_bounds_is_set_aside(
    tmp_path: Path, own: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """As written before the fields had bounds: `up` must not fail, and PUT works again."""
    good, later = _added("a", 1), _added("b", 2)
    bad = json.loads(CATALOGUE_EVENT.dump_json(_added("bad", 1)))
    bad["item"] |= own
    stamped = json.loads(CATALOGUE_EVENT.dump_json(_added("a", 3, "stamped in microseconds")))
    stamped["event_time_ms"] *= 1_000
    lines = [CATALOGUE_EVENT.dump_json(good), *(json.dumps(e).encode() for e in (bad, stamped))]
    lines += [b"\xff\x00", b"{", b"", b"null", CATALOGUE_EVENT.dump_json(later)]
    (tmp_path / "catalogue.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    log = CatalogueLog(tmp_path)
    catalogue = log.load()
    assert catalogue.available_ids() == ["a", "b"]
    assert catalogue.to_frame().height == 2
    assert "catalogue.jsonl" in caplog.text
    assert log.append([good, _added("a", 4, "put again")]) == 1
    item = CatalogueLog(tmp_path).load().get("a")
    assert item is not None
    assert item.title == "put again"


def test_a_full_disk_loses_no_event_and_does_not_end_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, failures = CatalogueLog(tmp_path), [OSError(28, "No space left on device")] * 2

    def fsync(_: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(inputs, "RETRY_S", 0.0)
    bus, stop = MemoryBus(), threading.Event()
    bus.ensure_topics([TopicSpec(CATALOGUE, 1)])
    bus.producer().send([Outgoing(CATALOGUE, CATALOGUE_EVENT.dump_json(_added("a", 1)))])

    def take(events: list[CatalogueEvent]) -> None:
        log.append(events)
        stop.set()

    consume_catalogue(bus, take, stop, group="g")
    assert [event.event_id for event in CatalogueLog(tmp_path).events()] == ["a@1"]
