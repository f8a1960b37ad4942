"""Metrics by Prometheus's conventions, and the values of those that are measured here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from features.live.freshness import measure_freshness
from streams import metrics
from streams.bus.consume import LagMeter
from streams.bus.contract import BusError, Outgoing
from streams.bus.memory import MemoryBus
from streams.contract.topics import BEHAVIOUR, topic_specs


def value(name: str, **labels: str) -> float:
    found = REGISTRY.get_sample_value(name, labels)
    return 0.0 if found is None else found


def test_an_array_counts_as_its_values_do_one_by_one() -> None:
    from prometheus_client import Histogram

    drawn = np.random.default_rng(3).exponential(1.0, 500)
    values = np.concatenate([drawn, [0.5, 1.0, 2.0, 0.0]])  # bounds themselves, too
    one, many = CollectorRegistry(), CollectorRegistry()
    reference = Histogram("h_seconds", "h", ["x"], buckets=(0.5, 1.0, 2.0), registry=one)
    arrays = metrics.ArrayHistogram("h_seconds", "h", ["x"], (0.5, 1.0, 2.0), many)
    for each in values:
        reference.labels("a").observe(each)
    arrays.observe(values[:100], "a")
    arrays.observe(values[100:], "a")
    arrays.observe(np.array([]), "a")
    for name in ("h_seconds_count", "h_seconds_sum"):
        expected = one.get_sample_value(name, {"x": "a"})
        assert many.get_sample_value(name, {"x": "a"}) == pytest.approx(expected)
    for bound in ("0.5", "1.0", "2.0", "+Inf"):
        labels = {"x": "a", "le": bound}
        assert many.get_sample_value("h_seconds_bucket", labels) == one.get_sample_value(
            "h_seconds_bucket", labels
        )
    assert b'h_seconds_bucket{le="0.5",x="a"}' in generate_latest(many)


def test_freshness_counts_from_the_event_and_from_its_admission() -> None:
    def buckets(since: str, le: str) -> float:
        name = "tidemill_feature_freshness_seconds_bucket"
        return value(name, entity="query", since=since, le=le)

    before = {(s, le): buckets(s, le) for s in ("event", "admission") for le in ("0.1", "5.0")}
    events = pa.table({"event_time_ms": [1_000, 9_000], "ingested_at_ms": [9_950, 11_000]})
    measure_freshness("query", events, 10_000)
    new = {key: buckets(*key) - count for key, count in before.items()}
    # 9 s and 1 s since the event; 50 ms, and 0 for an admission by a clock that is ahead.
    assert new == {
        ("event", "0.1"): 0,
        ("event", "5.0"): 1,
        ("admission", "0.1"): 2,
        ("admission", "5.0"): 2,
    }
    assert value("tidemill_last_fold_timestamp_seconds", entity="query") > 1e9


def test_lag_is_what_a_group_has_not_read() -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    bus.producer().send([Outgoing(BEHAVIOUR, b"x", partition=n % 2) for n in range(5)])
    consumer = bus.consumer([BEHAVIOUR], "lag-test-0123abcd")
    meter = LagMeter(consumer, BEHAVIOUR, "lag-test-0123abcd")
    meter.measure()
    lag = {"group": "lag-test", "topic": BEHAVIOUR}
    assert value("tidemill_consumer_lag_records", **lag) == 5
    consumer.poll(10, 0.0)
    meter.measure()  # at most every few seconds
    assert value("tidemill_consumer_lag_records", **lag) == 5
    LagMeter(consumer, BEHAVIOUR, "lag-test").measure()
    assert value("tidemill_consumer_lag_records", **lag) == 0


def test_a_lag_that_cannot_be_asked_for_stops_nothing() -> None:
    class Down:
        def lag(self) -> int:
            raise BusError("down")

    LagMeter(Down(), BEHAVIOUR, "lag-down").measure()  # type: ignore[arg-type]
    assert value("tidemill_consumer_lag_records", group="lag-down", topic=BEHAVIOUR) == 0


def test_groups_of_every_rebuild_share_a_label() -> None:
    assert metrics.base_group("features-0000000a.1b2c3d4e") == "features"
    assert metrics.base_group("tidemill-requests-edge") == "tidemill-requests-edge"


def test_the_logs_disk_is_that_of_a_folder_which_is_still_to_come(tmp_path: Path) -> None:
    metrics.watch_disk(tmp_path / "log" / "later", "test")
    free = value("tidemill_log_disk_free_bytes", disk="test")
    assert 0 < free <= value("tidemill_log_disk_size_bytes", disk="test")
