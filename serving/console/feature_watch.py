"""Watches the rows of the users that some page looks at, and says what changed.

Knows the feature store and differences of rows. Does not know pages. Looks often for a
few seconds after an event of the user, seldom otherwise.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np

from features.store import FeatureFrame, FeatureStore, StoreDown
from serving.console.live import Live, Message
from streams.contract.clock import Clock

_LOG = logging.getLogger(__name__)
_QUICK_S, _SLOW_S, _ALERT_S = 0.04, 1.0, 8.0
_LIST_SHOWN = 8


class FeatureWatch:
    """Publishes `feature` messages: {user_id, at_ms, changed: {name: [before, after]}}."""

    def __init__(self, store: FeatureStore, clock: Clock, live: Live) -> None:
        self._store, self._clock, self._live = store, clock, live
        self._alert_until_s = 0.0
        self._last: dict[str, dict[str, Any]] = {}
        self._poke = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def poke(self, user_id: str) -> None:
        """The user did something: look closely for a while."""
        if user_id in self._live.watched():
            self._alert_until_s = time.monotonic() + _ALERT_S
            self._poke.set()

    def check(self) -> None:
        """Reads every watched user once and publishes what changed."""
        watched = self._live.watched()
        for gone in self._last.keys() - watched:
            del self._last[gone]
        for user_id in watched:
            now_ms = self._clock.now_ms()
            row = plain_row(self._store.read("user", [user_id], now_ms))
            before = self._last.get(user_id)
            self._last[user_id] = row
            changed = {} if before is None else _changes(before, row)
            if changed:
                data = {"user_id": user_id, "at_ms": now_ms, "changed": changed}
                self._live.publish(Message("feature", data, user_id))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="feature-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._poke.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                self.check()
            except StoreDown:
                self._stop.wait(_SLOW_S)
            except Exception:
                _LOG.exception("a watched row could not be compared")
                self._stop.wait(_SLOW_S)
            alert = time.monotonic() < self._alert_until_s
            self._poke.wait(_QUICK_S if alert else _SLOW_S)
            if not alert:
                self._poke.clear()
            elif not self._stop.is_set():
                self._stop.wait(_QUICK_S)


def plain_row(frame: FeatureFrame, row: int = 0) -> dict[str, Any]:
    """One row as plain values, lists whole."""
    return {name: _plain(values[row]) for name, values in frame.columns.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, list | tuple | np.ndarray) else value


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [_cut(before.get(name)), _cut(value)]
        for name, value in after.items()
        if before.get(name) != value
    }


def _cut(value: Any) -> Any:
    return value[:_LIST_SHOWN] if isinstance(value, list) else value
