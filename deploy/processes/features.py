"""The process `features`: folds events of every entity into the online store.

Knows the topics, the store, its rebuild from the event log and Feast's registry. Does not
know how a row is folded (`features.rows`).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading

from deploy import wiring
from deploy.processes.lifecycle import Process
from deploy.processes.tuning import BEHIND_S, CACHED_ROWS, COMBINED_BYTES
from deploy.services.cache import ROOT
from deploy.settings import from_stored
from features.definitions import DEFINITIONS
from features.feast.registry import RegisteredFeatureStore
from features.live.worker import consumer_group, fold_delivery, fold_input_schema
from features.offline.backfill import LiveTopics, ensure_rebuilt
from features.store import EntityName, StoreDown
from streams import erasure
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import entity_topic
from streams.event_log import EventLog
from streams.workers.batching import BatchingPolicy
from streams.workers.config import WorkerConfig
from streams.workers.worker import run_worker

# An existing registry is written this long after the worker is ready.
REGISTRY_DELAY_S = 10.0

_log = logging.getLogger("tidemill")


def run(process: Process) -> int:
    """Rebuilds the store where it is incomplete, then folds until stopped."""
    settings = process.settings
    clock = wiring.clock(settings.clock)
    bus = wiring.bus(settings, ensure_topics=True)
    store = wiring.feature_store(settings, cached_rows=CACHED_ROWS)
    _rebuild(process, bus, store)
    handlers = {t: fold_delivery(store, e, clock=clock) for e, t in _entity_topics()}
    group = consumer_group("features", store.rebuild_id())
    worker_ready = threading.Event()
    replies = wiring.shared_replies(settings)

    def ready() -> None:
        worker_ready.set()
        process.ready()

    process.run_in_thread("registry", lambda: _register(process, store, worker_ready))
    process.run_in_thread("rebuild-id", lambda: store.watch_rebuild_id(process.stop))
    # An emptied store has lost its tombstones too: each rebuild reads them in a group of its own.
    erasure_group = consumer_group("feature-erasures", store.rebuild_id())
    process.run_in_thread(
        "erasures",
        lambda: erasure.consume_erasures(
            bus,
            [store.erase, lambda user_id, _: replies.forget(user_id)],
            process.stop,
            group=erasure_group,
            wait_on=(StoreDown,),
            latest_ms=wiring.latest_ms(settings),
        ),
    )
    return run_worker(
        group,
        handlers,
        WorkerConfig(
            bootstrap_servers=settings.broker.bootstrap_servers,
            login=wiring.kafka_login(settings),
            data_dir=settings.home / "faust",
            instance_id=process.group_instance_id,
            batching=BatchingPolicy(
                COMBINED_BYTES, max_lag_wait_s=BEHIND_S, across_partitions=True
            ),
            low_priority_topics=[topic for entity, topic in _entity_topics() if entity != "user"],
            schemas={topic: fold_input_schema(entity) for entity, topic in _entity_topics()},
        ),
        stop=process.stop,
        ready=ready,
    )


def _register(
    process: Process, store: RegisteredFeatureStore, worker_ready: threading.Event
) -> None:
    """Writes the declarations into Feast's registry, at once if it does not exist yet.

    In a process of its own: importing Feast takes seconds, and the 450 MB of what it imports
    (torch, pandas) would stay. After a restart the queued events are folded first.
    """
    if store.registry_path.exists():
        worker_ready.wait()
        if process.stop.wait(REGISTRY_DELAY_S):
            return
    done = subprocess.run(
        [sys.executable, "-m", "deploy.processes.features"],
        input=process.settings.model_dump_json().encode(),
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode and not process.stop.is_set():
        why = done.stderr.decode(errors="replace").strip()[-2_000:]
        raise RuntimeError(f"Feast's registry was not written: {why}")


def write_registry() -> None:
    """Writes Feast's registry by the settings on standard input."""
    settings = from_stored(json.loads(sys.stdin.read()))
    wiring.declare(settings)
    wiring.feature_store(settings).apply()


def _rebuild(process: Process, bus: KafkaBus, store: RegisteredFeatureStore) -> None:
    """Rebuilds rows that the store has lost from the event log, before folding continues."""
    live = LiveTopics(
        process.settings.broker.partitions,
        {entity: bus.topic_id(topic) for entity, topic in _entity_topics()},
    )
    report = ensure_rebuilt(
        process.settings.log_dir,
        store,
        live,
        progress=lambda share, what: _log.info(
            "rebuilding features: %.0f %%, %s", 100 * share, what
        ),
    )
    if report is not None:
        begins = EventLog(process.settings.log_dir).begins_at_ms()
        since = "complete" if begins is None else f"its first event is at {begins} ms"
        _log.info("features rebuilt from %s events of the log (%s)", f"{report.events:,}", since)


def _entity_topics() -> list[tuple[EntityName, str]]:
    return [(entity, entity_topic(entity)) for entity in DEFINITIONS]


if __name__ == "__main__":
    write_registry()
