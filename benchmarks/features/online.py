"""Online rows: folds into Valkey, and writes and reads of 500 rows compared with Feast's.

Knows how each side is called and timed. Ratios are medians of paired runs: one of Feast, then
one of ours. Does not know the bars.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import psutil
import pyarrow as pa

from benchmarks.features.events import Stream, make_events
from features.definitions import DEFINITIONS
from features.feast.registry import RegisteredFeatureStore, open_store
from features.online.compare_and_set import CompareAndSet
from features.online.feast_keys import RowFormat, metadata_key, unwrap_bytes, view_name
from features.online.redis_store import FeastFeatureStore
from features.rows.byte_slices import ByteSlices
from features.rows.decode import digests
from features.store import EntityName
from streams.bus.contract import Stamp

if TYPE_CHECKING:
    import feast

ROWS, FIELDS = 500, 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # exact to the ms, where a float of seconds is not
BATCH_ROWS = 20_000
COMBINED_ROWS = 100_000  # what a lagging worker folds at once


@dataclass(frozen=True)
class FoldCost:
    """One entity's fold: µs of CPU an event, in this process and in the store's."""

    entity: EntityName
    events_per_s: float
    client_us: float
    server_us: float
    rows_per_event: float


@dataclass(frozen=True)
class FeastComparison:
    """Seconds of Feast and of ours, run by run."""

    name: str
    feast_s: list[float]
    ours_s: list[float]

    @property
    def ratio(self) -> float:
        return median(f / o for f, o in zip(self.feast_s, self.ours_s, strict=True))


def fold_costs(
    address: str, pid: int, events: pa.Table, batch_rows: int = BATCH_ROWS
) -> list[FoldCost]:
    """Each entity's fold of the second half of the events, after storing the first half."""
    server = psutil.Process(pid)
    return [_fold_cost(address, server, events, entity, batch_rows) for entity in DEFINITIONS]


def _fold_cost(
    address: str, server: psutil.Process, events: pa.Table, entity: EntityName, batch_rows: int
) -> FoldCost:
    store = FeastFeatureStore(address, 0, f"fold-{entity}", cached_rows=100_000)
    half = events.num_rows // 2
    _fold(store, entity, events.slice(0, half), 0, batch_rows)
    client, served, began = time.process_time(), _cpu_s(server), time.perf_counter()
    written = _fold(store, entity, events.slice(half), half, batch_rows)
    wall = time.perf_counter() - began
    n = events.num_rows - half
    cost = FoldCost(
        entity,
        n / wall,
        (time.process_time() - client) / n * 1e6,
        (_cpu_s(server) - served) / n * 1e6,
        written / n,
    )
    store.tear_down()
    return cost


def _fold(
    store: FeastFeatureStore,
    entity: EntityName,
    events: pa.Table,
    first: int,
    batch_rows: int = BATCH_ROWS,
) -> int:
    starts = range(0, events.num_rows, batch_rows)
    parts = ((first + at, events.slice(at, batch_rows)) for at in starts)
    return sum(store.fold(entity, part, Stamp("bench", 0, at)) for at, part in parts)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def compare_with_feast(address: str, home: Path, runs: int) -> tuple[list[FeastComparison], bool]:
    """Writes and reads of 500 rows, typed and as blobs; and whether the bytes are equal."""
    stream = Stream(users=2_000, items=3_000)
    store = open_store(
        registry_path=home / "ours.db", address=address, db=1, project="ours", cached_rows=10_000
    )
    store.apply()
    _fold(store, "video", make_events(stream, 100_000, 1), 0)
    ids = sorted(store.ids("video"))[:ROWS]
    typed = _typed_client(home, address)
    pairs = [*_typed(store, typed, ids, stream, runs), *_blobs(store, ids, stream, runs)]
    equal = _bytes_equal(store, ids)
    store.tear_down()
    return pairs, equal


def _typed(
    store: RegisteredFeatureStore,
    client: feast.FeatureStore,
    ids: Sequence[str],
    stream: Stream,
    runs: int,
) -> list[FeastComparison]:
    frame = _typed_frame(ids, stream.end_ms)
    write_ours = _compare_and_set(store, ids, stream)
    names = [f"typed:f{i}" for i in range(FIELDS)]
    rows = [{"video_id": i} for i in ids]
    write = _paired(
        "write 500 x 20 typed",
        lambda: client.push("typed_push", frame),
        write_ours,
        runs,
    )
    read = _paired(
        "read 500 x 20 typed",
        lambda: client.get_online_features(features=names, entity_rows=rows).to_dict(),
        lambda: store.read("video", ids, stream.end_ms),
        runs,
    )
    return [write, read]


