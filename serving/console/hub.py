"""The event hub: distributes live messages to the open pages.

Knows messages and subscribers. Does not know where messages come from nor HTTP
(`serving.http.api.stream` turns them into server-sent events).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

LiveKind = Literal["event", "dead", "feature", "release", "update", "stats"]
_KEPT = 500


@dataclass(frozen=True)
class LiveMessage:
    """One message for the page. `user_id` None: for every subscriber."""

    kind: LiveKind
    data: dict[str, Any]
    user_id: str | None = None


@dataclass(eq=False)
class Subscriber:
    """One page's queue. When full, the oldest message is dropped, so a slow page blocks nothing.

    `user_id` is the user that the page shows; `wake` runs after every message.
    """

    user_id: str | None
    wake: Callable[[], object]
    messages: deque[LiveMessage] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def put(self, message: LiveMessage) -> None:
        self.messages.append(message)
        self.wake()


class EventHub:
    """Thread safe."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.add(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)

    def has_subscribers(self) -> bool:
        return bool(self._subscribers)

    def watched_users(self) -> set[str]:
        """The users that open pages show."""
        return {s.user_id for s in list(self._subscribers) if s.user_id is not None}

    def publish(self, message: LiveMessage) -> None:
        for subscriber in list(self._subscribers):
            if message.user_id in (None, subscriber.user_id):
                subscriber.put(message)
