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
from features.offline.backfill import Live, backfill, ensure_whole
from features.offline.diff import compare, diff, rebuild_in_memory
from features.online.rebuild_cutoff import Cut
from features.online.redis_store import FeastFeatureStore
from features.store import GenerationChanged
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
EPOCHS = {"user": "U", "video": "V", "author": "A", "query": "Q"}


class Loop:
    """Events as batcher and sequencer would lay them: source, user and entity partitions."""

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
        made, offsets = [], [0] * PARTITIONS
        owner = np.array([partition_of(e[id_column], PARTITIONS) for e in self.events])
        for start in range(0, len(self.events), 40):
            for partition in range(PARTITIONS):
                picked = np.flatnonzero(owner[start : start + 40] == partition) + start
                if len(picked):
                    made.append((partition, offsets[partition], self.table.take(picked)))
                    offsets[partition] += 1
        return made

    def fold(self, store, entity, batches=None) -> None:
        for partition, offset, table in self.by[entity] if batches is None else batches:
            store.fold(entity, table, Stamp(EPOCHS[entity], partition, offset))

    def log(self, directory, share: float = 1.0) -> EventLog:
        log = EventLog(directory)
        batches = self.by["user"][: int(len(self.by["user"]) * share)]
        for partition, offset, table in batches:
            stamp = Stamp(EPOCHS["user"], partition, offset)
            log.append(Delivery(EVENTS_BY_USER, stamp, table))
        return log


@pytest.fixture
def loop(event_table):
    return Loop(event_table, seed=1)


def same(a, b) -> None:
    for entity, prefix in (("user", "u"), ("video", "v"), ("author", "a"), ("query", "q")):
        ids = [f"{prefix}{i}" for i in range(15)]
        assert list(compare(entity, ids, a, b, NOW)) == []


def reopened(store: FeastFeatureStore) -> FeastFeatureStore:
    """The same rows as another process sees them."""
    connection = store.connection
    return FeastFeatureStore(connection.address, connection.db, store.project, cached_rows=100)


LIVE = Live(PARTITIONS, EPOCHS)


def test_a_backfill_equals_the_live_fold(loop, online, tmp_path):
    live = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(live, entity)
    loop.log(tmp_path)
    report = backfill(tmp_path, online, live=LIVE, chunk_rows=100)
    assert report.events == len(loop.events)
    same(online, live)
    assert list(diff(tmp_path, online, NOW)) == []


