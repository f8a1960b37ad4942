"""One of the stack's own processes while it runs: its names, its readiness, its threads, its end.

Knows settings, ready marks, metrics and the stop event. Does not know what the process does
(`deploy.processes`).
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
from streams.json_logs import configure_logs

STOP_TIMEOUT_S = 30.0
# Consumer groups, group instance ids and folders keep the names that processes had before.
STORAGE_NAMES = {"log-writer": "facts", "kafka-requests": "edge"}

logger = logging.getLogger("tidemill")


class StopEvent(threading.Event):
    """Stop event. Setting it arms a watchdog of `STOP_TIMEOUT_S` that dumps all stacks to the
    log and exits with 1, even if a thread holds the GIL.

    Without it, a client library that never returns from `close` would leave a process that
    neither works nor ends, which the supervisor would not restart.
    """

    def set(self) -> None:
        if not self.is_set():
            faulthandler.dump_traceback_later(STOP_TIMEOUT_S, exit=True)
        super().set()


@dataclass
class Process:
    """One running process: its kind's name, its settings and its stop event."""

    name: str
    settings: Settings
    stop: StopEvent = field(default_factory=StopEvent)

    @property
    def label(self) -> str:
        """The name with the instance: unique within a stack."""
        return self._with_instance(self.name)

    @property
    def storage_name(self) -> str:
        """The name in consumer groups and on disk. It outlives a renamed process."""
        return STORAGE_NAMES.get(self.name, self.name)

    def _with_instance(self, name: str) -> str:
        instance = self.settings.instance
        return f"{name}-{instance}" if instance else name

    def ready(self) -> None:
        """Marks the process as ready for the supervisor."""
        state.mark_ready(self.settings.home, self.label)
        logger.info("%s is ready", self.label)

    def log(self) -> None:
        """Logs to standard error in the form that the settings name, without any secret."""
        security = self.settings.security
        passwords = (self.settings.broker.security.secret(), self.settings.store.security.secret())
        secrets = (security.impression_key, *security.api_keys, *filter(None, passwords))
        configure_logs(self.label, self.settings.telemetry.log_format, secrets)

    def forked(self) -> Process:
        """The same in a process forked from this one: its stop event is its own, and SIGTERM
        and SIGINT set it."""
        copy = Process(self.name, self.settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: copy.stop.set())
        return copy

    def observe(self, *, with_port: bool = True) -> None:
        """Exports spans to the collector and counters at /metrics, where the settings say so."""
        from prometheus_client import start_http_server

        from streams.telemetry import configure

        telemetry = self.settings.telemetry
        configure(f"tidemill-{self.name}", telemetry.otlp_endpoint, telemetry.sample_ratio)
        port = telemetry.metrics_ports.get(self.label)
        if port and with_port:
            start_http_server(port, addr=telemetry.metrics_host)

    def run_in_thread(self, name: str, work: Callable[[], object]) -> None:
        """Runs `work` in a thread. If it raises, the process ends and the supervisor restarts it."""

        def run() -> None:
            try:
                work()
            except Exception:
                logger.exception("%s failed; the process ends", name)
                self.stop.set()
                signal.raise_signal(signal.SIGTERM)

        threading.Thread(target=run, name=name, daemon=True).start()

    @property
    def group_instance_id(self) -> str | None:
        """Kafka's `group.instance.id`: the same over restarts, so a restarted worker gets its
        partitions back without waiting for the killed one's session to time out.

        Containers, homes and instances that run at once get different ids. None with the
        embedded broker, which lets static members wait forever.
        """
        if not self.settings.broker.transactional:
            return None
        home = hashlib.sha256(str(self.settings.home.resolve()).encode()).hexdigest()[:8]
        return f"{self._with_instance(self.storage_name)}-{socket.gethostname()}-{home}"
