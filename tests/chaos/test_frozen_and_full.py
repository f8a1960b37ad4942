"""A store that hangs and a disk that is full: work waits for them, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chaos_cluster import Cluster
from chaos_stream import Stream, halves
from chaos_verdict import Verdict

from streams.bus.contract import Outgoing
from streams.catalogue import CatalogueLog
from streams.contract.events import CatalogueItem, ItemAdded
from streams.contract.topics import CATALOGUE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Draw = Callable[[int], Stream]

EVENTS = 1_200
WITHIN_S = 240.0  # for what follows a start of processes, which is slow on a busy machine
SPACE = 64_000  # bytes in a file on the full disk
ITEMS = 200  # each of about 600 bytes in the catalogue's file


def test_a_frozen_store_delays_folds_and_loses_nothing(cluster: Cluster, draw: Draw) -> None:
    """SIGSTOP amid the folds; the log goes on meanwhile, and the folds after SIGCONT."""
    sent = draw(EVENTS)
    before, after = halves(sent)
    for name in ("batcher", "log-writer", "features"):
        cluster.start(name)
    cluster.act_during_work(
        before, lambda _: cluster.freeze_store(), {"features": EVENTS // 4}, WITHIN_S
    )
    cluster.send(after)
    cluster.await_condition(
        lambda: cluster.accounted_for() == cluster.sent, "the log complete", WITHIN_S
    )
    cluster.thaw_store()
    assert cluster.hits["waiting for the store"], cluster.report()
    Verdict(cluster, sent).assert_reached()


def item_added(number: int, at_ms: int) -> ItemAdded:
    item = CatalogueItem(video_id=f"item-{number}", title="x" * 500, created_ms=at_ms)
    return ItemAdded(event_id=f"add-{number}", event_time_ms=at_ms, item=item)


def test_a_full_disk_for_the_catalogues_file_loses_and_doubles_nothing(
    cluster: Cluster, draw: Draw
) -> None:
    """The write stops in the middle of a line; once there is space, all items are there."""
    sent = draw(EVENTS // 2)
    for name in ("batcher", "log-writer", "features"):
        cluster.start(name)
    log = CatalogueLog(cluster.log.directory)
    cluster.send(sent.values)
    cluster.await_condition(
        lambda: cluster.accounted_for() == cluster.sent, "the log complete", WITHIN_S
    )
    cluster.fill_disk("log-writer", SPACE)
    events = [item_added(number, sent.now_ms) for number in range(ITEMS)]
    producer = cluster.bus.producer()
    producer.send([Outgoing(CATALOGUE, event.model_dump_json().encode()) for event in events])
    writer = cluster.processes["log-writer"].child
    cluster.await_condition(
        lambda: "File too large" in writer.tail(200), "a write that the disk refuses", WITHIN_S
    )
    assert len(log.load()) < ITEMS, cluster.report()
    cluster.free_disk("log-writer")
    cluster.await_condition(lambda: len(log.load()) == ITEMS, "the whole catalogue", WITHIN_S)
    assert sorted(event.event_id for event in log.events()) == sorted(e.event_id for e in events)
    Verdict(cluster, sent).assert_reached()