@pytest.mark.parametrize("seed", range(3))
def test_any_interleaving_of_partitions_ends_in_the_same_values(event_table, seed):
    loop = Loop(event_table, seed=seed, n=400)
    straight, shuffled = MemoryFeatureStore(), MemoryFeatureStore()
    rng = np.random.default_rng(seed)
    for entity in DEFINITIONS:
        loop.fold(straight, entity)
        queues = [[b for b in loop.by[entity] if b[0] == p] for p in range(PARTITIONS)]
        order = rng.permutation(np.repeat(np.arange(PARTITIONS), [len(q) for q in queues]))
        turns = [iter(queue) for queue in queues]
        loop.fold(shuffled, entity, [next(turns[p]) for p in order])
    same(shuffled, straight)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_live_folds_under_the_new_generation_count_exactly_what_lies_beyond_the_log(
    loop, online, tmp_path, share
):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(truth, entity)
        loop.fold(online, entity, loop.by[entity][: len(loop.by[entity]) * 3 // 4])
    loop.log(tmp_path, share)
    backfill(tmp_path, online, live=LIVE, chunk_rows=150)
    worker = reopened(online)
    for entity in DEFINITIONS:  # from the topics' start, as a new consumer group reads them
        loop.fold(worker, entity)
    same(online, truth)


def test_live_folds_may_run_while_the_backfill_does(loop, online, tmp_path):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(truth, entity)
    loop.log(tmp_path, 0.6)
    lanes = {entity: iter(loop.by[entity]) for entity in DEFINITIONS}

    def fold_some_live(_share: float, _what: str) -> None:
        worker = reopened(online)
        for entity, lane in lanes.items():
            loop.fold(worker, entity, itertools.islice(lane, 7))

    backfill(tmp_path, online, live=LIVE, chunk_rows=90, progress=fold_some_live)
    for entity, lane in lanes.items():
        loop.fold(reopened(online), entity, lane)
    same(online, truth)


def test_a_fold_of_the_old_generation_may_not_write(loop, online, tmp_path):
    loop.fold(online, "user", loop.by["user"][:3])
    loop.log(tmp_path)
    backfill(tmp_path, reopened(online), live=LIVE)
    with pytest.raises(GenerationChanged, match="start the fold again"):
        loop.fold(online, "user", loop.by["user"][3:])


def test_an_emptied_store_is_noticed_by_the_fold(loop, online):
    loop.fold(online, "user", loop.by["user"][:3])
    reopened(online).tear_down()
    with pytest.raises(GenerationChanged, match="was emptied"):
        loop.fold(online, "user", loop.by["user"][3:])


class Crash(Exception):
    pass


@pytest.mark.parametrize("crash_after", [1, 3])
@pytest.mark.parametrize("during_chunk", [False, True])
def test_a_backfill_that_was_killed_goes_on_where_it_stopped(
    loop, online, tmp_path, monkeypatch, crash_after, during_chunk
):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(truth, entity)
    loop.log(tmp_path)
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
    # Another chunk size and a longer log: what was begun is still finished as it was begun.
    report = backfill(tmp_path, reopened(online), live=LIVE, chunk_rows=333)
    assert report.resumed
    assert 0 < report.events < len(loop.events)
    same(online, truth)


def test_rows_that_the_log_does_not_support_are_swept_and_erasures_stay(
    loop, online, event_table, tmp_path
):
    ghost = {"kind": "like", "event_time_ms": T0, "user_id": "ghost", "video_id": "ghost"}
    online.fold("user", event_table([ghost]), Stamp("U", 0, 0))
    online.fold("video", event_table([ghost]), Stamp("V", 0, 0))
    online.erase("gone", NOW)
    loop.log(tmp_path)
    report = backfill(tmp_path, online, live=LIVE)
    assert report.swept == 2
    assert "ghost" not in set(online.ids("user")) | set(online.ids("video"))
    back = [{"kind": "like", "event_time_ms": NOW - 1, "user_id": "gone", "video_id": "v"}]
    assert online.fold("user", event_table(back), Stamp("U", 0, 99)) == 0


def test_a_row_folded_while_the_sweep_looks_at_it_stays(online, event_table, monkeypatch):
    like = {"kind": "like", "event_time_ms": T0, "user_id": "u", "video_id": "v"}
    online.fold("user", event_table([like]), Stamp("U", 0, 0))
    online.begin_generation(Cut())
    worker, looked_at = reopened(online), FeastFeatureStore.blobs

    def fold_then(self, entity, ids):
        blobs = looked_at(self, entity, ids)
        worker.fold("user", event_table([like]), Stamp("U", 0, 0))
        return blobs

    monkeypatch.setattr(FeastFeatureStore, "blobs", fold_then)
    assert online.sweep("user") == 0
    assert online.read("user", ["u"], NOW).columns["like_count_all"].tolist() == [1]


def test_an_empty_log_is_a_finished_backfill(online, tmp_path):
    shares = []
    report = backfill(tmp_path, online, progress=lambda share, _: shares.append(share))
    assert (report.events, report.rows) == (0, 0)
    assert shares[-1] == 1.0


def test_diff_names_each_value_that_is_not_the_logs(loop, online, event_table, tmp_path):
    loop.log(tmp_path)
    backfill(tmp_path, online, live=LIVE)
    extra = [{"kind": "like", "event_time_ms": T0, "user_id": "u1", "event_id": uuid.uuid4().hex}]
    extra[0]["source_offset"] = len(loop.events)  # beyond the cut: live folds count it
    online.fold("user", event_table(extra), Stamp("U", 9, 0))
    found = list(diff(tmp_path, online, NOW))
    assert {d.entity_id for d in found} == {"u1"}
    assert {d.column for d in found} == {"like_count_7d", "like_count_30d", "like_count_all"}
    assert all(d.online == d.rebuilt + 1 for d in found)


def test_progress_rises_to_one(loop, online, tmp_path):
    loop.log(tmp_path)
    shares = []
    backfill(tmp_path, online, chunk_rows=50, progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 5


def test_the_log_alone_rebuilds_the_rows_in_memory(loop, tmp_path):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(truth, entity)
    same(rebuild_in_memory(loop.log(tmp_path)), truth)


def test_an_emptied_store_is_made_whole_from_the_log_and_a_whole_one_left_alone(
    loop, online, tmp_path
):
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(truth, entity)
    loop.log(tmp_path)
    first = ensure_whole(tmp_path, online, LIVE, progress=lambda *_: None)
    assert first is not None
    assert ensure_whole(tmp_path, reopened(online), LIVE, progress=lambda *_: None) is None
    online.tear_down()
    online.connection.client.hset(online._meta, "generation", 7)  # a reader came first
    ensure_whole(tmp_path, reopened(online), LIVE, progress=lambda *_: None)
    same(reopened(online), truth)


def test_a_store_whose_topics_were_made_anew_gets_from_the_log_what_no_fold_had_seen(
    loop, online, tmp_path
):
    """Deleted topics take with them what was logged and not yet folded."""
    truth = MemoryFeatureStore()
    for entity in DEFINITIONS:
        loop.fold(truth, entity)
    ensure_whole(tmp_path, online, LIVE, progress=lambda *_: None)  # nothing logged, none folded
    loop.log(tmp_path)
    anew = replace(LIVE, epochs=dict.fromkeys(LIVE.epochs, "made anew"))
    again = reopened(online)
    assert ensure_whole(tmp_path, again, anew, progress=lambda *_: None) is not None
    same(again, truth)
    assert ensure_whole(tmp_path, reopened(online), anew, progress=lambda *_: None) is None