def _blobs(
    store: RegisteredFeatureStore, ids: Sequence[str], stream: Stream, runs: int
) -> list[FeastComparison]:
    client = store.feast_client()
    view = view_name(DEFINITIONS["video"])
    stored = store.stored_rows("video", ids)
    blobs = [blob for blob in stored if blob is not None]
    frame = _blob_frame([f"pushed {i}" for i in ids], blobs, stream.end_ms)
    rows = [{"video_id": i, "now_ms": stream.end_ms} for i in ids]
    service = client.get_feature_service("video")
    write_ours = _compare_and_set(store, ids, stream)
    write = _paired(
        "write 500 blobs",
        lambda: client.push(f"{view}_push", frame),
        write_ours,
        runs,
    )
    read = _paired(
        "read 500 blobs, finalized",
        lambda: client.get_online_features(features=service, entity_rows=rows).to_dict(),
        lambda: store.read("video", ids, stream.end_ms),
        runs,
    )
    return [write, read]


def _compare_and_set(
    store: RegisteredFeatureStore, ids: Sequence[str], stream: Stream
) -> Callable[[], object]:
    """Compares the stored rows with themselves and sets them, as a fold writes."""
    names, rows = (
        ByteSlices.from_arrow(pa.array(ids)),
        ByteSlices.from_list(store.stored_rows("video", ids)),
    )
    times, expected = np.full(len(ids), stream.end_ms), digests(rows).view(np.uint64)[:, 0]
    packer = CompareAndSet(
        RowFormat(DEFINITIONS["video"], store.project),
        metadata_key(store.project),
        store.rebuild_id(),
    )
    return lambda: store.writer.compare_and_set(packer, names, expected, rows, times)


def _paired(
    name: str, feasts: Callable[[], object], ours: Callable[[], object], runs: int
) -> FeastComparison:
    feasts(), ours()
    times = [(_timed(feasts), _timed(ours)) for _ in range(runs)]
    return FeastComparison(name, [f for f, _ in times], [o for _, o in times])


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _one_event_each(
    ids: Sequence[str], stream: Stream, times: int, seed: int = 7
) -> list[pa.Table]:
    """Batches with one event for every id, newer than the stored ones."""
    batches = []
    for turn in range(times):
        events = make_events(stream, len(ids), seed + turn)
        named = events.set_column(
            events.schema.get_field_index("video_id"), "video_id", pa.array(ids)
        )
        batches.append(named)
    return batches


def _blob_frame(ids: Sequence[str], blobs: Sequence[bytes], time_ms: int) -> pd.DataFrame:
    times = [_EPOCH + timedelta(milliseconds=time_ms)] * len(ids)
    return pd.DataFrame({"video_id": ids, "row": blobs, "event_time": times})


def _bytes_equal(store: RegisteredFeatureStore, ids: Sequence[str]) -> bool:
    """Whether Feast's push of a row writes the same hash as our fold."""
    layout = RowFormat(DEFINITIONS["video"], store.project)
    redis = store.connection.client
    keys = [layout.key(entity_id) for entity_id in ids]
    for batch in _one_event_each(ids, Stream(), 1, seed=9000):
        if store.fold("video", batch, Stamp("last", 0, 0)) != len(ids):
            return False
    ours = [redis.hgetall(key) for key in keys]
    last = store.read("video", ids, 0).last_event_ms.tolist()
    redis.unlink(*keys)
    frame = pd.DataFrame(
        {
            "video_id": ids,
            "row": [unwrap_bytes(row[layout.row_field]) for row in ours],
            "event_time": [_EPOCH + timedelta(milliseconds=at) for at in last],
        }
    )
    store.feast_client().push(f"{view_name(DEFINITIONS['video'])}_push", frame)
    return [redis.hgetall(key) for key in keys] == ours


def _typed_frame(ids: Sequence[str], time_ms: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"f{i}": rng.integers(0, 1000, len(ids)) for i in range(FIELDS)}
    times = [_EPOCH + timedelta(milliseconds=time_ms)] * len(ids)
    return pd.DataFrame({"video_id": ids, "event_time": times} | columns)


def _typed_client(home: Path, address: str) -> feast.FeatureStore:
    """Plain Feast: a view of 20 typed fields on its Redis store."""
    from feast import (
        Entity,
        FeatureStore,
        FeatureView,
        FileSource,
        PushSource,
        RepoConfig,
        ValueType,
    )
    from feast import Field as FeastField
    from feast.types import Int64, String

    config = RepoConfig(
        project="typed",
        provider="local",
        registry=str(home / "typed.db"),
        online_store={"type": "redis", "connection_string": f"{address},db=2"},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    client = FeatureStore(config=config)
    item = Entity(name="video", join_keys=["video_id"], value_type=ValueType.STRING)
    source = FileSource(
        name="typed_log", path=str(home / "typed.parquet"), timestamp_field="event_time"
    )
    view = FeatureView(
        name="typed",
        entities=[item],
        ttl=timedelta(days=400),
        schema=[
            FeastField(name="video_id", dtype=String),
            *(FeastField(name=f"f{i}", dtype=Int64) for i in range(FIELDS)),
        ],
        source=PushSource(name="typed_push", batch_source=source),
    )
    client.apply([item, view])
    return client
