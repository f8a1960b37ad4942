"""Logs the features that the ranker scored for each slate, without delaying replies.

Knows slates and a bounded queue. Does not know files (`models.monitoring.served_log`).
While the queue is full, slates are dropped and counted.
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
_SLATES_PER_FILE = 1_000


class ServedFeatures:
    """Writes queued slates on its own thread. `log` None: records nothing. Thread safe."""

    def __init__(self, log: ServedLog | None, *, every_s: float = 5.0, depth: int = 2_000) -> None:
        self.log, self._every_s = log, every_s
        self.kept = self.dropped = 0
        self._waiting: queue.Queue[ServedSlate] = queue.Queue(depth)
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def record(self, slate: Slate) -> None:
        """Queues a slate; ignores one that no ranker scored."""
        served = served_slate(slate) if self.log is not None else None
        if served is None:
            return
        try:
            self._waiting.put_nowait(served)
        except queue.Full:
            self.dropped += 1

    def erase(self, user_id: str) -> None:
        """Removes the user's slates, including those still queued."""
        if self.log is None:
            return
        self.flush()
        with self._writing:
            self.log.erase(user_id)

    def flush(self) -> None:
        """Writes everything queued now, one file per `_SLATES_PER_FILE` slates."""
        with self._writing:
            for _ in range(-(-self._waiting.qsize() // _SLATES_PER_FILE)):
                self._write_file()

    def _write_file(self) -> None:
        slates: list[ServedSlate] = []
        while len(slates) < _SLATES_PER_FILE and not self._waiting.empty():
            slates.append(self._waiting.get_nowait())
        if slates and self.log is not None:
            self.log.append(slates)
            self.kept += len(slates)

    def start(self) -> None:
        if self.log is not None:
            self._thread = threading.Thread(target=self._write_loop, name="served", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._flush_or_warn()

    def _write_loop(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(0.5):
            due = time.monotonic() - last >= self._every_s
            if due or self._waiting.qsize() >= _SLATES_PER_FILE:
                self._flush_or_warn()
                last = time.monotonic()

    def _flush_or_warn(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _LOG.warning("writing served features failed: %s", error)


def served_slate(slate: Slate) -> ServedSlate | None:
    """The slate with the ranker's inputs; None where no ranker scored it."""
    query, inputs = slate.query, slate.ranker_inputs
    if inputs is None or not slate.items:
        return None
    return ServedSlate(
        request_id=query.slate_id,
        user_id=query.user_id,
        served_at_ms=query.now_ms,
        release=query.release.release_id,
        stale=query.stale,
        user_x=inputs.user_x,
        history=inputs.history,
        video_id=tuple(candidate.item_id for candidate in slate.items),
        video_x=np.ascontiguousarray(inputs.item_x).ravel(),
        weights=np.array(list(slate.weights.values()), np.float32),
        log_density=slate.log_density,
    )
