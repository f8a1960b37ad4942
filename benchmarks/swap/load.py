"""Feeds at a steady rate over loopback, whatever happens to the gateway meanwhile.

Knows HTTP, times and fallbacks. Does not know what is swapped or broken. Latency counts from the
intended time of sending: a gateway that stalls delays all that should have been sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import orjson

from benchmarks.serve.load import request

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Reply:
    """sent_s: monotonic, as intended. status: 0 without an answer."""

    sent_s: float
    took_s: float
    status: int
    fallbacks: int

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def clean(self) -> bool:
        """Answered, and every stage by its own means."""
        return self.ok and not self.fallbacks


class SteadyLoad:
    """Sends `per_s` feeds a second in a thread of its own. Use it as a context."""

    def __init__(self, port: int, users: Sequence[str], per_s: float) -> None:
        self._port, self._users, self._per_s = port, users, per_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()), name="load")
        self.replies: list[Reply] = []  # in order of completion

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(2 * TIMEOUT_S)

    def between(self, start_s: float, end_s: float) -> list[Reply]:
        """Those that should have been sent in the span, in order."""
        found = [reply for reply in list(self.replies) if start_s <= reply.sent_s < end_s]
        return sorted(found, key=lambda reply: reply.sent_s)

    async def _send_all(self) -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as running:
            while not self._stop.is_set():
                due = began + number / self._per_s
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
                running.create_task(self._send(number, due))
                number += 1

    async def _send(self, number: int, due: float) -> None:
        """On a connection of its own: one that is kept may be closed by the server meanwhile."""
        status, body = 0, b""
        with suppress(OSError, EOFError, ValueError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                streams = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    status, body = await request(*streams, "POST /v1/feed", self._body(number))
                finally:
                    streams[1].close()
        fallbacks = len(orjson.loads(body)["fallbacks"]) if status == 200 else 0
        self.replies.append(Reply(due, time.monotonic() - due, status, fallbacks))

    def _body(self, number: int) -> bytes:
        user = self._users[number % len(self._users)]
        return orjson.dumps({"user_id": user, "k": 10, "seed": number})


def p99_ms(replies: Sequence[Reply]) -> float:
    """Over answered and unanswered ones; nan without any."""
    return 1e3 * float(np.percentile([r.took_s for r in replies], 99)) if replies else np.nan


def failed(replies: Sequence[Reply]) -> int:
    return sum(not reply.ok for reply in replies)


def causes(replies: Sequence[Reply]) -> str:
    """How many requests failed by status, as "429: 3, none: 1"; "" where none did."""
    found = Counter(str(reply.status or "none") for reply in replies if not reply.ok)
    return ", ".join(f"{status}: {count}" for status, count in found.most_common())


def with_fallback(replies: Sequence[Reply]) -> int:
    return sum(reply.ok and not reply.clean for reply in replies)
