"""JSON messages of the topics beside `behaviour`: validated, applied, or rejected with a cause.

Knows records, pydantic models and causes. Does not know what a message changes
(`streams.catalogue`, `streams.erasure`) nor how a dead letter is written
(`streams.ingest.dead_letters`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from streams.bus.polled import Record
from streams.codec.decode import Rejection, reject_invalid, validate_framed
from streams.codec.framing import is_framed
from streams.contract.bounds import MAX_EVENT_TIME_MS

_log = logging.getLogger(__name__)
RETRY_S = 0.5
# What one message can cause. Other errors mean that a store or the process is broken.
DATA_ERRORS = (ValueError, TypeError, ArithmeticError, LookupError, RecursionError)
T = TypeVar("T")


class RejectedRecord(NamedTuple):
    """A record that was not applied, and why."""

    record: Record
    cause: str
    detail: str


OnRejected = Callable[[Sequence[RejectedRecord]], object]
"""Writes the records as dead letters, or logs them. Called with one or more."""


def no_limit() -> int:
    """The largest time that the contract accepts, for readers without a clock."""
    return MAX_EVENT_TIME_MS


def validate_message(
    adapter: TypeAdapter[T], value: bytes | None, envelope: str = "", context: object = None
) -> T | Rejection:
    """One message by its pydantic model. `envelope`: the fix if the discriminator is missing.
    `context`: what the model's validators ask for (`streams.contract.items`).

    Raises nothing.
    """
    if value is None:
        return Rejection("null_value", "the message has no value")
    try:
        return adapter.validate_json(value, context=context)
    except ValidationError as error:
        rejection = reject_invalid(error)
        if error.errors(include_url=False)[0]["type"] == "union_tag_not_found" and envelope:
            return Rejection("missing_field", f"kind: Field required ({envelope})")
        return rejection


def validate_record(
    adapter: TypeAdapter[T], record: Record, envelope: str = "", context: object = None
) -> T | Rejection:
    """As `validate_message`, for a record, whose value may be framed (`streams.codec.framing`)."""
    value = record.value
    if not value or not is_framed(value):
        return validate_message(adapter, value, envelope, context)
    return validate_framed(value, lambda bare: validate_message(adapter, bare, envelope, context))


def reject_future(times_ms: dict[str, int], latest_ms: int) -> Rejection | None:
    """The rejection of a message with a time (field -> ms) after `latest_ms`; None: it has none."""
    for field, at_ms in times_ms.items():
        if at_ms > latest_ms:
            return Rejection("future", f"{field} {at_ms}, accepted up to {latest_ms}")
    return None


def log_rejected(rejected: Sequence[RejectedRecord]) -> None:
    """For consumers beside the one that writes dead letters."""
    for (topic, partition, offset, *_), cause, detail in rejected:
        _log.warning("%s/%d/%d is not applied: %s, %s", topic, partition, offset, cause, detail)


def apply_valid(
    records: Sequence[Record],
    parse: Callable[[Record], T | Rejection],
    apply: Callable[[list[T]], object],
    stop: threading.Event,
    wait_on: tuple[type[Exception], ...] = (),
) -> list[RejectedRecord] | None:
    """Applies what is valid; returns the rejected records, or None if `stop` came first.

    An error of `wait_on` or an OSError (a store is down, a disk full) is retried. An error that
    the data of one message can cause rejects that message only.
    """
    verdicts = [(record, parse(record)) for record in records]
    rejected = [RejectedRecord(r, *v) for r, v in verdicts if isinstance(v, Rejection)]
    valid = [(record, v) for record, v in verdicts if not isinstance(v, Rejection)]
    failed = _apply_all(valid, apply, stop, (OSError, *wait_on)) if valid else []
    return None if failed is None else rejected + failed


def _apply_all(
    valid: Sequence[tuple[Record, Any]],
    apply: Callable[[list[Any]], object],
    stop: threading.Event,
    wait_on: tuple[type[Exception], ...],
) -> list[RejectedRecord] | None:
    """Applying twice must be harmless: a batch that fails is applied again message by message."""
    while not stop.is_set():
        try:
            apply([message for _, message in valid])
            return []
        except wait_on as error:
            _log.warning("applying messages failed, will retry: %r", error)
            stop.wait(RETRY_S)
        except DATA_ERRORS as error:
            if len(valid) == 1:
                _log.exception("a message cannot be applied")
                return [RejectedRecord(valid[0][0], "failed", repr(error)[:300])]
            parts = [_apply_all([one], apply, stop, wait_on) for one in valid]
            done = [part for part in parts if part is not None]
            return [each for part in done for each in part] if len(done) == len(parts) else None
    return None
