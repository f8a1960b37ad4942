"""Join events with the impressions whose signed tokens they carry.

Knows tokens, kinds of events and the reasons to reject a token. Does not know the state of
impressions (`streams.feedback.outcomes`), files (`streams.feedback.store`) nor where events come
from. Pure: no clock, no disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.bounds import MAX_EVENT_TIME_MS
from streams.contract.clock import DAY_MS
from streams.contract.declaration import contract
from streams.contract.impression import BadToken, Impression, is_digest, verify
from streams.contract.signals import Signals
from streams.feedback.outcomes import (
    ACTION_CODE,
    SHOWN,
    ImpressionActions,
    ImpressionColumns,
    ImpressionState,
    Ints,
    task_columns,
)

Mask = npt.NDArray[np.bool_]


class TokenRejection(StrEnum):
    """Why an event with a token gives no feedback."""

    FORGED = "forged"  # malformed, or signed with another key
    OTHER_USER = "other_user"  # the token was issued to another user
    OTHER_ITEM = "other_item"  # the token is for another item or query
    EXPIRED = "expired"  # the event says that it happened too long after the impression


@dataclass(frozen=True)
class JoinedBatch:
    """One batch: its impressions by impression_id, the actions on them, and rejected tokens."""

    impressions: dict[str, Impression]
    actions: ImpressionActions
    rejected: Counter[TokenRejection]

    def to_columns(self) -> ImpressionColumns:
        """The impressions' states after this batch alone."""
        states = [ImpressionState.empty(*each) for each in self.impressions.items()]
        columns = ImpressionColumns.from_states(states)
        columns.merge(self.actions)
        return columns


class TokenClaims(NamedTuple):
    """A token's impression and the fields that an event must match."""

    impression_id: str
    user_id: str
    video_id: str
    query: str | None
    served_at_ms: int
    impression: Impression | None = None


TOKEN_LIFE_MS = 30 * DAY_MS
"""An event later than this after its impression is no reaction to it."""
_MAX_SLOT = 2**31 - 1
_FORGED = TokenClaims("", "", "", None, 0)
_COLUMNS = [
    "impression",
    "user_id",
    "video_id",
    "query",
    "kind",
    "event_time_ms",
    "dwell_ms",
    "amount_cents",
    "origin",
]


@lru_cache(maxsize=16)
def _actions_of(signals: Signals) -> Ints:
    """[impression of a query, kind] -> the action, -1 for none (share, search, cart)."""
    actions = np.full((2, 256), -1)
    admitted = {*ACTION_CODE, *signals.windows_ms}
    for task, code in task_columns().code.items():
        if task in admitted:
            actions[:, signals.number[task]] = code
    for signal in signals.declared:
        if signal.role == "exposure":
            actions[:, signal.number] = SHOWN
    actions[[0, 1], [signals.number["shown"], signals.number["query_shown"]]] = SHOWN
    return actions


class FeedbackJoin:
    """Turns events into actions on impressions. Pure but for a cache of verified tokens."""

    def __init__(
        self,
        key: bytes,
        *,
        cached_tokens: int = 20_000,
        across_items_ms: Mapping[str, int] | None = None,
    ) -> None:
        """`key`: the stack's impression key. `across_items_ms`: signals that are also credited to
        the impression of another item that led to theirs -> how long after it was served."""
        self._across_ms = np.full(256, -1)
        for name, window_ms in (across_items_ms or {}).items():
            self._across_ms[contract().signals.number[name]] = window_ms
        self._claims = lru_cache(maxsize=cached_tokens)(partial(_verified_claims, key=key))

    def join_batch(self, events: pa.Table) -> JoinedBatch:
        """Joins one batch of EVENT_SCHEMA; rows marked duplicate are left out."""
        tokened = pc.and_(pc.invert(events["duplicate"]), pc.is_valid(events["impression"]))
        # Few rows carry a token, so only their columns are materialised.
        picked = events.select(_COLUMNS).filter(tokened).combine_chunks()
        tokens = picked["impression"].to_numpy().tolist()
        indexes = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
        claims = [*map(self._claims, indexes), _FORGED]
        claim_of = np.fromiter(map(indexes.__getitem__, tokens), np.int64, len(tokens))
        claims = _with_texts(claims, claim_of, picked)
        times = _action_times(picked, claims, claim_of)
        led = self._led_there(picked, claims, claim_of, times)
        action, rejected = _match_claims(picked, claims, claim_of, led, times)
        at = np.flatnonzero(action >= 0)
        impressions, impression_of = _claimed_impressions(claims, claim_of[at])
        orders = action == ACTION_CODE["order"]
        actions = ImpressionActions(
            row=np.flatnonzero(tokened.to_numpy())[at],
            impression=impression_of,
            action=action[at],
            at_ms=times[at],
            dwell_ms=np.where(action == SHOWN, 0, _null_to_zero(picked["dwell_ms"]))[at],
            cents=np.where(orders, _null_to_zero(picked["amount_cents"]), 0)[at],
            origin=picked["origin"].to_numpy()[at].tolist(),
        )
        return JoinedBatch(impressions, actions, rejected)

    def _led_there(
        self, events: pa.Table, claims: Sequence[TokenClaims], claim_of: Ints, times: Ints
    ) -> Mask:
        """bool [N]: whether an event on another item may be credited to its token's impression.

        A client sends the token of the last impression that led to the item: last touch."""
        served = np.array([claim.served_at_ms for claim in claims], np.int64)[claim_of]
        led: Mask = times - served <= self._across_ms[events["kind"].to_numpy()]
        return led


