"""An owner's declarations for the benchmarks: two signals and three attributes of items.

Knows what is declared, which events become declared ones, and the items. Does not know the path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from streams.contract.items import CatalogueItem, ItemAdded

SIGNALS: dict[str, dict[str, Any]] = {
    "rating": {"role": "engagement", "payload": ["value"], "window_ms": 3_600_000},
    "goods_returned": {"role": "dislike", "payload": ["amount"], "window_ms": 1_209_600_000},
}
ATTRIBUTES: dict[str, Any] = {
    "colour": "label",
    "weight_kg": "number",
    "look": {"type": "vector", "length": 16},
}
SHARES = {"rating": 0.08, "goods_returned": 0.02}  # of all events, taken from those on an item
ITEMS = 500
T0_MS = 1_700_000_000_000
_MAY_BECOME = ("play", "like", "skip", "long_view", "shown")


def with_declared(frame: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Some events on items become ratings in half stars, some goods returned; adds `value`."""
    draw = rng.random(len(frame))
    item = pl.col("kind").is_in(_MAY_BECOME)
    rated = pl.Series(draw < SHARES["rating"]) & item
    returned = pl.Series(draw > 1 - SHARES["goods_returned"]) & item
    stars = pl.Series(rng.integers(1, 11, len(frame)) / 2)
    cents = pl.Series(rng.integers(1, 10_000, len(frame)))
    return frame.with_columns(
        kind=pl.when(rated)
        .then(pl.lit("rating"))
        .when(returned)
        .then(pl.lit("goods_returned"))
        .otherwise(pl.col("kind")),
        value=pl.when(rated).then(stars),
        amount_cents=pl.when(returned).then(cents).otherwise(pl.col("amount_cents")),
        dwell_ms=pl.when(rated | returned).then(0).otherwise(pl.col("dwell_ms")),
    )


def items(seed: int = 0) -> list[ItemAdded]:
    """`ITEMS` items, each with every declared attribute."""
    rng = np.random.default_rng(seed)
    return [
        ItemAdded(
            event_id=f"item-{number}",
            event_time_ms=T0_MS + number,
            item=CatalogueItem(
                item_id=f"video {number}",
                kind="product",
                title=f"Item {number}",
                attributes={
                    "colour": ("red", "green", "blue")[number % 3],
                    "weight_kg": round(float(rng.random()), 3),
                    "look": [round(float(each), 6) for each in rng.normal(size=16)],
                },
            ),
        )
        for number in range(ITEMS)
    ]
