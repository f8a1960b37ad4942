"""Watches the feature rows of the users that open pages show, and publishes changes.

Knows the feature store and row differences. Does not know pages. Reads every 0.04 s for a
few seconds after an event of a watched user, every second otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import Any

import numpy as np

from features.store import FeatureFrame, FeatureStore, StoreDown
from serving.console.hub import EventHub, LiveMessage
from streams.contract.clock import Clock

_LOG = logging.getLogger(__name__)
_FAST_EVERY_S, _SLOW_EVERY_S, _FAST_FOR_S = 0.04, 1.0, 8.0
_LIST_SHOWN = 8


class FeatureWatch:
    """Publishes `feature` messages: {user_id, at_ms, changed: {name: [before, after]}}."""

    def __init__(self, store: FeatureStore, clock: Clock, hub: EventHub) -> None:
        self._store, self._clock, self._hub = store, clock, hub
        self._fast_until_s = 0.0
        self._last: dict[str, dict[str, Any]] = {}
        self._reading = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def notify(self, user_id: str) -> None:
        """An event of the user arrived: read fast for a few seconds if they are watched."""
        if user_id in self._hub.watched_users():
            self._fast_until_s = time.monotonic() + _FAST_FOR_S
            self._wake.set()

    def begin(self, user_id: str) -> None:
        """Reads the row of a user that a page has begun to show: later changes are published.

        While the store is down, changes count from the first read that succeeds.
        """
        with self._reading, contextlib.suppress(StoreDown):
            if user_id not in self._last:
                self._last[user_id] = self._read(user_id, self._clock.now_ms())

    def check(self) -> None:
        """Reads every watched user once and publishes what changed."""
        with self._reading:
            self._check()

    def _check(self) -> None:
        watched = self._hub.watched_users()
        for gone in self._last.keys() - watched:
            del self._last[gone]
        for user_id in watched:
            now_ms = self._clock.now_ms()
            row = self._read(user_id, now_ms)
            before = self._last.get(user_id)
            self._last[user_id] = row
            changed = {} if before is None else _changes(before, row)
            if changed:
                data = {"user_id": user_id, "at_ms": now_ms, "changed": changed}
                self._hub.publish(LiveMessage("feature", data, user_id))

    def _read(self, user_id: str, now_ms: int) -> dict[str, Any]:
        return plain_row(self._store.read("user", [user_id], now_ms))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch_loop, name="feature-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _watch_loop(self) -> None:
        while not self._stop.is_set():
            try:
                self.check()
            except StoreDown:
                self._stop.wait(_SLOW_EVERY_S)
            except Exception:
                _LOG.exception("comparing a watched row failed")
                self._stop.wait(_SLOW_EVERY_S)
            fast = time.monotonic() < self._fast_until_s
            self._wake.wait(_FAST_EVERY_S if fast else _SLOW_EVERY_S)
            if not fast:
                self._wake.clear()
            elif not self._stop.is_set():
                self._stop.wait(_FAST_EVERY_S)


def plain_row(frame: FeatureFrame, row: int = 0) -> dict[str, Any]:
    """One row as plain values, lists in full, nulls as None."""
    return {name: _plain(values[row]) for name, values in frame.columns.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        plain = value.item()
        return None if isinstance(plain, float) and math.isnan(plain) else plain
    return list(value) if isinstance(value, list | tuple | np.ndarray) else value


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [_truncated(before.get(name)), _truncated(value)]
        for name, value in after.items()
        if before.get(name) != value
    }


def _truncated(value: Any) -> Any:
    return value[:_LIST_SHOWN] if isinstance(value, list) else value
