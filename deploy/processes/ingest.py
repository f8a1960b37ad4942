"""The process `batcher`: the ingest service, from `behaviour` to the topics of each entity.

Knows its settings and its erasures. Does not know what is admitted (`streams.ingest`).
"""

from __future__ import annotations

from deploy import wiring
from deploy.processes.lifecycle import Process
from streams.codec.decode import prepare
from streams.erasure import ErasureJournal
from streams.event_log import EventLog
from streams.ingest import service


def run(process: Process) -> int:
    """Runs the ingest service until stopped; 1 when it ended by itself."""
    bus = wiring.bus(process.settings, ensure_topics=True)
    journal = ErasureJournal(process.settings.erasures_path)
    journal.restore(bus, wiring.latest_ms(process.settings))
    prepare()
    process.ready()
    service.run(
        bus,
        wiring.ingest_config(process.settings),
        clock=wiring.clock(process.settings.clock),
        stop=process.stop,
        log=EventLog(process.settings.log_dir),
    )
    return 0 if process.stop.is_set() else 1
