"""One simulated world as the served loop sees it: replayed histories, then logged reactions.

Knows the planted truth, through `deploy.simulation`, to draw reactions and to judge slates.
Does not know policies or the serving pipeline: they get `ServedWorld.log`, which holds no truth.

Newcomers are users whose events are all withheld. Items without a replayed play are cold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from deploy.simulation.config import WorldConfig
from deploy.simulation.history import DEFAULT_END_MS, History, history
from deploy.simulation.movielens import MovieLens, drawn_share
from deploy.simulation.reactions import Action, watch_slate
from deploy.simulation.truth import Truth, plant
from models.recipe import TrainingLog
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.events import KIND_CODE, CatalogueItem
from streams.contract.impression import Impression, sign
from streams.contract.schema import EVENT_SCHEMA
from streams.feedback.join import FeedbackJoin
from streams.feedback.outcomes import AttributionWindows

SLOTS = 10
_DAYS = 6  # of reactions after the history
_KEY = bytes(32)


@dataclass(frozen=True)
class Size:
    """users: judged, besides newcomers. slates: logged reactions before the judged request."""

    users: int
    newcomers: int
    slates: int


@dataclass(frozen=True)
class ServedWorld:
    """U judged users, newcomers last; V items in the catalogue's order.

    log: what serving and every policy may read. ratings: the replayed stars, for the
    factorisation. at_ms int64 [U]: when each user asks. users: rows of the truth, int64 [U].
    """

    truth: Truth
    items: list[CatalogueItem]
    ratings: pl.DataFrame
    log: TrainingLog
    users: np.ndarray
    at_ms: np.ndarray
    newcomers: int

    @cached_property
    def item_ids(self) -> list[str]:
        return [item.video_id for item in self.items]

    @cached_property
    def user_ids(self) -> list[str]:
        return [self.truth.people.user_ids[user] for user in self.users]

    @cached_property
    def item_row(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def plays(self) -> np.ndarray:
        """float64 [U_all, V]: 1 where the log holds a play; rows are those of the truth."""
        played = self.log.events.filter(kind="play").select("user_id", "video_id").unique()
        seen = np.zeros((len(self.truth.people.user_ids), len(self.items)))
        user_row = self.truth.user_row
        users = [user_row[user] for user in played["user_id"]]
        seen[users, [self.item_row[item] for item in played["video_id"]]] = 1.0
        return seen

    @cached_property
    def eligible(self) -> np.ndarray:
        """bool [U, V]: items that the user has not played, which the feed may show."""
        return np.asarray(self.plays[self.users] == 0)

    @cached_property
    def cold_items(self) -> np.ndarray:
        """bool [V]: no play of the item was replayed."""
        known = set(self.ratings["video_id"])
        return np.array([item_id not in known for item_id in self.item_ids])

    @cached_property
    def clicks(self) -> np.ndarray:
        """float64 [U, V]: P(play | attended) at the user's hour."""
        every = np.arange(len(self.items))
        return np.array([self.truth.odds(u, every, hour=h)[:, 0] for u, h in self._asking()])

    @cached_property
    def utility(self) -> np.ndarray:
        """float64 [U, V]: the user's expected gain of each attended item at the user's hour."""
        every = np.arange(len(self.items))
        return np.array([self.truth.expected_utility(u, every, hour=h) for u, h in self._asking()])

    def _asking(self) -> Iterator[tuple[int, int]]:
        return zip(self.users.tolist(), (self.at_ms // HOUR_MS % 24).tolist(), strict=True)

    def expected(self, slates: np.ndarray, values: np.ndarray) -> np.ndarray:
        """float64 [U]: mean over the slots of attention times `values` [U, V].

        slates: int64 [U, SLOTS], item rows; -1 is an empty slot, which is worth 0.
        """
        attention = self.truth.attention(np.arange(slates.shape[1]))
        found = np.take_along_axis(values, np.maximum(slates, 0), axis=1)
        return np.asarray((found * attention * (slates >= 0)).mean(axis=1))


def make(world: WorldConfig, data: MovieLens, seed: int, size: Size) -> ServedWorld:
    """Draws the world, the newcomers, the judged users and the reactions."""
    truth = plant(data, world, seed)
    rng = np.random.default_rng([seed, 21])
    order = rng.permutation(len(truth.people.user_ids))
    newcomers, known = order[: size.newcomers], order[size.newcomers :]
    past = history(seed, world=world, data=data, crowd=truth.people)
    absent = [truth.people.user_ids[user] for user in newcomers]
    replayed = past.frame.filter(~pl.col("user_id").is_in(absent))
    ratings = drawn_share(data, world.replay.share, seed).ratings
    log = _with_reactions(truth, past, replayed, known, size.slates, rng)
    users = np.concatenate([known[: size.users], newcomers])
    at_ms = log.until_ms + rng.integers(24, size=len(users)) * HOUR_MS
    seen = ratings.filter(~pl.col("user_id").is_in(absent))
    return ServedWorld(truth, past.items, seen, log, users, at_ms, size.newcomers)


def _with_reactions(
    truth: Truth,
    past: History,
    replayed: pl.DataFrame,
    users: np.ndarray,
    slates: int,
    rng: np.random.Generator,
) -> TrainingLog:
    """The history followed by slates of half popular and half random items with reactions."""
    rows = list(_reactions(truth, past.items, users, slates, rng))
    lived = pl.DataFrame(rows, schema=past.frame.schema)
    events = pl.concat([replayed, lived]).sort("event_time_ms", "event_id")
    coded = lived.with_columns(pl.col("kind").replace_strict(KIND_CODE, return_dtype=pl.UInt8))
    outcomes = FeedbackJoin(_KEY).join_batch(coded.to_arrow().cast(EVENT_SCHEMA)).to_columns()
    joined = outcomes.feedback_rows(AttributionWindows({"play": HOUR_MS}))
    feedback = pl.DataFrame(joined).sort("matured_at_ms", "impression_id")
    until = DEFAULT_END_MS + (_DAYS + 1) * DAY_MS
    return TrainingLog(events, past.items_frame, feedback, until)


def _reactions(
    truth: Truth,
    items: list[CatalogueItem],
    users: np.ndarray,
    slates: int,
    rng: np.random.Generator,
) -> Iterator[dict[str, object]]:
    seen = dict(truth.data.ratings.group_by("video_id").len().iter_rows())
    popular = np.array([seen.get(item.video_id, 0) for item in items], float)
    start = DEFAULT_END_MS + HOUR_MS
    times = np.sort(rng.integers(start, DEFAULT_END_MS + _DAYS * DAY_MS, slates))
    for number, at_ms in enumerate(times.tolist()):
        user = int(rng.choice(users))
        drawn = rng.choice(len(items), SLOTS // 2, replace=False, p=popular / popular.sum())
        even = rng.choice(np.setdiff1d(np.arange(len(items)), drawn), SLOTS // 2, replace=False)
        slate = rng.permutation(np.r_[drawn, even])
        shown = [items[row] for row in slate]
        visit = watch_slate(
            truth,
            user,
            slate.tolist(),
            [item.duration_ms for item in shown],
            [item.price_cents for item in shown],
            rng,
            hour=at_ms // HOUR_MS % 24,
        )
        user_id = truth.people.user_ids[user]
        for action in visit.actions:
            yield _event(user_id, number, action, shown[action.slot], at_ms)


def _event(
    user_id: str, number: int, action: Action, item: CatalogueItem, served_at_ms: int
) -> dict[str, object]:
    served = Impression(
        request_id=f"q{number}",
        surface="feed",
        user_id=user_id,
        video_id=item.video_id,
        slot=action.slot,
        propensity=1.0,
        release="world",
        served_at_ms=served_at_ms,
    )
    at_ms = served_at_ms + 100 + action.offset_ms
    return dict.fromkeys(EVENT_SCHEMA.names) | {
        "event_id": f"sim:{number}:{action.slot}:{action.kind}",
        "user_id": user_id,
        "kind": action.kind,
        "event_time_ms": at_ms,
        "ingested_at_ms": at_ms,
        "surface": "feed",
        "origin": "simulated",
        "impression": sign(served, _KEY),
        "video_id": item.video_id,
        "author_id": item.author_id,
        "dwell_ms": action.dwell_ms,
        "amount_cents": action.amount_cents,
        "late": False,
        "duplicate": False,
        "source_partition": 0,
        "source_offset": 0,
    }
