"""Examples for the OpenAPI page.

Knows wire fields. Does not know the models that validate them.
"""

from __future__ import annotations

from typing import Any

PLAY: dict[str, Any] = {
    "event_id": "e-0001",
    "user_id": "u196",
    "kind": "play",
    "item_id": "v242",
    "event_time_ms": 1_790_000_000_000,
    "dwell_ms": 42_000,
    "surface": "feed",
}
