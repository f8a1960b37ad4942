"""Feedback: what became of each impression, joined from its signed token.

Knows impressions, actions and attribution windows. Does not know files
(`streams.feedback_store`) nor where events come from. Pure: no clock, no disk.
"""

from __future__ import annotations

import pyarrow as pa

TASKS: tuple[str, ...] = ("play", "long_view", "like", "follow", "order", "query_click", "skip")

FEEDBACK_SCHEMA = pa.schema(
    [
        # what was served, from the signed token
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("surface", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("query", pa.string()),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("propensity", pa.float64(), nullable=False),
        pa.field("explored", pa.bool_(), nullable=False),
        pa.field("release", pa.string(), nullable=False),
        pa.field("served_at_ms", pa.int64(), nullable=False),
        # what became of it
        pa.field("shown_at_ms", pa.int64()),  # null: served, but never reported as seen
        *(
            field
            for task in TASKS
            for field in (
                # attributed: the first such action came within the task's window after `shown`
                pa.field(task, pa.bool_(), nullable=False),
                # the first such action with this token, attributed or not
                pa.field(f"{task}_at_ms", pa.int64()),
            )
        ),
        pa.field("dwell_ms", pa.int64(), nullable=False),  # longest of skip, play, long_view
        pa.field("order_amount_cents", pa.int64(), nullable=False),  # of the first order
        pa.field("origin", pa.string(), nullable=False),  # live, replayed or simulated
        pa.field("matured_at_ms", pa.int64()),  # shown + the longest window; null until shown
        pa.field("revision", pa.int64(), nullable=False),  # from 1; the largest one stands
    ]
)
