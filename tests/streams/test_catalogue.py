"""Laws of the catalogue: a fold without order, and a log that keeps each event once."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.bus.contract import Bus, Outgoing, Record
from streams.catalogue import Catalogue, CatalogueLog, follow
from streams.contract.events import CATALOGUE_EVENT, CatalogueEvent
from streams.contract.topics import CATALOGUE, TopicSpec


def _added(video: str, at: int, title: str = "t", event_id: str | None = None) -> CatalogueEvent:
    item = {"video_id": video, "title": title, "genres": ("drama",)}
    body = {"kind": "item_added", "event_id": event_id or f"{video}@{at}", "event_time_ms": at}
    return CATALOGUE_EVENT.validate_python({**body, "item": item})


def _down(video: str, at: int) -> CatalogueEvent:
    body = {"kind": "item_taken_down", "event_id": f"{video}-{at}", "event_time_ms": at}
    return CATALOGUE_EVENT.validate_python({**body, "video_id": video})


_EVENTS = st.lists(
    st.builds(
        lambda video, at, down: _down(video, at) if down else _added(video, at, f"{video}{at}"),
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


@given(_EVENTS, st.randoms(use_true_random=False))
def test_the_order_of_arrival_and_repeats_change_nothing(
    events: list[CatalogueEvent], rng: random.Random
) -> None:
    shuffled = [*events, *events]
    rng.shuffle(shuffled)
    assert _fold(shuffled).to_frame().equals(_fold(events).to_frame())
    assert _fold(shuffled).available_ids() == _fold(events).available_ids()


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


def test_an_unknown_video_is_not_available() -> None:
    assert not Catalogue().available("nobody")
    assert Catalogue().get("nobody") is None
    assert Catalogue().to_frame().height == 0


def test_the_version_moves_only_with_a_change() -> None:
    catalogue = Catalogue()
    assert catalogue.apply(_added("a", 5))
    assert not catalogue.apply(_added("a", 5))
    assert not catalogue.apply(_down("a", 4))
    assert catalogue.version == 1


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


def test_a_broken_record_does_not_hold_up_the_good_ones(bus: Bus, unique: str) -> None:
    bus.ensure_topics([TopicSpec(CATALOGUE, 1)])
    mine = f"film-{unique}"
    good = CATALOGUE_EVENT.dump_json(_added(mine, 1))
    values: list[bytes | None] = [b"\xff{", None, good, b'{"kind": "eaten"}']
    bus.producer().send([Outgoing(CATALOGUE, value, mine.encode()) for value in values])
    catalogue, refused = Catalogue(), list[Record]()
    stop = threading.Event()

    def take(events: list[CatalogueEvent]) -> None:
        for event in events:
            catalogue.apply(event)

    def refuse(record: Record) -> None:
        if record.key == mine.encode():
            refused.append(record)
        if len(refused) == 3:
            stop.set()

    timer = threading.Timer(30, stop.set)
    timer.start()
    follow(bus, take, stop, group=f"g-{unique}", refused=refuse)
    timer.cancel()
    assert catalogue.available(mine)
    assert [record.value for record in refused] == [b"\xff{", None, b'{"kind": "eaten"}']
