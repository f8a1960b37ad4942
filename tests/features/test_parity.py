"""Features folded online, backfilled from the log and counted by polars are equal.

Polars reads only what the generator emitted: no log, no kernel, no rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from deploy.simulation.config import WorldConfig
from deploy.simulation.history import history
from deploy.simulation.movielens import DataUnavailable, load
from deploy.simulation.people import people
from features.definitions import DEFINITIONS, EntityDefinition, Sum
from features.offline.backfill import LiveTopics, backfill
from features.online.redis_store import FeastFeatureStore
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA, conform
from streams.contract.topics import EVENTS_BY_USER, partition_of
from streams.event_log import EventLog

PARTITIONS = 4
BATCH_ROWS = 500
TOPIC_IDS = {"user": "U", "video": "V", "author": "A", "query": "Q"}


@pytest.fixture(scope="module")
def emitted() -> pl.DataFrame:
    """The newest 12,000 events of the replayed history, as the generator emits them."""
    world = WorldConfig.load()
    try:
        data = load()
    except DataUnavailable as reason:
        pytest.skip(str(reason))
    past = history(0, world=world, data=data, crowd=people(data, world, 0))
    rows = list(past.events())[-12_000:]
    return pl.DataFrame(rows, infer_schema_length=None)


@pytest.fixture(scope="module")
def arrived(emitted) -> pl.DataFrame:
    """The same events in order of arrival, 5 % late and 2 % sent twice, as admission marks them."""
    rng = np.random.default_rng(0)
    delay = np.where(rng.random(len(emitted)) < 0.05, rng.integers(0, 3 * DAY_MS, len(emitted)), 0)
    admitted = emitted.with_columns(
        ingested_at_ms=pl.col("event_time_ms") + pl.Series(delay), duplicate=False
    )
    again = admitted.sample(len(emitted) // 50, seed=1).with_columns(
        ingested_at_ms=pl.col("ingested_at_ms") + 1000, duplicate=True
    )
    return pl.concat([admitted, again]).sort("ingested_at_ms", maintain_order=True)


@pytest.fixture(scope="module")
def table(arrived):
    columns = arrived.with_columns(
        pl.col("kind").replace_strict(KIND_CODE, return_dtype=pl.UInt8),
        late=pl.col("ingested_at_ms") > pl.col("event_time_ms"),
        source_partition=0,
        source_offset=pl.int_range(pl.len()),
    )
    return conform(columns.to_arrow(), EVENT_SCHEMA)


def batches(table, id_column):
    """(partition, offset, batch) of one entity's topic, partitions in a random interleaving."""
    ids = table.column(id_column).to_pylist()
    partition_by_event = np.array([-1 if i is None else partition_of(i, PARTITIONS) for i in ids])
    queues = []
    for partition in range(PARTITIONS):
        rows = np.flatnonzero(partition_by_event == partition)
        cuts = range(0, len(rows), BATCH_ROWS)
        queues.append([(partition, c, table.take(rows[c : c + BATCH_ROWS])) for c in cuts])
    rng = np.random.default_rng(2)
    order = rng.permutation(np.repeat(np.arange(PARTITIONS), [len(queue) for queue in queues]))
    turns = [iter(queue) for queue in queues]
    return [next(turns[partition]) for partition in order]


@pytest.fixture(scope="module", params=["folded online", "backfilled from the log"])
def filled(request, valkey, table, tmp_path_factory):
    store = FeastFeatureStore(valkey, 0, request.param.replace(" ", "-"), cached_rows=5000)
    if request.param == "folded online":
        for entity, definition in DEFINITIONS.items():
            for partition, offset, batch in batches(table, definition.id_column):
                store.fold(entity, batch, Stamp(TOPIC_IDS[entity], partition, offset))
    else:
        log = EventLog(tmp_path_factory.mktemp("log"))
        for partition, offset, batch in batches(table, "user_id"):
            log.append(Delivery(EVENTS_BY_USER, Stamp("U", partition, offset), batch))
        backfill(log.directory, store, live=LiveTopics(PARTITIONS, TOPIC_IDS), chunk_rows=4000)
    yield store
    store.tear_down()


def counted(events: pl.DataFrame, definition: EntityDefinition, now_ms: int) -> pl.DataFrame:
    """Every count and sum by polars: one aggregation per column over the emitted events."""
    time = pl.col("event_time_ms")
    columns = []
    for counter in definition.counters:
        of_kind = pl.col("kind").is_in(counter.kinds)
        for window in counter.windows:
            inside = of_kind
            if window.tile_ms:
                first = (now_ms - window.span_ms) // window.tile_ms * window.tile_ms
                after = (now_ms // window.tile_ms + 1) * window.tile_ms
                inside = of_kind & (time >= first) & (time < after)
            value = pl.col(counter.source).filter(inside) if isinstance(counter, Sum) else inside
            columns.append(value.sum().cast(pl.Int64).alias(counter.column(window)))
    id_column = definition.id_column
    return events.drop_nulls(id_column).group_by(id_column).agg(columns).sort(id_column)


@pytest.mark.parametrize("entity", list(DEFINITIONS))
@pytest.mark.parametrize("later_ms", [0, 90 * 60_000, 8 * DAY_MS])
def test_every_count_of_every_entity_equals_polars_s(filled, emitted, entity, later_ms):
    definition = DEFINITIONS[entity]
    now_ms = int(emitted["event_time_ms"].max()) + later_ms
    truth = counted(emitted, definition, now_ms)
    frame = filled.read(entity, truth[definition.id_column].to_list(), now_ms)
    assert len(frame) > 50
    for name in definition.count_columns:
        assert frame.columns[name].tolist() == truth[name].to_list(), name


@pytest.mark.parametrize("entity", ["user", "video"])
def test_every_list_holds_the_newest_values_that_polars_finds(filled, emitted, entity):
    definition = DEFINITIONS[entity]
    now_ms = int(emitted["event_time_ms"].max())
    for feature in definition.lists:
        listed = emitted.filter(pl.col("kind").is_in(feature.kinds)).drop_nulls(feature.source)
        newest = listed.sort("event_time_ms", descending=True).group_by(definition.id_column)
        truth = newest.agg(
            pl.col("event_time_ms").head(feature.n), pl.col(feature.source), pl.len()
        )
        ids = truth[definition.id_column].to_list()
        frame = filled.read(entity, ids, now_ms)
        for place, row in enumerate(truth.iter_rows(named=True)):
            got = frame.columns[feature.column][place]
            assert len(got) == min(feature.n, row["len"])
            if row["len"] <= feature.n:
                assert sorted(got) == sorted(row[feature.source])
            if feature.time_column:
                assert frame.columns[feature.time_column][place] == row["event_time_ms"]
