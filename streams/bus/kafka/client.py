"""What librdkafka's producer and consumer have in common here: settings, limits, errors.

Knows which errors end a process, and how to leave a call that does not come back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from streams.bus.contract import BusError

T = TypeVar("T")
LOG = logging.getLogger(__name__)
ANSWER_S = 10.0  # how long one request to the broker may take before it counts as down
JOIN_S = 20.0


def client_config(bootstrap_servers: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap_servers,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "logger": LOG,
    }


def went_down(what: str, error: KafkaException, bootstrap: str) -> BusError:
    reason = error.args[0]
    return BusError(f"could not {what} at {bootstrap}: {reason.str()} ({reason.name()})")


def within(seconds: float, call: Callable[..., T], *args: Any) -> T:
    """`call(*args)`, in a thread that is left behind when the call does not come back.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    came: Future[T] = Future()

    def work() -> None:
        try:
            came.set_result(call(*args))
        except BaseException as error:
            came.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return came.result(seconds)
