"""Feedback: what events say of the impressions whose signed tokens they carry.

Knows tokens, kinds of events and why one is not believed. Does not know what comes of it
(`streams.feedback.outcomes`), files (`streams.feedback.store`) nor where events come from. Pure: no
clock, no disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.events import KIND_CODE
from streams.contract.impression import BadToken, Impression, verify
from streams.feedback.outcomes import AT, SHOWN, Ints, Outcomes, Told, unknown


class Refusal(StrEnum):
    """Why an event with a token gives no feedback."""

    FORGED = "forged"  # malformed, or signed with another key
    OTHER_USER = "other_user"  # a token that was given to somebody else
    OTHER_ITEM = "other_item"  # a token of another video or query


@dataclass(frozen=True)
class Joined:
    """One batch, joined: what is told of which impressions, and what was refused."""

    impressions: dict[str, Impression]  # by impression_id
    told: Told
    refused: Counter[Refusal]

    def alone(self) -> Outcomes:
        """What became of the impressions, as if this were all."""
        outcomes = Outcomes.of([unknown(*named) for named in self.impressions.items()])
        outcomes.merge(self.told)
        return outcomes


class _Claim(NamedTuple):
    """A token's impression, with what an event is held against."""

    impression_id: str
    user_id: str
    video_id: str
    query: str | None
    served_at_ms: int
    impression: Impression | None = None


_FORGED = _Claim("", "", "", None, 0)
_READ = ["impression", "user_id", "video_id", "query", "kind", "event_time_ms", "dwell_ms",
         "amount_cents", "origin"]  # fmt: skip

# [of a query, kind] -> what such an event tells, -1 for nothing (share, search, cart)
_WHAT = np.full((2, 256), -1)
_WHAT[:, [KIND_CODE[task] for task in AT]] = list(AT.values())
_WHAT[[0, 1], [KIND_CODE["shown"], KIND_CODE["query_shown"]]] = SHOWN


class Join:
    """Events -> what they say of the impressions whose tokens they carry.

    Pure but for a memory of verified tokens, which changes no answer.
    """

    def __init__(self, key: bytes, *, remembered_tokens: int = 100_000) -> None:
        """`key`: the stack's impression key."""
        self._verify = lru_cache(maxsize=remembered_tokens)(partial(_verified, key=key))

    def batch(self, events: pa.Table) -> Joined:
        """Joins one batch of EVENT_SCHEMA; rows marked duplicate are left out."""
        tokened = pc.and_(pc.invert(events["duplicate"]), pc.is_valid(events["impression"]))
        # Few carry a token, so nothing is made of the others.
        picked = events.select(_READ).filter(tokened).combine_chunks()
        tokens = picked["impression"].to_numpy().tolist()
        places = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
        claims = [*map(self._verify, places), _FORGED]
        of = np.fromiter(map(places.__getitem__, tokens), np.int64, len(tokens))
        what, refused = _judged(picked, claims, of)
        at = np.flatnonzero(what >= 0)
        impressions, named = _named(claims, of[at])
        told = Told(
            np.flatnonzero(tokened.to_numpy())[at],
            named,
            what[at],
            _times(picked, claims, of)[at],
            np.where(what == SHOWN, 0, _numbers(picked["dwell_ms"]))[at],
            np.where(what == AT["order"], _numbers(picked["amount_cents"]), 0)[at],
            picked["origin"].to_numpy()[at].tolist(),
        )
        return Joined(impressions, told, refused)


def _judged(events: pa.Table, claims: Sequence[_Claim], of: Ints) -> tuple[Ints, Counter[Refusal]]:
    """What each event tells of the impression that it claims (`of`), -1 for nothing."""
    owners, videos, queries = (
        pa.array([claim[field] for claim in claims], pa.string()).take(pa.array(of))
        for field in range(1, 4)
    )
    forged = np.array([claim is _FORGED for claim in claims])[of]
    same_user = pc.equal(events["user_id"], owners).to_numpy()
    # The event's own video and query, where it names them, are those that were served.
    same_video = pc.fill_null(pc.equal(events["video_id"], videos), True).to_numpy()
    same_query = pc.fill_null(pc.equal(events["query"], queries), True).to_numpy()
    wrong = {
        Refusal.FORGED: forged,
        Refusal.OTHER_USER: ~forged & ~same_user,
        Refusal.OTHER_ITEM: ~forged & same_user & ~(same_video & same_query),
    }
    asked = pc.is_valid(queries).to_numpy(zero_copy_only=False).astype(np.int64)
    what = _WHAT[asked, events["kind"].to_numpy()]
    what[forged | ~same_user | ~same_video | ~same_query] = -1
    return what, Counter({cause: n for cause, at in wrong.items() if (n := int(at.sum()))})


def _named(claims: Sequence[_Claim], of: Ints) -> tuple[dict[str, Impression], Ints]:
    """The impressions that are claimed, by their ids, and the place of each claim's."""
    impressions: dict[str, Impression] = {}
    places: dict[str, int] = {}
    place_of = np.zeros(len(claims), np.int64)
    for number in np.unique(of).tolist():
        claim = claims[number]
        place_of[number] = places.setdefault(claim.impression_id, len(places))
        impressions.setdefault(claim.impression_id, claim.impression)
    return impressions, place_of[of]


def _times(events: pa.Table, claims: Sequence[_Claim], of: Ints) -> Ints:
    """A client's clock may be slow: nothing happened before it was served."""
    served = np.array([claim.served_at_ms for claim in claims], np.int64)
    times: Ints = np.maximum(events["event_time_ms"].to_numpy(), served[of])
    return times


def _numbers(column: pa.ChunkedArray) -> Ints:
    """Null is as good as 0."""
    numbers: Ints = pc.fill_null(column, 0).to_numpy().astype(np.int64)
    return numbers


def _verified(token: str, key: bytes) -> _Claim:
    try:
        said = verify(token, key)
    except BadToken:
        return _FORGED
    item = (said.user_id, said.video_id, said.query, said.served_at_ms)
    return _Claim(said.impression_id, *item, said)
