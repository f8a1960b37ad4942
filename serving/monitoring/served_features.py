"""Logs what the ranker saw of each slate, beside the answers and never in their way.

Knows slates and a bounded queue. Does not know files (`models.monitoring.served_log`). A full
queue drops slates and counts them: an answer is never late for its log.
"""

from __future__ import annotations

import logging
import queue
import threading
import time

import numpy as np

from models.monitoring.served_log import ServedLog, ServedSlate
from serving.pipeline.query import Slate

_LOG = logging.getLogger(__name__)
_GATHER = 1_000  # slates a file


class ServedFeatures:
    """Thread safe. `log` None: nothing is kept."""

    def __init__(self, log: ServedLog | None, *, every_s: float = 5.0, depth: int = 2_000) -> None:
        self.log, self._every_s = log, every_s
        self.kept = self.dropped = 0
        self._waiting: queue.Queue[ServedSlate] = queue.Queue(depth)
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def keep(self, slate: Slate) -> None:
        """Hands a slate in; one that no ranker scored has nothing to keep."""
        made = served_slate(slate) if self.log is not None else None
        if made is None:
            return
        try:
            self._waiting.put_nowait(made)
        except queue.Full:
            self.dropped += 1

    def erase(self, user_id: str) -> None:
        """Removes what is kept of the user, also what still waits."""
        if self.log is None:
            return
        self.flush()
        with self._writing:
            self.log.erase(user_id)

    def flush(self) -> None:
        """Writes everything that waits now, a file for each `_GATHER` slates."""
        with self._writing:
            for _ in range(-(-self._waiting.qsize() // _GATHER)):
                self._write_file()

    def _write_file(self) -> None:
        slates: list[ServedSlate] = []
        while len(slates) < _GATHER and not self._waiting.empty():
            slates.append(self._waiting.get_nowait())
        if slates and self.log is not None:
            self.log.append(slates)
            self.kept += len(slates)

    def start(self) -> None:
        if self.log is not None:
            self._thread = threading.Thread(target=self._keep_writing, name="served", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._flush_or_say()

    def _keep_writing(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(0.5):
            if time.monotonic() - last >= self._every_s or self._waiting.qsize() >= _GATHER:
                self._flush_or_say()
                last = time.monotonic()

    def _flush_or_say(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _LOG.warning("served features could not be written: %s", error)


def served_slate(slate: Slate) -> ServedSlate | None:
    """The slate as the ranker saw it; None where no ranker scored it."""
    query, seen = slate.query, slate.seen
    if seen is None or not slate.items:
        return None
    return ServedSlate(
        request_id=query.request_id,
        user_id=query.user_id,
        served_at_ms=query.now_ms,
        release=query.release.release_id,
        stale=query.stale,
        user_x=seen["user_x"],
        history=seen["history"],
        video_id=tuple(candidate.video_id for candidate in slate.items),
        video_x=np.ascontiguousarray(seen["video_x"]).ravel(),
        weights=np.array(list(slate.weights.values()), np.float32),
        log_density=slate.log_density,
    )
