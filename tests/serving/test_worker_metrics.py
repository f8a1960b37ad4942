"""Metrics of several workers as those of one: what grows never falls, and states are the worst."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from serving.monitoring.metrics import Metrics
from serving.monitoring.workers import MetricFiles, added_up


def _worker(requests: int, *, store_up: bool = True, seen: int = 5) -> bytes:
    metrics = Metrics(["feed"])
    metrics.requests.labels("feed").inc(requests)
    for _ in range(requests):
        metrics.request_seconds.labels("feed").observe(0.02)
    metrics.events_seen.inc(seen)
    metrics.set_components({"store": {"status": "up" if store_up else "down"}})
    return metrics.text()


def _values(text: bytes) -> dict[str, float]:
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for metric in text_string_to_metric_families(text.decode())
        for sample in metric.samples
    }


def test_counts_are_added_states_are_the_worst_and_what_all_read_counts_once() -> None:
    found = _values(added_up([_worker(3), _worker(4, store_up=False)]))
    surface = "[('surface', 'feed')]"
    assert found["tidemill_requests_total" + surface] == 7
    assert found["tidemill_request_seconds_count" + surface] == 7
    assert found["tidemill_request_seconds_bucket[('le', '0.025'), ('surface', 'feed')]"] == 7
    assert found["tidemill_component_up[('component', 'store')]"] == 0
    assert found["tidemill_events_seen_total[]"] == 5


def test_one_workers_metrics_keep_their_names_and_kinds() -> None:
    one = _worker(3)
    own = {(m.name, m.type): len(m.samples) for m in text_string_to_metric_families(one.decode())}
    both = added_up([one]).decode()
    assert {(m.name, m.type): len(m.samples) for m in text_string_to_metric_families(both)} == own


def test_a_counter_does_not_fall_when_a_worker_ends(tmp_path: Path) -> None:
    files = MetricFiles(tmp_path / "metrics")
    files.clear()
    files.write(2, _worker(4, store_up=False))
    files.ended(2, 4711)
    name = "tidemill_requests_total[('surface', 'feed')]"
    found = _values(files.added_up(1, _worker(3)))
    assert found[name] == 7
    assert found["tidemill_component_up[('component', 'store')]"] == 1, "it has no state now"
    files.write(2, _worker(1))
    assert _values(files.added_up(1, _worker(3)))[name] == 8
    files.clear()
    assert _values(files.added_up(1, _worker(3)))[name] == 3
