"""Retries: a failing call is repeated with growing pauses, within a limit.

Knows time limits and a stop event. Does not know what is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event


@dataclass(frozen=True)
class RetryPolicy:
    """How long a worker waits for what may recover, in seconds."""

    topics_s: float = 60.0  # at the start, for topics to exist
    handler_s: float = 60.0  # for a failing handler
    first_pause_s: float = 0.05  # between attempts, doubled each time
    max_pause_s: float = 2.0
    stop_s: float = 10.0  # at the end, for the batch in flight and the consumer


class RetryInterrupted(RuntimeError):
    """The worker was asked to stop while a call was failing."""


def call_with_retry(
    call: Callable[[], object],
    policy: RetryPolicy,
    stopping: Event,
    *,
    fatal: type[Exception],
    on_failure: Callable[[Exception, float], None],
) -> None:
    """Calls until `call` returns.

    `on_failure` gets each error and the pause (s) before the next attempt.

    Raises:
        RetryInterrupted: `stopping` was set.
        Exception: a `fatal` error at once; any other when `policy.handler_s` has passed.
    """
    pause_s, deadline = policy.first_pause_s, time.monotonic() + policy.handler_s
    while True:
        try:
            call()
            return
        except fatal:
            raise
        except Exception as error:
            on_failure(error, pause_s)
            if time.monotonic() + pause_s > deadline:
                raise
        if stopping.wait(pause_s):
            raise RetryInterrupted("asked to stop while retrying")
        pause_s = min(2 * pause_s, policy.max_pause_s)
