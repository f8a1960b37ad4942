"""Examples for the OpenAPI page.

Knows wire fields. Does not know the models that validate them.
"""

from __future__ import annotations

from typing import Any

FEED_REPLY: dict[str, Any] = {
    "request_id": "8b6f0f0d7f6e4a70a2f0c7c5f2e6a7d1",
    "slate_id": "5f0c3b0e6a0b4c0c9a55d1b7a3c2e901",
    "surface": "feed",
    "user_id": "u196",
    "seed": 7,
    "release": "r0002",
    "models": {"ranker": 2, "queries": 1, "reactivation": 1},
    "cold_start": False,
    "stale": False,
    "arm": None,
    "weights": {"play": 0.31, "long_view": 0.27, "like": 0.22, "follow": 0.06, "order": 0.14},
    "weights_drawn": False,
    "rates": {"play": 0.31, "long_view": 0.21, "like": 0.12, "follow": 0.01, "order": 0.01},
    "fallbacks": [],
    "items": [
        {
            "video_id": "v242",
            "title": "Kolya (1996)",
            "genres": ["Comedy"],
            "author_id": None,
            "slot": 0,
            "score": 2.35,
            "p": {"play": 0.62, "long_view": 0.48, "like": 0.33, "follow": 0.04, "order": 0.02},
            "propensity": 0.83,
            "explored": False,
            "source": "genres",
            "impression": "2.eyJpIjoiNWYwYzNiMGU2...",
        }
    ],
    "removed": [
        {"video_id": "ml-50", "stage": "already_engaged", "reason": "already engaged: like"}
    ],
    "stage_ms": {"user_features": 0.6, "genres": 0.3, "ranker": 4.1, "plackett_luce": 0.5},
}

PLAY: dict[str, Any] = {
    "event_id": "e-0001",
    "user_id": "u196",
    "kind": "play",
    "video_id": "v242",
    "event_time_ms": 1_790_000_000_000,
    "dwell_ms": 42_000,
    "surface": "feed",
}
