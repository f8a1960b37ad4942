"""The Kafka edge: `recommendation.requests` in, `recommendation.responses` out.

Knows messages. The surfaces are the same as over HTTP, and so is the reply, with
`error` in its place when the request is wrong. At least once: a request whose answer
was written just before a crash is answered again, with the same request_id.

A request is a JSON object: {"surface": "feed" | "queries" | "reactivation", ...} with
the fields of `serving.pipeline.requests`. The response has the request's key and headers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from serving.monitoring.trace import context_of, current_header_bytes, tracer
from serving.pipeline.reply import to_reply
from serving.pipeline.requests import REQUEST
from serving.pipeline.surfaces import Surfaces
from streams.bus.contract import Bus, BusError, Consumed, Consumer, Outgoing, Producer, Record
from streams.contract.topics import REQUESTS, RESPONSES

_LOG = logging.getLogger(__name__)
_GROUP = "tidemill-requests-edge"
_MAX_REQUEST_BYTES = 1 << 20
_BATCH = 64
_RETRY_S = 1.0


def run(
    bus: Bus,
    surfaces: Surfaces,
    stop: threading.Event,
    *,
    impression_key: bytes,
    group: str = _GROUP,
) -> None:
    """Answers requests until `stop` is set; connects again after the broker was away."""
    while not stop.is_set():
        consumer: Consumer | None = None
        producer: Producer | None = None
        try:
            consumer, producer = bus.consumer([REQUESTS], group), bus.producer()
            _serve(consumer, producer, surfaces, impression_key, stop)
        except BusError as error:
            _LOG.warning("the requests edge is interrupted: %s", error)
            stop.wait(_RETRY_S)
        finally:
            for part in (consumer, producer):
                if part is not None:
                    part.close()


def _serve(
    consumer: Consumer,
    producer: Producer,
    surfaces: Surfaces,
    key: bytes,
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        records = consumer.poll(_BATCH, 0.1)
        if records:
            answers = [_outgoing(record, surfaces, key) for record in records]
            producer.send(answers, consumed=Consumed(consumer, records))


def _outgoing(record: Record, surfaces: Surfaces, key: bytes) -> Outgoing:
    carried = {name: value for name, value in record.headers if name != "traceparent"}
    parent = {name: value.decode("latin-1") for name, value in record.headers}
    with tracer().start_as_current_span("recommendation.requests", context=context_of(parent)):
        reply = answer(record.value, surfaces, key)
        headers = carried | current_header_bytes()
    return Outgoing(RESPONSES, orjson.dumps(reply), record.key, headers=headers)


def answer(value: bytes | None, surfaces: Surfaces, key: bytes) -> dict[str, Any]:
    """The reply to one message; never raises for what the message holds."""
    if value is None or len(value) > _MAX_REQUEST_BYTES:
        return _error(None, [{"field": "body", "msg": "empty, or larger than 1 MiB"}])
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return _error(None, [{"field": "body", "msg": f"not JSON: {error}"}])
    try:
        request = REQUEST.validate_python(body)
    except ValidationError as error:
        return _error(body, _problems(error.errors(include_url=False)))
    try:
        return to_reply(surfaces.answer(request), key, surfaces.parts.catalogue)
    except Exception as error:
        _LOG.exception("a request could not be answered")
        return _error(body, [{"field": "body", "msg": f"no answer: {type(error).__name__}"}])


def _problems(errors: Sequence[Any]) -> list[dict[str, Any]]:
    surfaces = ("feed", "queries", "reactivation")
    return [
        {
            "field": ".".join(str(part) for part in error["loc"] if part not in surfaces)
            or "surface",
            "msg": error["msg"],
        }
        for error in errors[:20]
    ]


def _error(body: Any, problems: list[dict[str, Any]]) -> dict[str, Any]:
    request_id = body.get("request_id") if isinstance(body, dict) else None
    return {"request_id": request_id, "error": {"detail": problems}}
