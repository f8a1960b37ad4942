"""Requests over Kafka: `recommendation.requests` in, `recommendation.responses` out.

Knows messages. Does not know surfaces: they are the same as over HTTP, and so is the
reply; a request that cannot be answered gets `error` in place of a reply. At least once: a
request answered just before a crash is answered again under the same request_id.

A request is a JSON object {"surface": NAME, ...} with the fields of that surface's request. The
response has the request's key and headers; any of them, and the value of a header, may be null. No
request stops the others.

The requests of one poll are answered side by side, those with the same key one after another, and
their responses are written in the order of the requests. The next poll waits for them, so a process
that falls behind holds at most one poll's requests. Further processes (`requests.replicas`) share
the topic's partitions.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import orjson
from pydantic import TypeAdapter, ValidationError

from serving.monitoring.metrics import Metrics
from serving.pipeline.requests import Request
from serving.pipeline.trace import context_of, current_header_bytes, tracer
from serving.state.replies import RecentReplies, RequestConflict
from serving.surfaces import Surfaces, UnknownSurface
from streams.bus.consume import ConsumeLoop, LagMeter
from streams.bus.contract import (
    MAX_MESSAGE_BYTES,
    Bus,
    BusError,
    Consumer,
    MessagesRejected,
    Outgoing,
    Producer,
    message_bytes,
)
from streams.bus.polled import Record
from streams.bus.transaction import InputTransactions
from streams.contract.bounds import Id
from streams.contract.topics import REQUESTS, RESPONSES
from streams.contract.trace_headers import TRACEPARENT_HEADER

_LOG = logging.getLogger(__name__)
_GROUP = "tidemill-requests-edge"
_MAX_REQUEST_BYTES = 1 << 20
_MAX_KEY_BYTES = 8_192  # of a response that has no room for all of the request's
_BATCH = 64
_THREADS = 8  # stages wait for the store and the models about half of their time
_RETRY_S = 1.0
_MAX_PROBLEMS = 20
_ID: TypeAdapter[str] = TypeAdapter(Id)


def run(
    bus: Bus,
    surfaces: Surfaces,
    stop: threading.Event,
    *,
    impression_key: bytes,
    replies: RecentReplies | None = None,
    metrics: Metrics | None = None,
    group: str = _GROUP,
) -> None:
    """Answers requests until `stop` is set; reconnects after the broker was down."""
    replies = RecentReplies() if replies is None else replies
    metrics = metrics or Metrics()
    while not stop.is_set():
        consumer: Consumer | None = None
        producer: Producer | None = None
        try:
            consumer, producer = bus.consumer([REQUESTS], group), bus.producer()
            lag = LagMeter(consumer, REQUESTS, group)
            answers = _Answers(surfaces, impression_key, replies, metrics)
            _serve(consumer, producer, answers, lag, stop)
        except BusError as error:
            _LOG.warning("answering Kafka requests was interrupted: %s", error)
            stop.wait(_RETRY_S)
        finally:
            for part in (consumer, producer):
                if part is not None:
                    part.close()


@dataclass(frozen=True)
class _Answers:
    """What replies are made of."""

    surfaces: Surfaces
    key: bytes
    replies: RecentReplies
    metrics: Metrics

    def to(self, value: bytes | None) -> bytes:
        """The reply to one message as JSON. Raises nothing."""
        try:
            return answer(value, self.surfaces, self.key, self.replies, self.metrics)
        except Exception as error:
            _LOG.error("a request was not answered: %s", _place(error))
            return _dumps(_error(None, [_problem("body", f"no answer: {type(error).__name__}")]))


def _serve(
    consumer: Consumer,
    producer: Producer,
    answers: _Answers,
    lag: LagMeter,
    stop: threading.Event,
) -> None:
    transactions = InputTransactions(producer, consumer)

    def commit(messages: list[Outgoing], records: Sequence[Record]) -> None:
        try:
            transactions.send(messages, records)
        except MessagesRejected as error:  # the others are written
            _LOG.error("the broker rejects %d responses: %s", len(error.reasons), error)
            transactions.send([], records)

    with ThreadPoolExecutor(_THREADS, "requests") as pool:
        process = partial(_answered, answers=answers, pool=pool)
        poll = partial(consumer.poll, _BATCH)
        ConsumeLoop(poll, process, commit, lag.measure).run(stop)


def _answered(
    records: Sequence[Record], answers: _Answers, pool: ThreadPoolExecutor
) -> list[Outgoing]:
    """The responses, in the order of the requests; requests with the same key wait for another."""
    each = list(records)
    by_key: dict[bytes | int, list[int]] = {}
    for place, record in enumerate(each):
        by_key.setdefault(place if record.key is None else record.key, []).append(place)

    def answer_in_order(places: Sequence[int]) -> list[tuple[int, Outgoing]]:
        return [(place, _outgoing(each[place], answers)) for place in places]

    found = [pair for pairs in pool.map(answer_in_order, by_key.values()) for pair in pairs]
    return [response for _, response in sorted(found, key=lambda pair: pair[0])]


def _outgoing(record: Record, answers: _Answers) -> Outgoing:
    """The response to one request; without the request's headers and key if they do not fit."""
    stated: dict[str, bytes | None] = dict(record.headers)
    stated.pop(TRACEPARENT_HEADER, None)
    with tracer().start_as_current_span(
        "recommendation.requests", context=context_of(_parent(record)), record_exception=False
    ):
        reply = answers.to(record.value)
        # A header's value may be null, in a request as in its response.
        headers = cast(dict[str, bytes], stated | current_header_bytes())
    response = Outgoing(RESPONSES, reply, record.key, headers=headers)
    if message_bytes(response) <= MAX_MESSAGE_BYTES:
        return response
    problem = _problem("headers", "the response with the request's key and headers is too large")
    key = record.key if len(record.key or b"") <= _MAX_KEY_BYTES else None
    return Outgoing(RESPONSES, _dumps(_error(_request_id(record.value), [problem])), key)


