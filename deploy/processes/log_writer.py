"""The process `log-writer`: writes the event log, feedback and the catalogue's log to disk, and
evaluates experiments on that feedback.

Knows the stores and the threads that keep them compact and erased. Does not know file
formats (`streams.storage`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deploy import wiring
from deploy.processes.lifecycle import Process
from deploy.processes.tuning import BEHIND_S, COMBINED_BYTES
from models.experiments.evaluation import Evaluator
from streams import erasure
from streams.bus.contract import Bus
from streams.bus.delivery import in_order
from streams.catalogue import CatalogueLog, consume_catalogue
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.join import TokenRejection
from streams.feedback.store import FeedbackStore
from streams.ingest.dead_letters import DeadLetterWriter
from streams.metrics import FEEDBACK_REFUSED, watch_disk
from streams.storage import compaction
from streams.workers.batching import BatchingPolicy
from streams.workers.config import WorkerConfig
from streams.workers.worker import run_worker

# Each write has a fixed cost and no reader waits for the log: write at most this often.
WRITE_INTERVAL_S = 0.5


def run(process: Process) -> int:
    """Writes until stopped; what `run_worker` returns."""
    settings = process.settings
    wiring.record_declaration(settings)
    bus = wiring.bus(settings, ensure_topics=True)
    log = EventLog(settings.log_dir)
    watch_disk(log.directory)
    feedback = FeedbackStore(
        settings.feedback_dir,
        key=wiring.impression_key(settings),
        windows_ms=settings.feedback.windows_ms,
        producer=bus.producer(),
        on_rejected=_count_rejected,
    )
    catalogue = CatalogueLog(settings.log_dir)
    journal = erasure.ErasureJournal(settings.erasures_path)
    stores: list[erasure.Erase] = [journal.append, log.erase, feedback.erase]
    _consume_inputs(process, bus, catalogue, stores)
    process.run_in_thread(
        "compaction",
        lambda: compaction.run_compaction(
            [log.segments, feedback.segments],
            wiring.clock(settings.clock),
            process.stop,
            retention_days=settings.log.retention_days,
        ),
    )
    evaluator = Evaluator(
        wiring.experiments(settings), settings.feedback_dir, wiring.clock(settings.clock)
    )
    process.run_in_thread("experiments", lambda: evaluator.run(process.stop))
    return run_worker(
        process.storage_name,
        {EVENTS_BY_USER: in_order(log.append, feedback.join)},
        WorkerConfig(
            bootstrap_servers=settings.broker.bootstrap_servers,
            login=wiring.kafka_login(settings),
            data_dir=settings.home / "faust",
            instance_id=process.group_instance_id,
            batching=BatchingPolicy(COMBINED_BYTES, WRITE_INTERVAL_S, BEHIND_S),
        ),
        stop=process.stop,
        ready=process.ready,
    )


def _consume_inputs(
    process: Process, bus: Bus, catalogue: CatalogueLog, stores: Sequence[erasure.Erase]
) -> None:
    """Stores the catalogue and applies erasures, each on a thread of its own.

    This process writes the dead letters of both topics; their other consumers log what they
    reject.
    """
    on_rejected = DeadLetterWriter(bus, wiring.clock(process.settings.clock))
    latest_ms = wiring.latest_ms(process.settings)
    process.run_in_thread(
        "catalogue",
        lambda: consume_catalogue(
            bus,
            catalogue.append,
            process.stop,
            group="catalogue-log",
            latest_ms=latest_ms,
            on_rejected=on_rejected,
        ),
    )
    process.run_in_thread(
        "erasures",
        lambda: erasure.consume_erasures(
            bus,
            stores,
            process.stop,
            group="fact-erasures",
            latest_ms=latest_ms,
            on_rejected=on_rejected,
        ),
    )


def _count_rejected(rejected: Counter[TokenRejection]) -> None:
    for cause, count in rejected.items():
        FEEDBACK_REFUSED.labels(str(cause)).inc(count)
