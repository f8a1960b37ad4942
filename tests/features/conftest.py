"""Shared fixtures: hand-made events, both stores, and an independent value of every feature."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from features.definitions import DEFINITIONS, EntityDefinition, Sum
from features.memory_store import MemoryFeatureStore
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName, FeatureFrame, FeatureStore
from streams.contract.declaration import contract
from streams.contract.schema import event_schema

Event = Mapping[str, Any]
Table = Callable[[Sequence[Event]], pa.Table]
Expected = Callable[[EntityName, str, Sequence[Event], int], dict[str, Any]]

T0_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def event_table() -> Table:
    """Turns dictionaries (user_id, kind, event_time_ms, …; kind by name) into a batch."""

    def build(events: Sequence[Event]) -> pa.Table:
        rows = []
        for place, event in enumerate(events):
            row: dict[str, Any] = dict.fromkeys(event_schema().names)
            row |= {"surface": "feed", "origin": "live", "late": False, "duplicate": False}
            row |= {"event_id": f"e{place}", "source_partition": 0, "source_offset": place}
            row |= {"user_id": "u", "ingested_at_ms": event["event_time_ms"], **event}
            row["kind"] = contract().signals.number[event["kind"]]
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=event_schema())

    return build


@pytest.fixture(params=["memory", "valkey"])
def store(request: pytest.FixtureRequest) -> Iterator[FeatureStore]:
    """Each implementation of the contract, empty."""
    if request.param == "memory":
        yield MemoryFeatureStore()
        return
    online = FeastFeatureStore(request.getfixturevalue("valkey"), 0, _project())
    yield online
    online.tear_down()


@pytest.fixture
def online(valkey: str) -> Iterator[FeastFeatureStore]:
    """The store on Valkey, in its own project."""
    store = FeastFeatureStore(valkey, 0, _project(), cached_rows=1000)
    yield store
    store.tear_down()


def _project() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def expected() -> Expected:
    """One entity's columns at `now_ms`, computed without the kernels."""
    return _expected


def _expected(
    entity: EntityName, entity_id: str, events: Sequence[Event], now_ms: int
) -> dict[str, Any]:
    definition = DEFINITIONS[entity]
    mine = [e for e in events if e.get(definition.id_column) == entity_id]
    return _expected_counts(definition, mine, now_ms) | _expected_lists(definition, mine, now_ms)


def _expected_counts(
    definition: EntityDefinition, events: Sequence[Event], now_ms: int
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for counter in definition.counters:
        for window in counter.windows:
            inside = [
                event
                for event in events
                if event["kind"] in counter.kinds
                and _in_window(event["event_time_ms"], now_ms, window.span_ms, window.tile_ms)
            ]
            if isinstance(counter, Sum):
                values[counter.column(window)] = sum(e.get(counter.source) or 0 for e in inside)
            else:
                values[counter.column(window)] = len(inside)
    return values


def _in_window(time_ms: int, now_ms: int, span_ms: int, tile_ms: int) -> bool:
    if not span_ms:
        return True
    return (now_ms - span_ms) // tile_ms * tile_ms <= time_ms < (now_ms // tile_ms + 1) * tile_ms


def _expected_lists(
    definition: EntityDefinition, events: Sequence[Event], now_ms: int
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for feature in definition.lists:
        listed = [
            e for e in events if e["kind"] in feature.kinds and e.get(feature.source) is not None
        ]
        newest = sorted(listed, key=lambda e: e["event_time_ms"], reverse=True)[: feature.n]
        newest = [e for e in newest if e["event_time_ms"] <= now_ms]
        values[feature.column] = [e[feature.source] for e in newest]
        if feature.kind_column:
            values[feature.kind_column] = [e["kind"] for e in newest]
        if feature.time_column:
            values[feature.time_column] = [e["event_time_ms"] for e in newest]
    return values


@pytest.fixture(scope="session")
def row_of() -> Callable[[FeatureFrame, int], dict[str, Any]]:
    """One row of a frame as plain values."""

    def row(frame: FeatureFrame, place: int) -> dict[str, Any]:
        return {name: column[place] for name, column in frame.columns.items()}

    return row
