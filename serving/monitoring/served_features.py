"""Logs the features that the ranker scored for each slate, and of a share the whole pool.

Knows slates and a bounded queue. Does not know files (`models.monitoring.served_log`).
While the queue is full, slates are dropped and counted. Pools become columns on the writing thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np

from models.monitoring.served_log import ServedLog, ServedSlate
from serving.pipeline.query import Query, Slate
from serving.stages.rule_selector import RULES_KEPT
from serving.stages.selectors import PlackettLuce
from streams.contract.impression import UNRANKED_ARMS
from streams.contract.topics import entity_hash

_LOG = logging.getLogger(__name__)
_SLATES_PER_FILE = 1_000


@dataclass(frozen=True)
class PoolLogging:
    """Of which feed requests the pool is logged, and how their slates are drawn from it.

    share: of requests, decided by a hash of the request's id, so that it is repeatable.
    """

    share: float = 0.0
    draw: PlackettLuce = field(default_factory=PlackettLuce)

    def wants(self, slate: Slate) -> bool:
        """Whether the slate was drawn by the live draw from a scored pool, and is in the share.

        Not where rules or caps limited the draw: its chances are not those of the pool alone.
        """
        if not self.share:
            return False
        pool, query = slate.pool, slate.query
        drawn = pool is not None and pool.scored is not None and slate.ranker_inputs is not None
        if not drawn or query.surface != "feed" or not _explored(query) or self.draw.caps:
            return False
        limited = RULES_KEPT in query.memo
        return not limited and entity_hash(f"pool {query.request_id}") < self.share * 2**64

    def columns(self, served: ServedSlate, slate: Slate) -> ServedSlate:
        """The slate with its pool."""
        pool, draw = slate.pool, self.draw
        assert pool is not None
        assert pool.scored is not None
        how = [draw.temperature, draw.diversity, draw.explore, draw.explore_temperature]
        return replace(
            served,
            pool_id=tuple(pool.item_ids),
            pool_score=pool.scored.score,
            pool_fresh=pool.from_source(draw.explore_source),
            pool_draw=np.array(how),
        )


class ServedFeatures:
    """Writes queued slates on its own thread. `log` None: records nothing. Thread safe."""

    def __init__(
        self,
        log: ServedLog | None,
        *,
        every_s: float = 5.0,
        depth: int = 2_000,
        pools: PoolLogging | None = None,
    ) -> None:
        self.log, self._every_s, self._pools = log, every_s, pools or PoolLogging()
        self.kept = self.dropped = 0
        self._waiting: queue.Queue[tuple[ServedSlate, Slate | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def record(self, slate: Slate) -> None:
        """Queues a slate; ignores one that no ranker scored."""
        served = served_slate(slate) if self.log is not None else None
        if served is None:
            return
        try:
            self._waiting.put_nowait((served, slate if self._pools.wants(slate) else None))
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
            served, whole = self._waiting.get_nowait()
            slates.append(served if whole is None else self._pools.columns(served, whole))
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


def _explored(query: Query) -> bool:
    """Whether the feed's own draw answers the query."""
    return query.explore and query.candidates is None and query.arm not in UNRANKED_ARMS


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
