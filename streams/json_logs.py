"""Logs as JSON, one line a record, with the trace in which it was logged.

Knows the fields of a line: timestamp, level, logger, message, process, trace_id and span_id inside
a span, and exception. Does not know where the lines go. `extra` fields are not written: only what
a message says can stand in a log.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import orjson
from opentelemetry import trace

LogFormat = Literal["json", "text"]
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
HIDDEN = "[hidden]"
MIN_SECRET = 8  # a shorter one would hide ordinary words
_log = logging.getLogger("tidemill")


class JsonFormatter(logging.Formatter):
    """One JSON object a record. `process`: the process's name; `secrets` are never written."""

    def __init__(self, process: str, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self._process, self._secrets = process, _hideable(secrets)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": _timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": self._process,
            **_span_ids(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = orjson.dumps({name: _without(value, self._secrets) for name, value in line.items()})
        return text.decode()


class TextFormatter(logging.Formatter):
    """One line of text a record, for a terminal; `secrets` are never written."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__(TEXT_FORMAT)
        self._secrets = _hideable(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return _without(super().format(record), self._secrets)


def _hideable(secrets: Collection[str]) -> list[str]:
    return sorted((each for each in secrets if len(each) >= MIN_SECRET), key=len, reverse=True)


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate is no JSON


def _timestamp(created_s: float) -> str:
    at = datetime.fromtimestamp(created_s, UTC).isoformat(timespec="milliseconds")
    return at.replace("+00:00", "Z")


def _span_ids() -> Mapping[str, str]:
    """The ids in W3C form (32 and 16 hex digits); {} outside any span."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def configure_logs(process: str, form: LogFormat = "json", secrets: Collection[str] = ()) -> None:
    """Sends this process's logs, warnings and uncaught exceptions to standard error.

    May be called again, with what the settings say once they are read. Like `basicConfig` it does
    nothing where something else has given the root logger a handler.
    """
    root, own = logging.getLogger(), JsonFormatter | TextFormatter
    if not all(isinstance(each.formatter, own) for each in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonFormatter(process, secrets) if form == "json" else TextFormatter(secrets)
    handler.setFormatter(formatter)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda found: _log_uncaught(
        found.exc_type, found.exc_value, found.exc_traceback
    )


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    _log.critical("uncaught %s", kind.__name__, exc_info=(kind, error or kind(), traceback))


def as_text(line: str) -> str:
    """A line of a JSON log as a person reads it: time, level, message and traceback. Any other
    line is returned as it is."""
    if not line.startswith('{"timestamp"'):
        return line
    try:
        found = orjson.loads(line)
        head = f"{found['timestamp']} {found['level']} {found['logger']}: {found['message']}"
    except (orjson.JSONDecodeError, KeyError):
        return line
    return f"{head}\n{found['exception']}" if "exception" in found else head
