"""An owner's own entity: one re-keyed topic, and else the same fold, join, rebuild and Feast objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import dill
import numpy as np
import polars as pl
import pytest

from deploy import wiring
from deploy.settings import Settings
from features.definitions import (
    ALL,
    DEFINITIONS,
    WEEK,
    Count,
    CountBy,
    FeatureConflict,
    Key,
    LastN,
    Ratio,
    Sum,
)
from features.feast.on_demand import feast_function
from features.feast.registry import feast_objects
from features.live.worker import fold_delivery
from features.memory_store import MemoryFeatureStore
from features.offline.backfill import LiveTopics, ensure_rebuilt
from features.offline.declared_change import compared, rebuild_cost, topics_line
from features.offline.diff import diff_against_log
from features.offline.point_in_time.join import features_as_of
from features.stored_declaration import Declaration, declaration_in_force
from streams.bus.contract import Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.codec.batches import read_batch
from streams.contract.clock import DAY_MS
from streams.contract.declaration import Contract, declared
from streams.contract.schema import to_ipc
from streams.contract.signals import PROFILE, Signal, Signals
from streams.contract.topics import EVENTS_BY_USER, entity_topic, partition_of, topic_specs
from streams.event_log import EventLog
from streams.ingest.fanout import FanOut
from streams.ingest.loop import IngestConfig

T0 = 1_700_000_000_000
NOW = T0 + 2 * DAY_MS
SIGNALS = Signals(
    (
        PROFILE,
        Signal("view", 64, "engagement", ("text",), 3_600_000),
        Signal("sent_back", 65, "dislike", ("text", "amount"), 3_600_000),
        Signal("note", 66, "exposure", ("text",)),
    )
)
BRAND = (
    Key("text"),
    Count("view", (WEEK, ALL)),
    Sum("amount_cents", ("sent_back",), (ALL,), name="returned_cents"),
    LastN("viewed_by", "user_id", ("view",), 5),
    Ratio("returned_per_view", "returned_cents_sum", "view_count", (ALL,)),
)
OWN: dict[str, Any] = {"brand": BRAND}


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    with declared(Contract(signals=SIGNALS)):
        DEFINITIONS.add(OWN)
        yield
        DEFINITIONS.add({})


@pytest.fixture
def events(event_table: Any) -> Any:
    rng = np.random.default_rng(3)
    made = []
    for place in range(300):
        kind = ("view", "view", "sent_back", "note", "profile", "play")[place % 6]
        made.append(
            {
                "kind": kind,
                "event_time_ms": T0 + int(rng.integers(DAY_MS)),
                "user_id": f"u{rng.integers(9)}",
                "video_id": None if kind == "profile" else f"v{rng.integers(9)}",
                "text": None if kind == "play" else f"brand {rng.integers(6)}",
                "amount_cents": 100 if kind == "sent_back" else None,
                "duplicate": place % 17 == 0,
            }
        )
    return event_table(made)


def test_values_are_those_of_the_entitys_own_events(events: Any) -> None:
    store = MemoryFeatureStore()
    store.fold("brand", events, Stamp("t", 0, 0))
    got = store.read("brand", ["brand 2"], NOW).columns
    frame = pl.DataFrame(events).filter((pl.col("text") == "brand 2") & ~pl.col("duplicate"))
    viewed = frame.filter(pl.col("kind") == 64).sort("event_time_ms")
    cents = frame.filter(pl.col("kind") == 65)["amount_cents"].sum()
    assert got["view_count_all"][0] == viewed.height > 0
    assert got["returned_cents_sum_all"][0] == cents > 0
    assert got["returned_per_view_all"][0] == cents / viewed.height
    assert got["viewed_by"][0] == viewed["user_id"].reverse().head(5).to_list()


def test_what_no_feature_counts_has_no_row(event_table: Any) -> None:
    """Profiles are JSON in the same column: a row of them would outlive the user's erasure."""
    stated = [
        {"kind": kind, "event_time_ms": T0, "text": kind} for kind in ("view", "profile", "note")
    ]
    store = MemoryFeatureStore()
    store.fold("brand", event_table(stated), Stamp("t", 0, 0))
    assert [*store.ids("brand")] == ["view"]


