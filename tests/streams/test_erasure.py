"""An erasure on the topic empties every store; an invalid record is ignored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from streams.bus.contract import Bus, Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.contract.impression import Impression, sign
from streams.contract.topics import ERASURES, EVENTS_BY_USER, TopicSpec
from streams.erasure import ErasureJournal, Erasures, consume_erasures, erasure_message
from streams.event_log import EventLog
from streams.feedback.store import FeedbackStore, read_feedback

T0 = 1_700_000_000_000
KEY = b"k" * 32


def _shown(user: str) -> dict[str, object]:
    impression = Impression(
        request_id=f"r-{user}", surface="feed", user_id=user, video_id="v", slot=0,
        propensity=1.0, release="rel", served_at_ms=T0,
    )  # fmt: skip
    return {"kind": "shown", "user_id": user, "video_id": "v", "event_id": user,
            "impression": sign(impression, KEY), "event_time_ms": T0 + 1}  # fmt: skip


def test_an_erasure_removes_that_user_only_from_log_and_feedback(
    bus: Bus,
    unique: str,
    tmp_path: Path,
    event_table: Callable[[list[dict[str, object]]], pa.Table],
) -> None:
    bus.ensure_topics([TopicSpec(ERASURES, 1)])
    gone, last, stays = f"gone-{unique}", f"last-{unique}", f"stays-{unique}"
    log = EventLog(tmp_path / "log")
    feedback = FeedbackStore(tmp_path / "feedback", key=KEY, windows_ms={"play": 10})
    table = event_table([_shown(user) for user in (gone, last, stays)])
    for take in (log.append, feedback.join):
        take(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), table))
    producer = bus.producer()
    producer.send([erasure_message(gone, T0 + 100)])
    producer.send([Outgoing(ERASURES, value) for value in (b"{", None, b'{"user_id": 7}')])
    producer.send([erasure_message(last, T0 + 100)])
    stop = threading.Event()

    def until_last(user_id: str, _: int) -> None:
        if user_id == last:
            stop.set()

    timer = threading.Timer(30, stop.set)
    timer.start()
    consume_erasures(bus, [log.erase, feedback.erase, until_last], stop, group=f"g-{unique}")
    timer.cancel()
    assert log.read()["user_id"].to_list() == [stays]
    assert read_feedback(tmp_path / "feedback")["user_id"].to_list() == [stays]


def test_erasures_survive_a_broker_that_loses_its_topics(
    bus: Bus, unique: str, tmp_path: Path
) -> None:
    bus.ensure_topics([TopicSpec(ERASURES, 1)])
    journal = ErasureJournal(tmp_path / "erasures.jsonl")
    one, two = f"one-{unique}", f"two-{unique}"
    for user, at_ms in ((one, T0), (one, T0), (two, T0 + 2), (one, T0 + 4)):
        journal.append(user, at_ms)
    with (tmp_path / "erasures.jsonl").open("a") as file:
        file.write('{"user_id": "torn')
    journal.append(f"three-{unique}", T0 - 4)
    assert journal.restore(bus) == 3
    assert journal.restore(bus) == 0
    table = Erasures(bus)
    table.close()
    assert (table.until_ms[one], table.until_ms[two]) == (T0 + 4, T0 + 2)
