"""One of the stack's own processes while it runs: its names, its set-up, its end.

Knows settings, marks, metrics and the word to stop. Does not know what the process does
(`deploy.process`).
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy import state
from deploy.settings import Settings

END_S = 30.0  # how long a process may take to end, however it came to

logger = logging.getLogger("tidemill")


class Stop(threading.Event):
    """The word to stop: whoever says it starts a clock that no thread can hold.

    A client library that does not come back from its closing, even one that keeps the
    interpreter's lock, would else leave a process that does nothing, and a supervisor that
    never hears of its end. When the time is over every thread's stack goes to the log, and the
    process ends with 1.
    """

    def set(self) -> None:
        if not self.is_set():
            faulthandler.dump_traceback_later(END_S, exit=True)
        super().set()


@dataclass
class Process:
    """One running process: its settings, and the word to stop."""

    name: str
    settings: Settings
    stop: Stop = field(default_factory=Stop)

    @property
    def label(self) -> str:
        """What it is called among those of its kind."""
        instance = self.settings.instance
        return f"{self.name}-{instance}" if instance else self.name

    def ready(self) -> None:
        """Says that the set-up is done."""
        state.mark_ready(self.settings.home, self.label)
        logger.info("%s is set up", self.label)

    def observe(self) -> None:
        """Spans to the collector and counters at /metrics, where the settings name them."""
        from prometheus_client import start_http_server

        from streams.telemetry import configure

        telemetry = self.settings.telemetry
        configure(f"tidemill-{self.name}", telemetry.otlp_endpoint, telemetry.sample_ratio)
        port = telemetry.metrics_ports.get(self.label)
        if port:
            start_http_server(port, addr=telemetry.metrics_host)

    def beside(self, name: str, work: Callable[[], object]) -> None:
        """Runs `work` in a thread; when it fails the whole process ends, to be started again."""

        def run() -> None:
            try:
                work()
            except Exception:
                logger.exception("%s failed; the process ends", name)
                self.stop.set()
                signal.raise_signal(signal.SIGTERM)

        threading.Thread(target=run, name=name, daemon=True).start()

    @property
    def member(self) -> str | None:
        """What it is called in its consumer group: a worker that is started again is the same
        member, so its partitions need not wait for the killed one's session to end. Two that
        run at once (other containers, homes or instances) must not share a name. None with the
        embedded broker, which makes a named member wait."""
        if not self.settings.broker.transactional:
            return None
        home = hashlib.sha256(str(self.settings.home.resolve()).encode()).hexdigest()[:8]
        return f"{self.label}-{socket.gethostname()}-{home}"
