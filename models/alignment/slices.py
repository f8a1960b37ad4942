"""Which of the feed's slates and candidates belong to a guard slice, and their popularity.

Knows the log and the ranker's examples. Does not know scores (`models.alignment.guards`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from models.alignment.guards import Guards
from models.ranking.ple.data import RankerExamples
from models.recipe import TrainingLog
from streams.contract.clock import DAY_MS

COLD_EVENTS = 5  # a user with fewer events before a slate is cold
DORMANT_DAYS = 14  # a user without an event for so long before a slate is dormant
TAIL_SHARE = 0.5  # the less played half of the catalogue
_EXPOSURE = "shown"


def feed_guards(log: TrainingLog, slates: RankerExamples) -> Guards:
    """The feed's slices, and the popularity and first genre of each candidate."""
    genre = pl.col("genres").list.first().fill_null("").cast(pl.Categorical).to_physical()
    kind = log.items.select(genre)["genres"].to_numpy().astype(np.int64)
    plays = popularity(log)
    return Guards(feed_slices(log, slates), {"popularity": plays[slates.item]}, kind[slates.item])


def feed_slices(log: TrainingLog, slates: RankerExamples) -> Mapping[str, np.ndarray]:
    """Masks by name: of slates, bool [G], or of candidates, bool [G, C].

    "provenance P": candidates of that provenance, one slice for each that the catalogue has.
    """
    count, newest_ms = _history(log, slates)
    cold = count < COLD_EVENTS
    silent = slates.time_ms - newest_ms >= DORMANT_DAYS * DAY_MS
    plays = popularity(log)
    tail = plays <= np.quantile(plays, TAIL_SHARE) if len(plays) else np.zeros(0, bool)
    found = {
        "surface feed": np.ones(len(slates), bool),
        "cold users": cold,
        "dormant users": ~cold & silent,
        "tail items": slates.real & tail[slates.item],
    }
    if "provenance" in log.items.columns:
        provenance = log.items["provenance"].fill_null("unknown").to_numpy()
        for kind in sorted(set(provenance)):
            found[f"provenance {kind}"] = slates.real & (provenance == kind)[slates.item]
    return found


def popularity(log: TrainingLog) -> np.ndarray:
    """log(1 + actions) of every catalogue item by row; float64 [items]."""
    acted = log.events.filter(pl.col("kind") != _EXPOSURE).group_by("video_id").len()
    counts = log.items.select("video_id").join(
        acted, on="video_id", how="left", maintain_order="left"
    )
    found: np.ndarray = np.log1p(counts["len"].fill_null(0).to_numpy().astype(float))
    return found


def _history(log: TrainingLog, slates: RankerExamples) -> tuple[np.ndarray, np.ndarray]:
    """Events of each slate's user before it, and the time of the newest: int64 [G] each."""
    acted = log.events.filter(pl.col("kind") != _EXPOSURE).select("user_id", "event_time_ms")
    times = {
        str(user): np.sort(each["event_time_ms"].to_numpy())
        for (user,), each in acted.group_by("user_id")
    }
    count, newest = np.zeros(len(slates), np.int64), np.zeros(len(slates), np.int64)
    for row, (user, at_ms) in enumerate(zip(slates.users, slates.time_ms, strict=True)):
        own = times.get(str(user), np.zeros(0, np.int64))
        count[row] = np.searchsorted(own, at_ms)
        newest[row] = own[count[row] - 1] if count[row] else 0
    return count, newest
