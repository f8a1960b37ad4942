"""The experiment of the feed: users hashed into arms that are served at the same time.

Knows user ids and shares. Does not know what an arm shows (`serving.surfaces`). The impression
token carries the arm, so every event and feedback row tells which arm showed an item.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from streams.contract.impression import POPULARITY_ARM, RANKER_ARM


@dataclass(frozen=True)
class Experiment:
    """Which users see the feed ranked by popularity; all others see the live ranker.

    popularity_share: in [0, 1]; 0: no experiment. name: the key of the hash, 1 to 64 ASCII
    characters. The same name gives a user the same arm in every process and after a restart;
    another name draws the arms anew.
    """

    popularity_share: float = 0.0
    name: str = "popularity"

    def arm_of(self, user_id: str) -> str | None:
        """The user's arm; None where there is no experiment."""
        if self.popularity_share <= 0.0:
            return None
        key = self.name.encode()
        digest = hashlib.blake2b(user_id.encode(), key=key, digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64  # uniform in [0, 1)
        return POPULARITY_ARM if place < self.popularity_share else RANKER_ARM
