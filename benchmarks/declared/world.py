"""Two planted worlds that state nothing but their own signals: a shop and a music service.

Knows tastes, and what users do with an item that they meet, as JSON messages. Does not know tidemill:
messages are what a producer would send. The truth that slates are judged by stays here.

An item's appeal to a user is taste by item factors (by brand and category) plus the item's quality,
which all users share. Users open what appeals; what they do next depends on taste.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

FACTORS, BRANDS, CATEGORIES = 2, 12, 8
SLOTS = 10
RETURN_RATE, RATED_SHARE = 0.15, 0.5
SONG_MS = 180_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_700_000_000_000
HISTORY_DAYS = 20
Message = dict[str, Any]


@dataclass(frozen=True)
class WorldSize:
    """users, items; met: items that each user opened before anything was served."""

    users: int
    items: int
    met: int


@dataclass(frozen=True)
class PlantedWorld:
    """U users and V items. taste, quality: float64 [U, V] and [V], of unit deviation.

    kind: "shop" or "music". strength: how much taste counts; 0 in the null world.
    """

    kind: str
    strength: float
    taste: np.ndarray
    quality: np.ndarray
    brand: np.ndarray
    category: np.ndarray
    price_cents: np.ndarray
    habit: np.ndarray  # float64 [U]: how generously a user rates

    @staticmethod
    def draw(kind: str, size: WorldSize, seed: int, *, strength: float = 1.0) -> PlantedWorld:
        rng = np.random.default_rng([seed, 61])
        brand, category = (
            rng.integers(BRANDS, size=size.items),
            rng.integers(CATEGORIES, size=size.items),
        )
        of_brand, of_category = (rng.normal(size=(n, FACTORS)) for n in (BRANDS, CATEGORIES))
        factors = (
            of_brand[brand] + of_category[category] + 0.7 * rng.normal(size=(size.items, FACTORS))
        )
        taste = rng.normal(size=(size.users, FACTORS)) @ factors.T
        return PlantedWorld(
            kind,
            strength,
            strength * taste / taste.std(),
            rng.normal(size=size.items),
            brand,
            category,
            rng.integers(500, 20_000, size.items),
            rng.normal(0, 0.6, size.users),
        )

    @property
    def user_ids(self) -> list[str]:
        return [f"u{n}" for n in range(len(self.habit))]

    @property
    def item_ids(self) -> list[str]:
        return [f"i{n}" for n in range(len(self.quality))]

    @property
    def opens(self) -> np.ndarray:
        """float64 [U, V]: P(an item that is looked at is opened)."""
        return _odds(-1.4 + 0.9 * self.taste + 0.7 * self.quality)

    @property
    def wants(self) -> np.ndarray:
        """float64 [U, V]: P(an opened item goes into the cart, or is enjoyed to the end)."""
        return _odds(-0.8 + 2.5 * self.taste + 0.3 * self.quality)

    @property
    def utility(self) -> np.ndarray:
        """float64 [U, V]: P(the item is opened and wanted): orders, or songs that were enjoyed."""
        return np.asarray(self.opens * self.wants)

    def expected(self, slates: np.ndarray) -> np.ndarray:
        """float64 [U]: wanted items a slate; slates int64 [U, K], -1 for an empty slot."""
        attention = 1 / np.log2(np.arange(slates.shape[1]) + 2)
        found = np.take_along_axis(self.utility, np.maximum(slates, 0), axis=1)
        return np.asarray((found * attention * (slates >= 0)).sum(axis=1))

    def catalogue(self) -> Iterator[Message]:
        """One message an item, for the topic `catalogue`."""
        for row, item_id in enumerate(self.item_ids):
            item: Message = {
                "item_id": item_id,
                "title": f"Item {row}",
                "categories": [f"category {self.category[row]}"],
                "brand": f"brand {self.brand[row]}",
                "author_id": f"brand-{self.brand[row]}",
                "created_ms": START_MS - DAY_MS,
            }
            if self.kind == "shop":
                own: Message = {"colour": ("red", "blue", "green")[row % 3]}
                item |= {"kind": "product", "price_cents": int(self.price_cents[row])}
            else:
                own = {"tempo": float(80 + row % 60)}
                item |= {"kind": "song", "duration_ms": SONG_MS}
            yield {
                "kind": "item_added",
                "event_id": f"add-{row}",
                "event_time_ms": START_MS - DAY_MS,
                "item": item | {"attributes": own},
            }

    def history(self, met: int, seed: int) -> list[Message]:
        """What users did on their own before anything was served: `met` opened items each."""
        rng = np.random.default_rng([seed, 62])
        messages = []
        for user in range(len(self.habit)):
            odds = self.opens[user] * np.exp(0.5 * self.quality)
            for item in rng.choice(len(odds), met, replace=False, p=odds / odds.sum()):
                at_ms = START_MS + int(rng.integers(HISTORY_DAYS * DAY_MS))
                messages += list(self._opened(user, int(item), at_ms, rng))
        return messages

    def reactions(
        self, user: int, slate: list[tuple[int, str]], at_ms: int, rng: np.random.Generator
    ) -> Iterator[Message]:
        """What a user does with a slate: (item, token) by slot. Lower slots are looked at less."""
        for slot, (item, token) in enumerate(slate):
            if rng.random() >= 1 / math.log2(slot + 2):
                continue
            led = {"impression": token, "surface": "feed"}
            shown_ms = at_ms + 1_000 * slot
            yield self._event(user, item, "shown", shown_ms) | led
            if rng.random() < self.opens[user, item]:
                yield from (m | led for m in self._opened(user, item, shown_ms + 100, rng))
            elif self.kind == "music":
                yield self._event(user, item, "skip", shown_ms + 100, dwell_ms=3_000) | led

    def _opened(
        self, user: int, item: int, at_ms: int, rng: np.random.Generator
    ) -> Iterator[Message]:
        wanted = rng.random() < self.wants[user, item]
        if self.kind == "shop":
            yield self._event(user, item, "view", at_ms)
            if wanted:
                cents = int(self.price_cents[item])
                yield self._event(user, item, "cart", at_ms + 10, amount_cents=cents)
                if rng.random() < 0.5:
                    yield self._event(user, item, "order", at_ms + 20, amount_cents=cents)
                    if rng.random() < RETURN_RATE * (self.taste[user, item] < 0):
                        yield self._event(
                            user, item, "goods_returned", at_ms + 30, amount_cents=cents
                        )
            return
        heard = rng.uniform(0.6, 1.0) if wanted else rng.uniform(0.05, 0.6)
        yield self._event(user, item, "play", at_ms, dwell_ms=int(heard * SONG_MS))
        if rng.random() < RATED_SHARE:
            stars = 3 + self.habit[user] + (1.0 if wanted else -1.0) + rng.normal(0, 0.5)
            value = float(np.clip(round(stars), 1, 5))
            yield self._event(user, item, "rating", at_ms + 10, value=value)

    def _event(self, user: int, item: int, kind: str, at_ms: int, **own: Any) -> Message:
        return {
            "event_id": f"{user}-{item}-{kind}-{at_ms}",
            "user_id": f"u{user}",
            "kind": kind,
            "item_id": f"i{item}",
            "author_id": f"brand-{self.brand[item]}",
            "event_time_ms": at_ms,
            "origin": "simulated",
            **own,
        }


def _odds(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))
