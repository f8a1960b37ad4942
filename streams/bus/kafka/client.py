"""What librdkafka's producer and consumer share: settings, time limits, errors.

Knows librdkafka's errors and how to abandon a call that does not return. Does not know messages.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from streams.bus.contract import BusError
from streams.bus.kafka.login import PLAIN_TEXT, KafkaLogin

T = TypeVar("T")
LOG = logging.getLogger(__name__)
REQUEST_TIMEOUT_S = 10.0  # after which the broker counts as down
JOIN_TIMEOUT_S = 20.0


def client_config(bootstrap_servers: str, login: KafkaLogin = PLAIN_TEXT) -> dict[str, Any]:
    return login.client_config() | {
        "bootstrap.servers": bootstrap_servers,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "logger": LOG,
    }


def to_bus_error(what: str, error: KafkaException, bootstrap: str) -> BusError:
    """`what`: the action that failed, such as "list topics"."""
    reason = error.args[0]
    return BusError(f"could not {what} at {bootstrap}: {reason.str()} ({reason.name()})")


def call_with_timeout(seconds: float, call: Callable[..., T], *args: Any) -> T:
    """`call(*args)` in a daemon thread, which is abandoned if the call does not return.

    Raises:
        TimeoutError: it did not return within `seconds`.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(call(*args))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(seconds)
