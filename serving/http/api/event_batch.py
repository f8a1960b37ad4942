"""The events in a request's body, each with the verdict that the topic would give it.

Knows JSON arrays, the event schema and admission's limits. Does not know HTTP. Each event keeps
the bytes that its sender wrote, and those bytes are checked, so an unreadable event does not
hide its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from serving.http.api.json import with_time_fix
from streams.codec.decode import Rejection, validate_json_event
from streams.contract.declaration import contract
from streams.contract.events import Event, event_adapter
from streams.contract.signals import PROFILE
from streams.ingest.admission import AdmissionLimits

MAX_EVENTS = 1_000
_SPACE = b" \t\r\n"
# A string, or a character that structures JSON; a quote alone begins a string without an end.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},"]', re.DOTALL)


_OF_OWNERS = "attributes of users are stated with an API key of the scope 'admin'"


class BadBatch(ValueError):
    """The body is no list of 1 to `MAX_EVENTS` events; the message says why."""


class RefusedEvent(BaseModel):
    """An event that was not accepted. `cause`: as in a dead letter of the topic."""

    index: int
    field: str
    cause: str
    msg: str


@dataclass(frozen=True)
class CheckedEvent:
    """One event of a request: its bytes, and the event or the problems that refuse it.

    `problems`: as pydantic states them, each with `loc` within the event. They are empty if and
    only if there is an event.
    """

    raw: bytes
    event: Event | None
    cause: str = ""
    problems: tuple[dict[str, Any], ...] = ()

    def refused(self, index: int) -> RefusedEvent:
        first = self.problems[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        return RefusedEvent(index=index, field=field, cause=self.cause, msg=first["msg"])


def split_events(body: bytes) -> list[bytes]:
    """The bytes of each event: of the body if it is no list, otherwise of the list's elements.

    Raises:
        BadBatch: the list is empty, too long, or not closed.
    """
    text = body.strip(_SPACE)
    found = list(_elements(text)) if text.startswith(b"[") else [text]
    if not found:
        raise BadBatch(f"0 events; send 1 to {MAX_EVENTS} at a time")
    return found


def _elements(text: bytes) -> Iterator[bytes]:
    depth = count = 0
    start = 1
    for token in _TOKEN.finditer(text):
        character = token[0]
        if character in (b"[", b"{"):
            depth += 1
        elif character in (b"]", b"}"):
            depth -= 1
        elif character == b'"':
            break
        if depth > 1 or (depth == 1 and character != b","):
            continue
        element = text[start : token.start()].strip(_SPACE)
        start = token.end()
        if element or depth or count:
            count += 1
            if count > MAX_EVENTS:
                raise BadBatch(f"more than {MAX_EVENTS} events; send 1 to {MAX_EVENTS} at a time")
            yield element
        if not depth:
            break
    if depth or start != len(text):
        raise BadBatch("not JSON: the list is not closed, or something follows it")


def refuse_profile(raw: bytes) -> CheckedEvent | None:
    """The refusal of an event that states attributes of a user; None for any other.

    An API key for events may be in browsers, and attributes are the owner's word. The parser is the
    one that validates events, so no form of an event is read differently here.
    """
    try:
        stated = from_json(raw)
    except ValueError:
        return None  # no event: it is refused for that
    if not isinstance(stated, dict) or stated.get("kind") != PROFILE.name:
        return None
    problem = {"type": "forbidden", "loc": ("kind",), "msg": _OF_OWNERS}
    return CheckedEvent(raw, None, "forbidden", (problem,))


def check_event(raw: bytes, now_ms: int, limits: AdmissionLimits) -> CheckedEvent:
    """The verdict that admission would give these bytes at `now_ms`.

    Admission alone knows which users were erased, and which event is a duplicate.
    """
    verdict = validate_json_event(raw, limits.max_event_bytes)
    if isinstance(verdict, Rejection):
        return CheckedEvent(raw, None, verdict.cause, tuple(_problems(raw, verdict, limits)))
    stated = verdict.event_time_ms
    cause = (
        "future"
        if stated > now_ms + limits.future_ms
        else "ancient"
        if stated < now_ms - limits.horizon_ms
        else ""
    )
    if not cause:
        return CheckedEvent(raw, verdict)
    msg = f"{cause}: event_time_ms {stated}, the server's time is {now_ms}"
    problem = {"type": cause, "loc": ("event_time_ms",), "msg": msg}
    return CheckedEvent(raw, None, cause, (problem,))


def _problems(
    raw: bytes, rejection: Rejection, limits: AdmissionLimits
) -> Iterator[dict[str, Any]]:
    """Each problem of a rejected event, without the union's tags or the input."""
    try:
        if len(raw) <= limits.max_event_bytes:
            event_adapter().validate_json(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        if details[0]["type"] != "json_invalid":
            yield from map(_problem, details)
            return
    yield {"type": rejection.cause, "loc": (), "msg": rejection.detail}


def _problem(detail: Any) -> dict[str, Any]:
    path = tuple(detail["loc"])
    path = path[1:] if path and path[0] in contract().signals.kinds else path  # the union's tag
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path = ("kind",)
    message = with_time_fix({**detail, "loc": path})
    return {"type": detail["type"], "loc": path, "msg": message}
