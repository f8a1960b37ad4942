"""A reader that starts from what another has read counts each record once, and forgets who was
erased meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.console.hub import EventHub
from serving.console.live import LiveReader
from serving.monitoring.metrics import Metrics
from serving.state.catalogue import LiveCatalogue
from serving.state.reached import Reached
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.contract.topics import BEHAVIOUR_DEAD, topic_specs
from streams.erasure import erasure_message

_AT = 1_700_000_000_000


def _bus() -> MemoryBus:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    return bus


def _write(bus: MemoryBus, count: int) -> None:
    bus.producer().send([Outgoing(BEHAVIOUR_DEAD, b"?")] * count)


def _reader(
    bus: MemoryBus, reached: Reached, on_erasure: Callable[[str], None] = lambda _: None
) -> LiveReader:
    return LiveReader(bus, reached, Metrics(), EventHub(), on_erasure=on_erasure)


@contextmanager
def _started(reader: LiveReader) -> Iterator[LiveReader]:
    reader.start()
    yield reader
    reader.stop()


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_each_record_is_read_once_by_those_that_go_on_from_there() -> None:
    bus, reached = _bus(), Reached(LiveCatalogue(Catalogue()))
    _write(bus, 3)
    _reader(bus, reached).read_on()
    _write(bus, 2)
    _reader(bus, reached).read_on()
    assert reached.totals["dead"] == 5
    with _started(_reader(bus, reached)) as reader:
        _write(bus, 2)
        _until(lambda: reader.totals["dead"] >= 7)
        assert reader.totals["dead"] == 7


def test_without_such_a_state_topics_are_read_from_their_start() -> None:
    bus = _bus()
    _write(bus, 3)
    with _started(_reader(bus, Reached(LiveCatalogue(Catalogue())))) as reader:
        _until(lambda: reader.totals["dead"] == 3)


def test_topics_that_were_recreated_are_read_from_their_start() -> None:
    bus, reached = _bus(), Reached(LiveCatalogue(Catalogue()))
    _write(bus, 3)
    _reader(bus, reached).read_on()
    bus.restart()
    bus.ensure_topics(topic_specs(1))
    _write(bus, 2)
    with _started(_reader(bus, reached)) as reader:
        _until(lambda: reader.totals["dead"] == 5)


def test_who_was_erased_since_is_forgotten_and_who_was_before_may_be_back() -> None:
    bus, reached, erased = _bus(), Reached(LiveCatalogue(Catalogue())), list[str]()
    bus.producer().send([erasure_message("early", _AT)])
    reader = _reader(bus, reached, erased.append)
    reader._started_ms += 3_600_000  # as for records of an hour ago
    reader.read_on()
    assert erased == []
    bus.producer().send([erasure_message("since", _AT + 1)])
    reader.read_on()
    assert erased == ["since"]
