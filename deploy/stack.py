"""One stack on one machine: which services it has, in which order, at which addresses.

Knows how settings become running services. Does not know how a service is started
(`deploy.services`) nor how it is restarted (`deploy.supervisor`). The ports and keys that it
chose are written to `stack.json` in the home folder, where its processes and other commands
read them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from deploy import logins, state, wiring
from deploy.processes import PROCESSES
from deploy.processes.own import OwnProcess
from deploy.services import kafka, paths, tansu, triton
from deploy.services.cache import cache_dir
from deploy.services.liveness import FreezeLimits, answers_bytes, answers_kafka
from deploy.services.process import ServiceUnavailable, free_port
from deploy.services.valkey import Valkey
from deploy.settings import Settings
from deploy.supervisor import Report, ServiceStatus, Supervised, Supervisor
from models.client import ModelUnavailable

RECORD_S = 0.5
OWN_CHECK_S = 5.0  # of the stack's own processes, each of which spends about a millisecond on it
AUTO_FETCH_S = 120.0  # how long the download may take before the embedded broker starts


def own_processes(settings: Settings) -> tuple[str, ...]:
    """Names of a stack's own processes; each replica has its own, and there is an updater
    where an update is scheduled."""
    kinds = {name: [name] for name in PROCESSES if name != "updater" or settings.updates}
    replicas = {
        "batcher": settings.ingest.replicas,
        "kafka-requests": settings.requests.replicas,
    }
    for kind, count in replicas.items():
        if count > 1:
            kinds[kind] = [f"{kind}-{number}" for number in range(1, count + 1)]
    return tuple(name for names in kinds.values() for name in names)


class Stack:
    """Broker, store, model server and the stack's own processes. Use it as a context.

    `report` is called on crashes and recoveries, `step` with what is being started. After
    `start`, `settings` holds every address.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        report: Callable[[Report], None] | None = None,
        step: Callable[[str], None] | None = None,
    ) -> None:
        own = {"home": settings.home.resolve(), "instance": ""}
        self.settings = settings.model_copy(update=own, deep=True)
        self._report = report or _ignore
        self._step = step or _ignore
        self._supervisor: Supervisor | None = None
        self._cleanup = ExitStack()
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
        return self.settings.gateway.url

    def start(self) -> Settings:
        """Starts every service and returns when all answer. Models are loaded once trained.

        Raises:
            state.AlreadyRunning: this home has a stack.
            ServiceUnavailable, ServiceFailed: a service is not available or did not start;
                no process is left running.
        """
        paths.refuse_separators(self.settings.home, "the home")
        paths.refuse_separators(cache_dir(), "the cache of downloads (TIDEMILL_CACHE)")
        self._cleanup.enter_context(state.lock_home(self.settings.home))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self.settings

    def stop(self) -> None:
        """Stops every service. Safe to call twice, and after a failed start."""
        self._cleanup.close()

    def status(self) -> list[ServiceStatus]:
        return self._supervisor.status() if self._supervisor else []

    def _start(self) -> None:
        clean_up_after(self.settings.home)
        wiring.declare(self.settings)
        wiring.refuse_contradictions(self.settings)
        if changed := wiring.declared_change(self.settings):
            self._report(Report("features", changed))
        wiring.record_declaration(self.settings)
        for _, refusal in logins.refusals(self.settings):
            raise ServiceUnavailable(refusal)
        self._fetch()
        services = self._servers()
        state.write_settings(self.settings)
        self._cleanup.callback(state.forget_stack, self.settings.home)
        self._cleanup.callback(self._sweep)
        limits = FreezeLimits(**self.settings.supervision.model_dump())
        self._supervisor = Supervisor(self._report, limits)
        self._cleanup.callback(self._write_service_records(self._supervisor))
        self._cleanup.callback(self._supervisor.stop)
        self._step("starting the broker and the store")
        self._supervisor.start(services)
        wiring.bus(self.settings, ensure_topics=True)
        self._step("starting the stream workers, the gateway and the model server")
        self._supervisor.start([*self._model_server(), *self._own_processes()])

    def _fetch(self) -> None:
        """Fetches what is missing before any service starts."""
        if self.settings.triton.kind == "wheel":
            if reason := triton.available():
                self._report(Report("triton", reason))
                self.settings.triton.kind = "in_process"
            else:
                triton.server_dir(self._step)
                triton.overlay_python(self._step)
        if self.settings.broker.kind == "auto":
            self.settings.broker.kind = self._choose_broker()
        elif self.settings.broker.kind == "kafka":
            self._step("looking for Apache Kafka (fetched the first time)")
            kafka.jars()

    def _choose_broker(self) -> Literal["kafka", "embedded"]:
        """Apache Kafka if it is here or can be downloaded, else the embedded broker."""
        reason = kafka.available()
        if not reason:
            if not kafka.downloaded():
                self._step("downloading Apache Kafka (43 MB, once)")
            try:
                kafka.jars(AUTO_FETCH_S)
                return "kafka"
            except ServiceUnavailable as failure:
                reason = str(failure)
        self._report(Report("broker", f"the embedded one, in memory only, because: {reason}"))
        return "embedded"

    def _servers(self) -> list[Supervised]:
        """Broker and store. Sets their addresses in the settings."""
        services = []
        logs = self.settings.home / "logs"
        broker: tansu.Tansu | kafka.Kafka
        if self.settings.broker.kind != "external":
            if self.settings.broker.kind == "kafka":
                broker = kafka.Kafka(logs, self.settings.home / "kafka")
            else:
                broker = tansu.Tansu(logs)
            self.settings.broker.bootstrap_servers = broker.bootstrap_servers
            services.append(
                Supervised(
                    broker,
                    grace_s=15.0,
                    answers=partial(answers_kafka, broker.port),
                    after_start=self._after_broker_start,
                )
            )
        if self.settings.store.kind != "external":
            store = Valkey(logs)
            self.settings.store.address = store.address
            services.append(Supervised(store, answers=store.ready))
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

    def _model_server(self) -> list[Supervised]:
        wiring.fill_repository(self.settings)
        if self._triton is None:
            return []
        port = self._triton.http_port
        answers = partial(answers_bytes, port, "/v2/health/live")
        return [
            Supervised(
                self._triton,
                ready_within_s=180.0,
                answers=answers,
                child_killed=self._reload_model,
            )
        ]

    def _reload_model(self, command: Sequence[str]) -> None:
        """Loads the model again whose process was killed, as the gateways' monitors would: under
        load they see only that it is silent, and need seconds to tell that from being busy."""
        found = next((Path(word) for word in command if word.endswith("/model.py")), None)
        if found is None:
            return
        model = found.parts[-3]
        try:
            reloaded = wiring.reload_model(self.settings, model, found)
        except (ModelUnavailable, OSError) as error:
            self._report(Report("triton", f"{model}: a process was killed; {error}"))
            return
        if reloaded:
            self._report(Report("triton", f"{model}: a process was killed, it is loaded again"))

    def _sweep(self) -> None:
        if self._triton is not None:
            self._triton.sweep()

    def _after_broker_start(self) -> None:
        """The embedded broker loses its topics and groups in a restart: create the topics and
        restart the processes that read in a group, whose offsets no longer exist. The gateway
        detects it by itself and keeps answering."""
        wiring.bus(self.settings, ensure_topics=True)
        if self._supervisor is not None and self.settings.broker.kind == "embedded":
            keep = ("gateway", "updater")
            names = own_processes(self.settings)
            self._supervisor.restart([name for name in names if name not in keep])

    def _own_processes(self) -> list[Supervised]:
        urls = {"gateway": f"{self.page}/healthz"}
        ports = self.settings.telemetry.metrics_ports
        return [
            Supervised(
                OwnProcess(name, self.settings.home, url=urls.get(name, "")),
                ready_within_s=120.0,
                # The metrics' server answers this path without collecting any.
                answers=partial(answers_bytes, ports[name], "/favicon.ico"),
                check_every_s=OWN_CHECK_S,
            )
            for name in own_processes(self.settings)
        ]

    def _write_service_records(self, supervisor: Supervisor) -> Callable[[], None]:
        """Keeps `services.json` up to date for `tidemill status` and `reap`; returns how to stop."""
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


def clean_up_after(home: Path) -> list[str]:
    """Ends the processes of a killed stack and removes its files; the names of the processes."""
    ended = state.reap(home)
    with contextlib.suppress(state.NotRunning):
        for region in triton.shared_memory(state.read_settings(home).triton.grpc_address):
            region.unlink(missing_ok=True)
        triton.remove_links(state.read_settings(home).triton.grpc_address)
    state.forget_stack(home)
    return ended


def _ignore(_: object) -> None:
    """The default for callbacks."""


def _records(statuses: list[ServiceStatus]) -> list[state.ServiceRecord]:
    return [
        state.ServiceRecord(s.name, s.phase, s.pid, s.restarts, state.started_s(s.pid))
        for s in statuses
    ]
