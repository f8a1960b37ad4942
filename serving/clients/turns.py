"""Turns at computing: of the requests under way, at most so many compute at once.

Knows threads. Does not know requests or stages. Python runs one thread at a time, and numpy lets go
of it many times in a reply: with sixteen replies under way, the threads hand it from core to core,
and a reply takes more than half as much CPU again. So a request computes while it has a turn, and
gives it up while its stages wait for servers, on threads of their own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 2  # one computes while the other's reply is written and the next request is read


class Turns:
    """Thread safe. One that has waited already goes before one that begins."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = at_once
        self._lock = threading.Lock()
        self._begun: deque[threading.Lock] = deque()
        self._new: deque[threading.Lock] = deque()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Waits for a turn and has it within the block."""
        self._take(self._new)
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within `computing`: gives the turn to another within this block, which waits."""
        self._give()
        try:
            yield
        finally:
            self._take(self._begun)

    def _take(self, queue: deque[threading.Lock]) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Lock()
            mine.acquire()
            queue.append(mine)
        mine.acquire()  # released by the thread that gives its turn

    def _give(self) -> None:
        with self._lock:
            for queue in (self._begun, self._new):
                if queue:
                    queue.popleft().release()
                    return
            self._free += 1


TURNS = Turns()
"""The turns of this process, which has one interpreter."""
