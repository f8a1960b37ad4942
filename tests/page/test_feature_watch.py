"""The feature watch: a page misses no change from the moment its stream is up."""

from __future__ import annotations

from typing import Any

from features.memory_store import MemoryFeatureStore
from features.store import FeatureFrame, StoreDown
from serving.console.feature_watch import FeatureWatch
from serving.console.hub import EventHub, LiveMessage, Subscriber
from serving.pipeline.frames import absent_rows
from streams.contract.clock import WallClock


class _Rows(MemoryFeatureStore):
    """One user's row, whose likes the test sets."""

    likes, down = 0, False

    def read(self, *_: Any, **__: Any) -> FeatureFrame:
        if self.down:
            raise StoreDown("down")
        frame = absent_rows("user", ["u1"])
        frame.columns["like_count_all"][0] = self.likes
        return frame


def _watched() -> tuple[_Rows, FeatureWatch, list[LiveMessage]]:
    store, hub = _Rows(), EventHub()
    page = Subscriber("u1", lambda: None)
    hub.subscribe(page)
    messages: Any = page.messages
    return store, FeatureWatch(store, WallClock(), hub), messages


def test_a_change_right_after_the_page_is_up_is_published() -> None:
    store, watch, messages = _watched()
    watch.begin("u1")
    store.likes = 1  # before the watch's own loop has read the row once
    watch.check()
    (message,) = messages
    assert message.data["changed"]["like_count_all"] == [0, 1]


def test_a_second_page_does_not_hide_a_change_from_the_first() -> None:
    store, watch, messages = _watched()
    watch.begin("u1")
    store.likes = 1
    watch.begin("u1")
    watch.check()
    assert messages[0].data["changed"]["like_count_all"] == [0, 1]


def test_a_page_opens_while_the_store_is_down() -> None:
    store, watch, messages = _watched()
    store.down = True
    watch.begin("u1")
    store.down = False
    watch.check()
    store.likes = 1
    watch.check()
    assert messages[0].data["changed"]["like_count_all"] == [0, 1]
