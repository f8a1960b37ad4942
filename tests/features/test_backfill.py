"""Rows rebuilt from the log equal rows folded live, beside live folds and across crashes."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.offline.backfill import LiveTopics, backfill, ensure_rebuilt
from features.offline.diff import compare_stores, diff_against_log, rebuild_in_memory
from features.online.feast_keys import metadata_key
from features.online.rebuild_cutoff import RebuildCutoff
from features.online.redis_store import FeastFeatureStore
from features.store import RebuildIdChanged
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS
from streams.contract.events import KINDS
from streams.contract.topics import EVENTS_BY_USER, partition_of
from streams.event_log import EventLog

T0 = 1_700_000_000_000
NOW = T0 + 6 * DAY_MS
PARTITIONS = 3
SOURCES = 2
TOPIC_IDS = {"user": "U", "video": "V", "author": "A", "query": "Q"}


class EventStream:
    """Events as the batcher and sequencer arrange them: source, user and entity partitions."""

    def __init__(self, event_table, seed: int, n: int = 900) -> None:
        rng = np.random.default_rng(seed)
        names = [k for k in KINDS if k != "search"]
        self.events = [
            {
                "kind": names[rng.integers(len(names))],
                "event_time_ms": T0 + int(rng.integers(5 * DAY_MS)),
                "user_id": f"u{rng.integers(12)}",
                "video_id": f"v{rng.integers(15)}",
                "author_id": f"a{rng.integers(4)}",
                "query": f"q{rng.integers(6)}",
                "dwell_ms": int(rng.integers(1000)),
                "source_partition": place % SOURCES,
                "source_offset": place // SOURCES,
                "duplicate": bool(rng.random() < 0.05),
            }
            for place in range(n)
        ]
        self.table = event_table(self.events)
        self.by = {
            entity: self._batches(definition.id_column)
            for entity, definition in DEFINITIONS.items()
        }

    def _batches(self, id_column: str) -> list[tuple[int, int, pa.Table]]:
        """(partition, offset, batch), 40 events of the stream at a time."""
        batches, offsets = [], [0] * PARTITIONS
        partition_by_event = np.array([partition_of(e[id_column], PARTITIONS) for e in self.events])
        for start in range(0, len(self.events), 40):
            for partition in range(PARTITIONS):
                picked = np.flatnonzero(partition_by_event[start : start + 40] == partition) + start
                if len(picked):
                    batches.append((partition, offsets[partition], self.table.take(picked)))
                    offsets[partition] += 1
        return batches

    def fold(self, store, entity, batches=None) -> None:
        for partition, offset, table in self.by[entity] if batches is None else batches:
            store.fold(entity, table, Stamp(TOPIC_IDS[entity], partition, offset))

    def log(self, directory, share: float = 1.0) -> EventLog:
        log = EventLog(directory)
        batches = self.by["user"][: int(len(self.by["user"]) * share)]
        for partition, offset, table in batches:
            stamp = Stamp(TOPIC_IDS["user"], partition, offset)
            log.append(Delivery(EVENTS_BY_USER, stamp, table))
        return log


@pytest.fixture
def stream(event_table):
    return EventStream(event_table, seed=1)


def same(a, b) -> None:
    for entity, prefix in (("user", "u"), ("video", "v"), ("author", "a"), ("query", "q")):
        ids = [f"{prefix}{i}" for i in range(15)]
        assert list(compare_stores(entity, ids, a, b, NOW)) == []


def reopened(store: FeastFeatureStore) -> FeastFeatureStore:
    """The same rows from another process."""
    connection = store.connection
    return FeastFeatureStore(connection.address, connection.db, store.project, cached_rows=100)


LIVE = LiveTopics(PARTITIONS, TOPIC_IDS)


def test_a_backfill_equals_the_live_fold(stream, online, tmp_path):
    live = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(live, entity)
    stream.log(tmp_path)
    report = backfill(tmp_path, online, live=LIVE, chunk_rows=100)
    assert report.events == len(stream.events)
    same(online, live)
    assert list(diff_against_log(tmp_path, online, NOW)) == []


@pytest.mark.parametrize("seed", range(3))
def test_any_interleaving_of_partitions_ends_in_the_same_values(event_table, seed):
    stream = EventStream(event_table, seed=seed, n=400)
    straight, shuffled = MemoryFeatureStore(), MemoryFeatureStore()
    rng = np.random.default_rng(seed)
    for entity in DEFINITIONS:
        stream.fold(straight, entity)
        queues = [[b for b in stream.by[entity] if b[0] == p] for p in range(PARTITIONS)]
        order = rng.permutation(np.repeat(np.arange(PARTITIONS), [len(q) for q in queues]))
        iterators = [iter(queue) for queue in queues]
        stream.fold(shuffled, entity, [next(iterators[p]) for p in order])
    same(shuffled, straight)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_live_folds_under_the_new_rebuild_id_count_exactly_the_events_after_the_log(
    stream, online, tmp_path, share
):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(truth, entity)
        stream.fold(online, entity, stream.by[entity][: len(stream.by[entity]) * 3 // 4])
    stream.log(tmp_path, share)
    backfill(tmp_path, online, live=LIVE, chunk_rows=150)
    worker = reopened(online)
    for entity in DEFINITIONS:  # from the topics' start, as a new consumer group reads them
        stream.fold(worker, entity)
    same(online, truth)


def test_live_folds_may_run_while_the_backfill_does(stream, online, tmp_path):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(truth, entity)
    stream.log(tmp_path, 0.6)
    queues = {entity: iter(stream.by[entity]) for entity in DEFINITIONS}

    def fold_some_live(_share: float, _what: str) -> None:
        worker = reopened(online)
        for entity, queue in queues.items():
            stream.fold(worker, entity, itertools.islice(queue, 7))

    backfill(tmp_path, online, live=LIVE, chunk_rows=90, progress=fold_some_live)
    for entity, queue in queues.items():
        stream.fold(reopened(online), entity, queue)
    same(online, truth)


def test_a_fold_under_the_old_rebuild_id_may_not_write(stream, online, tmp_path):
    stream.fold(online, "user", stream.by["user"][:3])
    stream.log(tmp_path)
    backfill(tmp_path, reopened(online), live=LIVE)
    with pytest.raises(RebuildIdChanged, match="restart the fold"):
        stream.fold(online, "user", stream.by["user"][3:])


def test_a_fold_detects_an_emptied_store(stream, online):
    stream.fold(online, "user", stream.by["user"][:3])
    reopened(online).tear_down()
    with pytest.raises(RebuildIdChanged, match="was emptied"):
        stream.fold(online, "user", stream.by["user"][3:])


class Crash(Exception):
    pass


@pytest.mark.parametrize("crash_after", [1, 3])
@pytest.mark.parametrize("during_chunk", [False, True])
def test_a_killed_backfill_resumes_where_it_stopped(
    stream, online, tmp_path, monkeypatch, crash_after, during_chunk
):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(truth, entity)
    stream.log(tmp_path)
    folds = itertools.count()
    limit = crash_after * len(DEFINITIONS) + (2 if during_chunk else 0)
    fold = FeastFeatureStore.fold

    def killed(self, *arguments):
        if next(folds) == limit:
            raise Crash
        return fold(self, *arguments)

    monkeypatch.setattr(FeastFeatureStore, "fold", killed)
    with pytest.raises(Crash):
        backfill(tmp_path, online, live=LIVE, chunk_rows=100)
    # Another chunk size must not change the chunk that was started.
    report = backfill(tmp_path, reopened(online), live=LIVE, chunk_rows=333)
    assert report.resumed
    assert 0 < report.events < len(stream.events)
    same(online, truth)


def test_rows_that_the_log_does_not_support_are_swept_and_erasures_stay(
    stream, online, event_table, tmp_path
):
    ghost = {"kind": "like", "event_time_ms": T0, "user_id": "ghost", "video_id": "ghost"}
    online.fold("user", event_table([ghost]), Stamp("U", 0, 0))
    online.fold("video", event_table([ghost]), Stamp("V", 0, 0))
    online.erase("gone", NOW)
    stream.log(tmp_path)
    report = backfill(tmp_path, online, live=LIVE)
    assert report.swept == 2
    assert "ghost" not in set(online.ids("user")) | set(online.ids("video"))
    back = [{"kind": "like", "event_time_ms": NOW - 1, "user_id": "gone", "video_id": "v"}]
    assert online.fold("user", event_table(back), Stamp("U", 0, 99)) == 0


def test_a_row_folded_during_the_sweep_stays(online, event_table, monkeypatch):
    like = {"kind": "like", "event_time_ms": T0, "user_id": "u", "video_id": "v"}
    online.fold("user", event_table([like]), Stamp("U", 0, 0))
    online.begin_rebuild(RebuildCutoff())
    worker, looked_at = reopened(online), FeastFeatureStore.stored_rows

    def fold_then(self, entity, ids):
        blobs = looked_at(self, entity, ids)
        worker.fold("user", event_table([like]), Stamp("U", 0, 0))
        return blobs

    monkeypatch.setattr(FeastFeatureStore, "stored_rows", fold_then)
    assert online.sweep("user") == 0
    assert online.read("user", ["u"], NOW).columns["like_count_all"].tolist() == [1]


def test_an_empty_log_is_a_complete_backfill(online, tmp_path):
    shares = []
    report = backfill(tmp_path, online, progress=lambda share, _: shares.append(share))
    assert (report.events, report.rows) == (0, 0)
    assert shares[-1] == 1.0


def test_diff_names_each_value_that_differs_from_the_log(stream, online, event_table, tmp_path):
    stream.log(tmp_path)
    backfill(tmp_path, online, live=LIVE)
    extra = [{"kind": "like", "event_time_ms": T0, "user_id": "u1", "event_id": uuid.uuid4().hex}]
    extra[0]["source_offset"] = len(stream.events)  # after the cutoff: live folds count it
    online.fold("user", event_table(extra), Stamp("U", 9, 0))
    found = list(diff_against_log(tmp_path, online, NOW))
    assert {d.entity_id for d in found} == {"u1"}
    assert {d.column for d in found} == {"like_count_7d", "like_count_30d", "like_count_all"}
    assert all(d.online == d.rebuilt + 1 for d in found)


def test_progress_rises_to_one(stream, online, tmp_path):
    stream.log(tmp_path)
    shares = []
    backfill(tmp_path, online, chunk_rows=50, progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 5


def test_the_log_alone_rebuilds_the_rows_in_memory(stream, tmp_path):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(truth, entity)
    same(rebuild_in_memory(stream.log(tmp_path)), truth)


def test_an_emptied_store_is_rebuilt_from_the_log_and_a_complete_one_is_not(
    stream, online, tmp_path
):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(truth, entity)
    stream.log(tmp_path)
    first = ensure_rebuilt(tmp_path, online, LIVE, progress=lambda *_: None)
    assert first is not None
    assert ensure_rebuilt(tmp_path, reopened(online), LIVE, progress=lambda *_: None) is None
    online.tear_down()
    online.connection.client.hset(
        metadata_key(online.project), "generation", 7
    )  # a reader drew an id first
    ensure_rebuilt(tmp_path, reopened(online), LIVE, progress=lambda *_: None)
    same(reopened(online), truth)


def test_recreated_topics_make_the_store_read_unfolded_events_from_the_log(
    stream, online, tmp_path
):
    """Events that were logged but not yet folded are lost with deleted topics."""
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        stream.fold(truth, entity)
    ensure_rebuilt(tmp_path, online, LIVE, progress=lambda *_: None)  # nothing logged, none folded
    stream.log(tmp_path)
    recreated = replace(LIVE, topic_ids=dict.fromkeys(LIVE.topic_ids, "recreated"))
    again = reopened(online)
    assert ensure_rebuilt(tmp_path, again, recreated, progress=lambda *_: None) is not None
    same(again, truth)
    assert ensure_rebuilt(tmp_path, reopened(online), recreated, progress=lambda *_: None) is None