def _parent(record: Record) -> dict[str, str]:
    stated: dict[str, bytes | None] = dict(record.headers)
    return {n: value.decode("latin-1") for n, value in stated.items() if value is not None}


class _Rejected(Exception):
    """A request that gets an error reply. `cause`: as in the metrics."""

    def __init__(
        self, cause: str, problems: list[dict[str, str]], request_id: str | None = None
    ) -> None:
        super().__init__(cause)
        self.cause, self.problems, self.request_id = cause, problems, request_id


def answer(
    value: bytes | None,
    surfaces: Surfaces,
    key: bytes,
    replies: RecentReplies,
    metrics: Metrics | None = None,
) -> bytes:
    """The reply to one message as JSON. An invalid message gets an error reply."""
    try:
        request = _read(value, surfaces)
        return replies.reply(request, lambda: _make(request, surfaces, key, metrics))
    except _Rejected as rejected:
        cause, problems, request_id = rejected.cause, rejected.problems, rejected.request_id
    except RequestConflict as error:
        cause, problems = "conflict", [_problem("request_id", str(error))]
        request_id = request.request_id
    except Exception as error:
        _LOG.error("answering a request failed: %s", _place(error))
        cause, problems = "failed", [_problem("body", f"no answer: {type(error).__name__}")]
        request_id = _request_id(value)
    if metrics is not None:
        metrics.count_rejected(REQUESTS, cause)
    return _dumps(_error(request_id, problems))


def _read(value: bytes | None, surfaces: Surfaces) -> Request:
    """The request. Raises `_Rejected`."""
    if value is None or len(value) > _MAX_REQUEST_BYTES:
        raise _Rejected("too_large", [_problem("body", "empty, or larger than 1 MiB")])
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _Rejected("unreadable", [_problem("body", f"not JSON: {error}")]) from error
    request_id = _valid_request_id(body)
    try:
        return surfaces.read_request(body)
    except UnknownSurface as error:
        problems = [_problem("surface", str(error))]
        raise _Rejected("not_found", problems, request_id) from error
    except ValidationError as error:
        problems = _problems(error.errors(include_url=False))
        raise _Rejected("invalid", problems, request_id) from error


def _make(request: Request, surfaces: Surfaces, key: bytes, metrics: Metrics | None) -> bytes:
    started = time.perf_counter()
    slate = surfaces.answer(request)
    reply = _dumps(surfaces.reply(slate, key))
    if metrics is not None:
        metrics.observe_reply(slate, time.perf_counter() - started)
    return reply


def _request_id(value: bytes | None) -> str | None:
    try:
        return _valid_request_id(orjson.loads(value or b""))
    except orjson.JSONDecodeError:
        return None


def _valid_request_id(body: Any) -> str | None:
    """The request id that a reply echoes; None if there is none or it is invalid."""
    stated = body.get("request_id") if isinstance(body, dict) else None
    try:
        return _ID.validate_python(stated)
    except ValidationError:
        return None


def _place(error: Exception) -> str:
    """The exception's type and where it was raised; its text may name the user."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {last.name}, {last.filename}:{last.lineno}"


def _dumps(reply: dict[str, Any]) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _problems(errors: Sequence[Any]) -> list[dict[str, str]]:
    """Each field's path, and what is wrong with it."""
    return [
        _problem(".".join(map(str, error["loc"])), error["msg"]) for error in errors[:_MAX_PROBLEMS]
    ]


def _problem(field: str, message: str) -> dict[str, str]:
    return {"field": field, "msg": message}


def _error(request_id: str | None, problems: list[dict[str, str]]) -> dict[str, Any]:
    return {"request_id": request_id, "error": {"detail": problems}}
