"""Attributes of users in their rows: the last stated, the same online, rebuilt and point in time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from features.definitions import ATTRIBUTES, DEFINITIONS, SHIPPED
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.join import features_as_of
from features.rows.attributes import attribute_columns, user_attributes
from streams.bus.contract import Stamp
from streams.contract.attributes import (
    AttributeDeclaration,
    AttributeDeclarations,
    attributes_json,
)
from streams.contract.clock import HOUR_MS
from streams.contract.declaration import Contract, declared
from streams.contract.events import KIND_CODE
from streams.contract.schema import event_schema
from streams.contract.signals import PROFILE, Signals

T0 = 1_700_000_000_000
SIGNALS = Signals((PROFILE,))


def _contract(**types: Any) -> Contract:
    users = {name: AttributeDeclaration.model_validate(given) for name, given in types.items()}
    return Contract(users=AttributeDeclarations(users), signals=SIGNALS)


TYPES = {"plan": "label", "taste": {"type": "vector", "length": 2}}


@pytest.fixture(autouse=True)
def _users() -> Iterator[None]:
    with declared(_contract(**TYPES)):
        yield


def _row(number: int, user: str, at_ms: int, **own: Any) -> dict[str, Any]:
    return dict.fromkeys(event_schema().names) | {
        "event_id": f"e{number}", "user_id": user, "kind": PROFILE.number, "event_time_ms": at_ms,
        "ingested_at_ms": at_ms, "surface": "external", "origin": "live", "late": False,
        "duplicate": False, "source_partition": 0, "source_offset": number,
    } | own  # fmt: skip


def _stated(number: int, user: str, at_ms: int, attributes: Any, **own: Any) -> dict[str, Any]:
    return _row(number, user, at_ms, text=attributes_json(attributes), **own)


def _events() -> pa.Table:
    like = {"kind": KIND_CODE["like"], "video_id": "v"}
    rows = [
        _stated(0, "ann", T0, {"plan": "free", "taste": (1.0, 0.0)}),
        _row(1, "bob", T0 + 1, **like),
        _stated(2, "ann", T0 + HOUR_MS, {"plan": "gold", "season": "winter"}),
        # Arrives last and was stated before: the order of event times counts.
        _stated(3, "ann", T0 + 5, {"plan": "none"}, ingested_at_ms=T0 + 2 * HOUR_MS),
        _stated(4, "cleo", T0, {"plan": "gold"}),
        _stated(5, "cleo", T0 + 9, {}),
    ]
    return pa.Table.from_pylist(rows, schema=event_schema())


def test_the_row_holds_what_was_stated_last() -> None:
    store = MemoryFeatureStore()
    store.fold("user", _events(), Stamp("t", 0, 0))
    frame = store.read("user", ["ann", "bob", "cleo", "dora"], T0 + 3 * HOUR_MS)
    found = [user_attributes(frame, row) for row in range(4)]
    assert found == [{"plan": "gold", "season": "winter"}, {}, {}, {}]
    assert frame.columns["like_count_all"].tolist() == [0, 1, 0, 0]
    columns = attribute_columns(frame)
    assert columns["plan"].tolist() == ["gold", None, None, None]
    assert columns["taste"].tolist() == [None] * 4


def test_training_reads_what_was_known_at_the_time() -> None:
    moments = [T0, T0 + 1, T0 + 7, T0 + HOUR_MS, T0 + HOUR_MS + 1, T0 + 3 * HOUR_MS]
    labels = pl.DataFrame({"user_id": ["ann"] * len(moments), "time_ms": moments})
    events = _events()
    columns = attribute_columns(features_as_of(pl.DataFrame(events), labels, "user"))
    assert columns["plan"].tolist() == [None, "free", "free", "free", "gold", "gold"]
    assert columns["taste"].tolist() == [None, *[(1.0, 0.0)] * 3, None, None]
    # The same as a store that had folded what had arrived by then.
    for at_ms, plan in zip(moments, columns["plan"], strict=True):
        arrived = [at < at_ms for at in events["ingested_at_ms"].to_pylist()]
        store = MemoryFeatureStore()
        store.fold("user", events.filter(pa.array(arrived)), Stamp("t", 0, 0))
        assert attribute_columns(store.read("user", ["ann"], at_ms))["plan"][0] == plan


def test_a_value_that_does_not_fit_a_later_declaration_reads_as_absent() -> None:
    store = MemoryFeatureStore()
    store.fold("user", _events(), Stamp("t", 0, 0))
    with declared(_contract(plan="number", season="label")):
        frame = store.read("user", ["ann"], T0 + 3 * HOUR_MS)
        assert user_attributes(frame) == {"season": "winter"}
        assert attribute_columns(frame)["plan"].tolist() == [None]


def test_only_the_users_row_changes_and_only_with_the_declaration() -> None:
    assert ATTRIBUTES in DEFINITIONS["user"].lists
    assert DEFINITIONS["user"].counters == SHIPPED["user"].counters
    assert DEFINITIONS["user"].fingerprint != SHIPPED["user"].fingerprint
    for entity in ("video", "author", "query"):
        assert DEFINITIONS[entity] is SHIPPED[entity]
    store = MemoryFeatureStore()
    store.fold("user", _events(), Stamp("t", 0, 0))
    stated = store.read("user", ["ann"], T0 + 3 * HOUR_MS)
    with declared(Contract()):
        assert DEFINITIONS["user"] is SHIPPED["user"]
        assert user_attributes(stated) == user_attributes(None) == {}


def test_erasure_removes_them_from_the_row_and_later_ones_count() -> None:
    store = MemoryFeatureStore()
    store.fold("user", _events(), Stamp("t", 0, 0))
    store.erase("ann", T0 + 2 * HOUR_MS)
    store.fold("user", _events(), Stamp("again", 0, 0))
    assert user_attributes(store.read("user", ["ann"], T0 + 3 * HOUR_MS)) == {}
    row = _stated(9, "ann", T0 + 3 * HOUR_MS, {"plan": "new"})
    later = pa.Table.from_pylist([row], schema=event_schema())
    store.fold("user", later, Stamp("t", 0, 9))
    assert user_attributes(store.read("user", ["ann"], T0 + 4 * HOUR_MS)) == {"plan": "new"}
