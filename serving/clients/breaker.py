"""Circuit breakers: calls to a failing service are rejected at once for a moment.

Knows failures, time and the calls that were made, each of which is a span and is measured. Does
not know what a service does. Without a breaker every
request would wait out the deadline of a hanging store; with one, a single call per
`retry_after_s` tries it again, so recovery is automatic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

import numpy as np
import pyarrow as pa
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from features.store import EntityName, FeatureFrame, FeatureStore, StoreDown
from models.batch import Answer
from models.client import ModelClient, ModelUnavailable
from models.stream import stream_form
from streams.bus.contract import Stamp

T = TypeVar("T")
Observe = Callable[[str, str, float], None]
"""Called after a call with what was asked (a model, an entity), "ok" or "failed", and seconds."""


def _unobserved(_what: str, _outcome: str, _seconds: float) -> None:
    """The default: measures nothing."""


@contextmanager
def _call(span: str, what: str, observe: Observe) -> Iterator[None]:
    """Measures a call, as a span of the request's trace; calls in no trace open no span."""
    started, outcome = time.perf_counter(), "failed"
    in_trace = trace.get_current_span().get_span_context().is_valid
    tracer = trace.get_tracer("tidemill.serving") if in_trace else trace.NoOpTracer()
    with tracer.start_as_current_span(
        f"{span} {what}",
        kind=SpanKind.CLIENT,
        record_exception=False,  # its text may name what was asked for
        set_status_on_exception=False,
    ) as current:
        try:
            yield
            outcome = "ok"
        except GeneratorExit:  # the caller needs no more of a stream
            outcome = "ok"
            raise
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            observe(what, outcome, time.perf_counter() - started)


def _with_trace(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers with the current span as parent: a model server's spans join under it."""
    carrier = dict(headers or {})
    propagate.inject(carrier)
    return carrier


class Breaker:
    """Opens after `failures` consecutive failures; then admits one call per `retry_after_s`.

    Thread safe.
    """

    def __init__(
        self,
        failures: int = 2,
        retry_after_s: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures, self._retry_after_s = failures, retry_after_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._count = 0
        self._open_until_s = 0.0

    def allows(self) -> bool:
        with self._lock:
            if self._count < self._failures:
                return True
            if self._monotonic() < self._open_until_s:
                return False
            # This caller makes the trial call; the others wait for its result.
            self._open_until_s = self._monotonic() + self._retry_after_s
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._count = 0

    def failed(self) -> None:
        with self._lock:
            self._count += 1
            self._open_until_s = self._monotonic() + self._retry_after_s


class GuardedStore:
    """A feature store with a breaker in front of its reads. Writes are not guarded."""

    def __init__(
        self,
        store: FeatureStore,
        breaker: Breaker | None = None,
        observe: Observe = _unobserved,
    ) -> None:
        self._store, self._breaker, self._observe = store, breaker or Breaker(), observe

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        return self._store.fold(entity, events, stamp)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        if not self._breaker.allows():
            raise StoreDown("the feature store failed recently; it is tried again within 1 s")
        try:
            with _call("read", entity, self._observe):
                frame = self._store.read(entity, ids, now_ms)
        except StoreDown:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return frame

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        self._store.erase(user_id, at_ms)

    def healthy(self) -> bool:
        return self._store.healthy()


class GuardedModels:
    """A model client with one breaker per version of a model, and one per version of its streaming
    form: a challenger that fails beside the live version takes nothing from it."""

    def __init__(self, models: ModelClient, observe: Observe = _unobserved) -> None:
        self._models, self._observe = models, observe
        self._breakers: dict[tuple[str, int | None], Breaker] = {}
        self._lock = threading.Lock()

    @property
    def ends_calls_in_time(self) -> bool:
        """Whether a call returns at its `timeout_s` whatever the server does."""
        return bool(getattr(self._models, "ends_calls_in_time", False))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        return self._guarded(
            model,
            version,
            lambda: self._models.infer(
                model, inputs, version=version, timeout_s=timeout_s, headers=_with_trace(headers)
            ),
        )

    def infer_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> list[Answer]:
        return self._guarded(
            model,
            version,
            lambda: self._models.infer_many(
                model, requests, version=version, timeout_s=timeout_s, headers=_with_trace(headers)
            ),
        )

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """A stream that fails does not close the way to whole answers, nor they to it."""
        breaker = self._admitting(stream_form(model), version)
        try:
            with (
                _call("infer", model, self._observe),
                closing(
                    self._models.infer_stream(
                        model,
                        inputs,
                        version=version,
                        timeout_s=timeout_s,
                        headers=_with_trace(headers),
                    )
                ) as parts,
            ):
                yield from parts
        except ModelUnavailable:
            breaker.failed()
            raise
        breaker.succeeded()

    def _guarded(self, model: str, version: int | None, call: Callable[[], T]) -> T:
        breaker = self._admitting(model, version)
        try:
            with _call("infer", model, self._observe):
                out = call()
        except ModelUnavailable:
            breaker.failed()
            raise
        breaker.succeeded()
        return out

    def versions(self, model: str) -> tuple[int, ...]:
        return self._models.versions(model)

    def load(self, model: str) -> None:
        self._models.load(model)
        self._close(model)

    def reload(self, model: str) -> None:
        self._models.reload(model)
        self._close(model)

    def healthy(self) -> bool:
        return self._models.healthy()

    def reset(self) -> None:
        """Closes every breaker, because a new release may work where the last one failed."""
        with self._lock:
            self._breakers.clear()

    def _admitting(self, name: str, version: int | None) -> Breaker:
        """The breaker of a model or a streaming form. Raises `ModelUnavailable` while it is open."""
        breaker = self._breaker(name, version)
        if not breaker.allows():
            raise ModelUnavailable(f"{name} failed recently; it is tried again within 1 s")
        return breaker

    def _breaker(self, model: str, version: int | None) -> Breaker:
        with self._lock:
            return self._breakers.setdefault((model, version), Breaker())

    def _close(self, model: str) -> None:
        with self._lock:
            names = (model, stream_form(model))
            closed = [breaker for key, breaker in self._breakers.items() if key[0] in names]
        for breaker in closed:
            breaker.succeeded()
