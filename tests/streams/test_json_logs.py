"""Logs are JSON lines with trace ids, and hold no secret."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from streams import json_logs
from streams.json_logs import HIDDEN, JsonFormatter, TextFormatter, as_text

SECRET = "0123456789abcdef" * 4


@pytest.fixture
def logged() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of its own and what it has written."""
    stream, logger = io.StringIO(), logging.getLogger("tidemill.test_json_logs")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("features-2", [SECRET, ""]))
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)


def test_a_line_has_its_fields_and_outside_a_span_no_trace(
    logged: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = logged
    logger.warning("retry in %.1f s", 0.5)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "tidemill.test_json_logs",
        "message": "retry in 0.5 s",
        "process": "features-2",
    }


def test_a_line_inside_a_span_names_the_trace(
    logged: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = logged
    with TracerProvider().get_tracer("test").start_as_current_span("stage") as span:
        logger.error("inside")
    line, context = json.loads(stream.getvalue()), span.get_span_context()
    assert int(line["trace_id"], 16) == context.trace_id
    assert int(line["span_id"], 16) == context.span_id
    assert (len(line["trace_id"]), len(line["span_id"])) == (32, 16)


def test_secrets_and_extra_fields_are_not_written(
    logged: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = logged
    try:
        raise ValueError(f"the key {SECRET} is wrong")
    except ValueError:
        logger.exception("checking %s", SECRET, extra={"user_id": "u-private"})
    assert SECRET not in stream.getvalue()
    assert "u-private" not in stream.getvalue()
    assert stream.getvalue().count(HIDDEN) >= 2


@settings(max_examples=40)
@given(st.text(), st.text())
def test_every_message_is_one_line_of_json(message: str, error: str) -> None:
    try:
        raise ValueError(error)
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "", 0, message, None, sys.exc_info())
    line = JsonFormatter("batcher").format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == message
    assert as_text(line).startswith(json.loads(line)["timestamp"])


def test_lines_of_other_programs_are_shown_as_they_are() -> None:
    for line in ("I1130 server started", '{"timestamp": broken', '{"timestamp":"x"}'):
        assert as_text(line) == line


def test_text_hides_secrets_too() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, f"key {SECRET}", None, None)
    assert TextFormatter([SECRET]).format(record).endswith(f"INFO x: key {HIDDEN}")


SCRIPT = """
import logging, threading, warnings
from streams.json_logs import configure_logs
configure_logs("early"); configure_logs("batcher", "json", ["s3cr3t-value"])
logging.getLogger("tidemill").info("s3cr3t-value is set")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
raise RuntimeError("ends")
"""


def test_warnings_and_uncaught_exceptions_are_lines_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert {line["process"] for line in lines} == {"batcher"}
    messages = [line["message"] for line in lines]
    assert messages[0] == f"{HIDDEN} is set"
    assert messages[2:] == ["uncaught ZeroDivisionError", "uncaught RuntimeError"]
    assert "ZeroDivisionError: division by zero" in lines[2]["exception"]


def test_a_configured_root_logger_is_left_alone() -> None:
    """As under pytest, whose handlers capture what tests look at."""
    before = list(logging.getLogger().handlers)
    hook = threading.excepthook
    json_logs.configure_logs("batcher")
    assert logging.getLogger().handlers == before
    assert threading.excepthook is hook