def _with_texts(
    claims: Sequence[TokenClaims], claim_of: Ints, events: pa.Table
) -> list[TokenClaims]:
    """The claims, where a token holds digests with the texts of the events that carry it."""
    found = list(claims)
    for number, claim in enumerate(claims):
        if claim.impression is None or not claim.impression.has_digests:
            continue
        impression = claim.impression
        rows = events.select(["user_id", "video_id", "query"]).filter(pa.array(claim_of == number))
        for texts in rows.to_pylist():
            impression = impression.with_texts(**texts)
        found[number] = _claims_of(impression)
    return found


def _match_claims(
    events: pa.Table,
    claims: Sequence[TokenClaims],
    claim_of: Ints,
    led_there: Mask,
    times: Ints,
) -> tuple[Ints, Counter[TokenRejection]]:
    """The action of each event on the impression of its claims, -1 for none."""
    users, items, queries = (
        pa.array([claim[field] for claim in claims], pa.string()).take(pa.array(claim_of))
        for field in range(1, 4)
    )
    forged = np.array([claim is _FORGED for claim in claims])[claim_of]
    same_user = pc.equal(events["user_id"], users).to_numpy()
    # An event may leave out its item and query; those that it states must be the served ones.
    same_item = pc.fill_null(pc.equal(events["video_id"], items), True).to_numpy()
    same_query = pc.fill_null(pc.equal(events["query"], queries), True).to_numpy()
    # Only an event that states the query can restore one that the token has as a digest.
    same_item, same_query = same_item | led_there, same_query | led_there
    same_query = same_query & ~np.array([is_digest(claim.query) for claim in claims])[claim_of]
    served = np.array([claim.served_at_ms for claim in claims], np.int64)[claim_of]
    expired = times - served > TOKEN_LIFE_MS
    own = ~forged & same_user & same_item & same_query
    wrong = {
        TokenRejection.FORGED: forged,
        TokenRejection.OTHER_USER: ~forged & ~same_user,
        TokenRejection.OTHER_ITEM: ~forged & same_user & ~(same_item & same_query),
        TokenRejection.EXPIRED: own & expired,
    }
    of_query = pc.is_valid(queries).to_numpy(zero_copy_only=False).astype(np.int64)
    action = _actions_of(contract().signals)[of_query, events["kind"].to_numpy()]
    action[~own | expired] = -1
    return action, Counter({cause: n for cause, at in wrong.items() if (n := int(at.sum()))})


def _claimed_impressions(
    claims: Sequence[TokenClaims], claim_of: Ints
) -> tuple[dict[str, Impression], Ints]:
    """The claimed impressions by id, and the index among them of each event's impression."""
    impressions: dict[str, Impression] = {}
    indexes: dict[str, int] = {}
    index_of_claim = np.zeros(len(claims), np.int64)
    for number in np.unique(claim_of).tolist():
        claim = claims[number]
        index_of_claim[number] = indexes.setdefault(claim.impression_id, len(indexes))
        impressions.setdefault(claim.impression_id, claim.impression)
    return impressions, index_of_claim[claim_of]


def _action_times(events: pa.Table, claims: Sequence[TokenClaims], claim_of: Ints) -> Ints:
    """Event times, but not before the impression was served: a client's clock may be slow."""
    served = np.array([claim.served_at_ms for claim in claims], np.int64)
    times: Ints = np.maximum(events["event_time_ms"].to_numpy(), served[claim_of])
    return times


def _null_to_zero(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = pc.fill_null(column, 0).to_numpy().astype(np.int64)
    return numbers


def _verified_claims(token: str, key: bytes) -> TokenClaims:
    try:
        return _claims_of(verify(token, key))
    except BadToken:
        return _FORGED


def _claims_of(found: Impression) -> TokenClaims:
    if not (0 <= found.served_at_ms <= MAX_EVENT_TIME_MS and 0 <= found.slot <= _MAX_SLOT):
        return _FORGED  # the files could not hold it
    served = (found.user_id, found.video_id, found.query, found.served_at_ms)
    return TokenClaims(found.impression_id, *served, found)
