"""One stack on one machine: which parts there are, in which order, with which addresses.

Knows how settings become running parts. Does not know how a part is started
(`deploy.services`) nor how it is kept alive (`deploy.supervisor`). What it chose
(ports, keys) is written to `stack.json` in the home folder, from which its own
processes and other terminals read it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy import state, wiring
from deploy.services import kafka, tansu, triton
from deploy.services.own import OwnProcess
from deploy.services.process import LOOPBACK, free_port
from deploy.services.valkey import Valkey
from deploy.settings import Settings
from deploy.supervisor import Report, Service, ServiceStatus, Supervisor

STREAM_PROCESSES = ("batcher", "facts", "features")
EDGE_PROCESSES = ("gateway", "edge")
OWN_PROCESSES = (*STREAM_PROCESSES, *EDGE_PROCESSES)
RECORD_S = 0.5

Tell = Callable[[Report], None]
Step = Callable[[str], None]


def own_processes(settings: Settings) -> tuple[str, ...]:
    """The names of a stack's own processes; of several doors each has its own."""
    kinds = {name: [name] for name in OWN_PROCESSES}
    if (doors := settings.broker.doors) > 1:
        kinds["batcher"] = [f"batcher-{number}" for number in range(1, doors + 1)]
    return tuple(name for names in kinds.values() for name in names)


class Stack:
    """A whole loop: broker, store, model server, our processes. Use it as a context.

    `tell` hears of crashes and repairs, `step` of what is being started. After
    `start`, `settings` holds every address.
    """

    def __init__(
        self, settings: Settings, *, tell: Tell | None = None, step: Step | None = None
    ) -> None:
        own = {"home": settings.home.resolve(), "instance": ""}
        self.settings = settings.model_copy(update=own, deep=True)
        self._tell = tell or _unheard
        self._step = step or _unheard
        self._supervisor: Supervisor | None = None
        self._undo = ExitStack()
        self._triton: triton.Triton | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def page(self) -> str:
        """The address to open in a browser."""
        host = self.settings.gateway.host
        return f"http://{LOOPBACK if host == '0.0.0.0' else host}:{self.settings.gateway.port}"

    def start(self) -> Settings:
        """Starts every part and returns when all answer, models excepted: they come when trained.

        Raises:
            state.AlreadyRunning: this home has a stack.
            PartUnavailable, PartFailed: a part cannot be had, or did not come up;
                nothing is left running.
        """
        self._undo.enter_context(state.claimed(self.settings.home))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self.settings

    def stop(self) -> None:
        """Ends every part. Safe to call twice, and after a start that failed."""
        self._undo.close()

    def status(self) -> list[ServiceStatus]:
        return self._supervisor.status() if self._supervisor else []

    def _start(self) -> None:
        clear_up_after(self.settings.home)
        self._fetch()
        services = self._servers()
        state.write_settings(self.settings)
        self._undo.callback(state.forget_stack, self.settings.home)
        self._undo.callback(self._sweep)
        self._supervisor = Supervisor(self._tell)
        self._undo.callback(self._record_for_others(self._supervisor))
        self._undo.callback(self._supervisor.stop)
        self._step("starting the broker and the store")
        self._supervisor.start(services)
        wiring.bus(self.settings, ensure_topics=True)
        self._step("starting the stream workers, the gateway and the model server")
        self._supervisor.start([*self._model_server(), *self._own_processes()])

    def _fetch(self) -> None:
        """What must be fetched once, before anything listens."""
        if self.settings.triton.kind == "wheel":
            if reason := triton.available():
                self._tell(Report("triton", reason))
                self.settings.triton.kind = "in_process"
            else:
                triton.server_dir(self._step)
                triton.overlay_python(self._step)
        if self.settings.broker.kind == "kafka":
            self._step("looking for Apache Kafka (fetched the first time)")
            kafka.jars()

    def _servers(self) -> list[Service]:
        """Broker and store, their addresses put into the settings."""
        services = []
        logs = self.settings.home / "logs"
        broker: tansu.Tansu | kafka.Kafka
        if self.settings.broker.kind != "external":
            if self.settings.broker.kind == "kafka":
                broker = kafka.Kafka(logs, self.settings.home / "kafka")
            else:
                broker = tansu.Tansu(logs)
            self.settings.broker.bootstrap_servers = broker.bootstrap_servers
            services.append(Service(broker, grace_s=15.0, after_start=self._broker_answers))
        if self.settings.store.kind != "external":
            store = Valkey(logs)
            self.settings.store.address = store.address
            services.append(Service(store, check_every_s=5.0))
        self._choose_addresses(logs)
        return services

    def _choose_addresses(self, logs: Path) -> None:
        settings = self.settings
        settings.gateway.port = settings.gateway.port or free_port()
        if not settings.security.impression_key:
            settings.security.impression_key = state.impression_key(settings.home)
        for name in own_processes(settings):
            settings.telemetry.metrics_ports.setdefault(name, free_port())
        if settings.triton.kind == "wheel":
            self._triton = triton.Triton(
                logs,
                settings.repository_dir,
                otlp_endpoint=settings.telemetry.otlp_endpoint,
                self_test=wiring.echo_answers,
            )
            settings.triton.grpc_address = self._triton.grpc_address
            settings.triton.http_address = self._triton.http_address
            settings.triton.metrics_address = self._triton.metrics_address

    def _model_server(self) -> list[Service]:
        wiring.fill_repository(self.settings)
        if self._triton is None:
            return []
        return [Service(self._triton, ready_within_s=180.0, check_every_s=10.0)]

    def _sweep(self) -> None:
        if self._triton is not None:
            self._triton.sweep()

    def _broker_answers(self) -> None:
        """The embedded broker has forgotten its topics and groups after a restart: those who
        read it in a group begin again, so that none waits at an offset that no longer exists.
        The gateway notices by itself and goes on answering."""
        wiring.bus(self.settings, ensure_topics=True)
        if self._supervisor is not None and self.settings.broker.kind == "embedded":
            names = own_processes(self.settings)
            self._supervisor.restart([name for name in names if name != "gateway"])

    def _own_processes(self) -> list[Service]:
        urls = {"gateway": f"{self.page}/healthz"}
        return [
            Service(
                OwnProcess(name, self.settings.home, url=urls.get(name, "")), ready_within_s=120.0
            )
            for name in own_processes(self.settings)
        ]

    def _record_for_others(self, supervisor: Supervisor) -> Callable[[], None]:
        """Keeps `services.json` true for `tidemill status` and for reaping; returns its end."""
        done = threading.Event()

        def keep() -> None:
            while not done.wait(RECORD_S):
                state.write_services(self.settings.home, _records(supervisor.status()))

        thread = threading.Thread(target=keep, name="service-records", daemon=True)
        thread.start()

        def end() -> None:
            done.set()
            thread.join()

        return end


def clear_up_after(home: Path) -> list[str]:
    """Ends what a killed stack left running and removes what it left lying; the names ended."""
    ended = state.reap(home)
    with contextlib.suppress(state.NotRunning):
        for region in triton.shared_memory(state.read_settings(home).triton.grpc_address):
            region.unlink(missing_ok=True)
    state.forget_stack(home)
    return ended


def _unheard(_: object) -> None:
    """Nobody asked to be told."""


def _records(statuses: list[ServiceStatus]) -> list[state.ServiceRecord]:
    return [
        state.ServiceRecord(s.name, s.phase, s.pid, s.restarts, state.started_s(s.pid))
        for s in statuses
    ]