def test_the_fold_and_the_point_in_time_join_agree(events: Any) -> None:
    store = MemoryFeatureStore()
    store.fold("brand", events, Stamp("t", 0, 0))
    ids = [f"brand {n}" for n in range(8)]
    online = store.read("brand", ids, NOW)
    labels = pl.DataFrame({"text": ids, "time_ms": [NOW] * len(ids)})
    offline = features_as_of(pl.DataFrame(events), labels, "brand")
    assert [*online.status] == [*offline.status] == [1] * 6 + [0] * 2
    assert [*online.last_event_ms] == [*offline.last_event_ms]
    for name, values in online.columns.items():
        assert str([*values]) == str([*offline.columns[name]]), name


def test_its_topic_is_written_from_the_start_and_live_rows_equal_a_rebuild(
    events: Any, online: Any, tmp_path: Any
) -> None:
    """The entity is declared on a running stack whose log is behind its topics."""
    bus, log = MemoryBus(), EventLog(tmp_path)
    bus.ensure_topics(topic_specs(2))
    sent = _send_by_user(bus, events, parts=6)
    topic_id = bus.topic_id(EVENTS_BY_USER)
    for partition, offset, table in sent[: len(sent) // 2]:
        log.append(Delivery(EVENTS_BY_USER, Stamp(topic_id, partition, offset), table))

    (entity,) = wiring.own_entities()
    assert entity.name == "brand"
    bus.ensure_topics(topic_specs(2, [entity.name]))
    config = IngestConfig(transactional=False, own_entities=[entity])
    loops = [FanOut(bus, config), FanOut(bus, config, entity)]
    for loop in loops:
        while loop.run_once(0.01):
            pass
        loop.close()
    topics = {name: bus.topic_id(entity_topic(name)) for name in DEFINITIONS}
    assert ensure_rebuilt(tmp_path, online, LiveTopics(2, topics), progress=lambda *_: None)
    for name in DEFINITIONS:
        _fold_topic(bus, online, name)
    for partition, offset, table in sent[len(sent) // 2 :]:
        log.append(Delivery(EVENTS_BY_USER, Stamp(topic_id, partition, offset), table))

    assert sorted(online.ids("brand")) == [f"brand {n}" for n in range(6)]
    assert [*diff_against_log(tmp_path, online, NOW)] == []


def _send_by_user(bus: MemoryBus, events: Any, parts: int) -> list[tuple[int, int, Any]]:
    """The events on `events.by_user`, as the batcher arranges them: (partition, offset, batch)."""
    users = np.array([partition_of(user, 2) for user in events["user_id"].to_pylist()])
    sent, size = [], -(-len(events) // parts)
    for offset, start in enumerate(range(0, len(events), size)):
        for partition in (0, 1):
            rows = np.flatnonzero(users[start : start + size] == partition) + start
            table = events.take(rows)
            message = Outgoing(
                EVENTS_BY_USER, to_ipc(table.combine_chunks().to_batches()[0]), partition=partition
            )
            bus.producer().send([message])
            sent.append((partition, offset, table))
    return sent


def _fold_topic(bus: MemoryBus, store: Any, entity: str) -> None:
    topic = entity_topic(entity)
    fold, topic_id = fold_delivery(store, entity), bus.topic_id(topic)
    for partition, (start, stop) in bus.ends(topic).items():
        for record in bus.scan(topic, partition, start, stop):
            stamp = Stamp(topic_id, record.partition, record.offset)
            fold(Delivery(topic, stamp, read_batch(record)))


def test_feast_gets_an_entity_a_view_and_a_function_of_its_own(events: Any) -> None:
    found = str(feast_objects(DEFINITIONS["brand"]))
    assert "brand_tiles" in found
    assert "returned_per_view_all" in found
    store = MemoryFeatureStore()
    store.fold("brand", events, Stamp("t", 0, 0))
    function, text = feast_function("brand")
    stored = dill.loads(dill.dumps(function, recurse=True))  # as Feast's registry does
    assert 'finalize_features("brand", inputs)' in text
    row = store._rows["brand"]["brand 1"]
    values = stored({"row": [row], "now_ms": [NOW]})
    assert values["view_count_all"] == [
        *store.read("brand", ["brand 1"], NOW).columns["view_count_all"]
    ]
    assert values["brand_row_status"] == ["present"]


def test_the_declaration_is_stored_and_read_again() -> None:
    here = declaration_in_force()
    again = Declaration.from_json(here.to_json())
    assert again == here
    assert again.definitions()["brand"].fingerprint == DEFINITIONS["brand"].fingerprint


def test_a_new_entity_costs_a_topic_and_the_plan_says_so(events: Any, tmp_path: Any) -> None:
    log = EventLog(tmp_path)
    log.append(Delivery(EVENTS_BY_USER, Stamp("t", 0, 0), events))
    after, before = declaration_in_force(), replace(declaration_in_force(), features={})
    change = compared(before, after)
    assert change.rebuilt
    assert change.features["brand"].added[0] == "view_count"
    assert "one more internal topic, events.by_brand, of 4 partitions" in topics_line(change, 4)
    cost = rebuild_cost(tmp_path, before, after)
    assert cost.rows["brand"] == 6
    assert cost.bytes_after["brand"] > 0
    assert "events.by_brand is written no longer" in topics_line(compared(after, before), 4)
    assert topics_line(compared(after, after), 4) == ""
    line = wiring.declared_change(Settings(home=tmp_path.parent))
    assert "events.by_brand" in line or not (tmp_path.parent / "log").exists()


@pytest.mark.parametrize(
    ("entity", "features", "says"),
    [
        ("order", BRAND, "SQL reserves"),
        ("Brand", BRAND, "1 to"),
        ("brand", BRAND[1:], "one more internal topic"),
        ("brand", (*BRAND, Key("surface")), "declares one Key"),
        ("brand", (Key("user_id"), Count("view")), "'user_id' is no column to identify"),
        ("brand", (Key("text"),), "no count, sum or list"),
        ("video", (Key("text"),), "has a key already, 'video_id'"),
        ("brand", (Key("text"), Count("none")), "'none' is no signal"),
    ],
)
def test_what_is_no_entity_is_refused_and_the_ones_before_stay(
    entity: str, features: Any, says: str
) -> None:
    with pytest.raises(FeatureConflict, match=says):
        DEFINITIONS.add({entity: features})
    assert "brand" in DEFINITIONS


def test_text_needs_a_signal_that_states_it() -> None:
    DEFINITIONS.add({})
    with (
        declared(Contract(signals=Signals((Signal("view", 64, "engagement"),)))),
        pytest.raises(FeatureConflict, match="payload text"),
    ):
        DEFINITIONS.add({"brand": (Key("text"), Count("view"))})


def test_a_key_inside_a_user_is_folded_in_the_users_row(events: Any) -> None:
    """User x category needs no topic: the list is folded where the user's events are."""
    DEFINITIONS.add(
        {
            "user": (
                LastN("viewed_category", "text", ("view",), 50, "viewed_kind", "viewed_ms"),
                CountBy("views_by_category", "viewed_category", top=3, within_ms=2 * DAY_MS),
            )
        }
    )
    assert wiring.own_entities() == ()
    store = MemoryFeatureStore()
    store.fold("user", events, Stamp("t", 0, 0))
    labels = pl.DataFrame({"user_id": ["u3"], "time_ms": [NOW]})
    frame = pl.DataFrame(events).filter(
        (pl.col("user_id") == "u3") & (pl.col("kind") == 64) & ~pl.col("duplicate")
    )
    counts = dict(frame["text"].value_counts().iter_rows())
    read = partial(features_as_of, pl.DataFrame(events), labels)
    for got in (store.read("user", ["u3"], NOW).columns, read("user").columns):
        top = dict(zip(got["views_by_category"][0], got["views_by_category_count"][0], strict=True))
        assert sorted(top.values(), reverse=True) == sorted(counts.values(), reverse=True)[:3]
        assert all(counts[category] == count for category, count in top.items())
