"""Feedback: what became of each impression, joined from its signed token.

Knows impressions, actions and attribution windows. Does not know files
(`streams.feedback_store`) nor where events come from. Pure: no clock, no disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from streams.events import KIND_CODE
from streams.impression import BadToken, Impression, verify

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
        # also from the token; null unless the slate was ranked by weights that were drawn
        pa.field("weights", pa.list_(pa.float64())),
        pa.field("log_density", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Windows:
    """How long after it was shown an action is put down to an impression, ms per task.

    A task that the mapping leaves out gets the longest window.
    """

    per_task_ms: Mapping[str, int]

    @property
    def longest_ms(self) -> int:
        return max(self.per_task_ms.values())

    def of(self, task: str) -> int:
        return self.per_task_ms.get(task, self.longest_ms)


class Outcome(NamedTuple):
    """What is known of one impression. Merging is commutative, associative and idempotent.

    Hence events may come in any order, twice, or in other batches: the sum is the same.
    """

    impression: Impression
    shown_at_ms: int | None = None
    first_ms: Mapping[str, int] = MappingProxyType({})  # task -> its first action
    dwell_ms: int = 0
    order: tuple[int, int] | None = None  # (time, amount in cents) of the first order
    origin: str = "live"

    def merge(self, other: Outcome) -> Outcome:
        return Outcome(
            self.impression,
            _earliest(self.shown_at_ms, other.shown_at_ms),
            _firsts(self.first_ms, other.first_ms),
            max(self.dwell_ms, other.dwell_ms),
            _earliest(self.order, other.order),
            max(self.origin, other.origin),
        )


def _earliest(a: Any, b: Any) -> Any:
    """The smaller one; None says that there is none."""
    return b if a is None else a if b is None else min(a, b)


def _firsts(a: Mapping[str, int], b: Mapping[str, int]) -> Mapping[str, int]:
    if not b:
        return a
    first = dict(a)
    for task, at in b.items():
        first[task] = min(at, first.get(task, at))
    return first


class Refusal(StrEnum):
    """Why an event with a token gives no feedback."""

    FORGED = "forged"  # malformed, or signed with another key
    OTHER_USER = "other_user"  # a token that was given to somebody else
    OTHER_ITEM = "other_item"  # a token of another video or query


@dataclass(frozen=True)
class Joined:
    """One batch, joined: outcomes by impression_id, and what was refused."""

    outcomes: dict[str, Outcome]
    refused: Counter[Refusal]
    without_token: int


class Join:
    """Events -> outcomes of the impressions whose tokens they carry.

    Pure but for a memory of verified tokens, which changes no answer.
    """

    def __init__(self, key: bytes, *, remembered_tokens: int = 100_000) -> None:
        """`key`: the stack's impression key."""
        self._verify = lru_cache(maxsize=remembered_tokens)(partial(_verified, key=key))

    def batch(self, events: pa.Table) -> Joined:
        """Joins one batch of EVENT_SCHEMA; rows marked duplicate are left out."""
        live = pc.invert(events["duplicate"])
        tokened = pc.indices_nonzero(pc.and_(live, pc.is_valid(events["impression"])))
        outcomes: dict[str, Outcome] = {}
        refused: Counter[Refusal] = Counter()
        for event in _rows(events, tokened):
            found = self._outcome(event)
            if isinstance(found, Refusal):
                refused[found] += 1
            elif found is not None:
                impression_id, outcome = found
                known = outcomes.get(impression_id)
                outcomes[impression_id] = known.merge(outcome) if known else outcome
        without_token = (pc.sum(live).as_py() or 0) - len(tokened)
        return Joined(outcomes, refused, without_token)

    def _outcome(self, event: _Event) -> tuple[str, Outcome] | Refusal | None:
        verified = self._verify(event.impression)
        if verified is None:
            return Refusal.FORGED
        impression_id, impression = verified
        if event.user_id != impression.user_id:
            return Refusal.OTHER_USER
        if not _same_item(event, impression):
            return Refusal.OTHER_ITEM
        outcome = _of_event(event, impression)
        return None if outcome is None else (impression_id, outcome)


class _Event(NamedTuple):
    """What the join reads of an event."""

    impression: str
    user_id: str
    video_id: str | None
    query: str | None
    kind: int
    event_time_ms: int
    dwell_ms: int
    amount_cents: int
    origin: str


_TASK_OF_CODE = {KIND_CODE[task]: task for task in TASKS}
_SHOWN = KIND_CODE["shown"]
_QUERY_SHOWN = KIND_CODE["query_shown"]
_ORDER = KIND_CODE["order"]


def _rows(events: pa.Table, at: pa.Array) -> Iterator[_Event]:
    """The events at these places. Few carry a token, so nothing else is made of the others."""
    picked = events.select(_Event._fields).take(at)
    numbers = ("dwell_ms", "amount_cents")  # null is as good as 0
    columns = [
        pc.fill_null(picked[name], 0) if name in numbers else picked[name]
        for name in _Event._fields
    ]
    return map(_Event, *(column.to_numpy().tolist() for column in columns))


def _verified(token: str, key: bytes) -> tuple[str, Impression] | None:
    try:
        impression = verify(token, key)
    except BadToken:
        return None
    return impression.impression_id, impression


def _same_item(event: _Event, impression: Impression) -> bool:
    """The event's own video and query, where it names them, are those that were served."""
    if event.video_id is not None and event.video_id != impression.video_id:
        return False
    return impression.query is None or event.query in (None, impression.query)


def _of_event(event: _Event, impression: Impression) -> Outcome | None:
    """None for a kind that is neither a showing nor a task (share, search, cart)."""
    # A client's clock may be slow: nothing happened before it was served.
    at = max(event.event_time_ms, impression.served_at_ms)
    kind, origin = event.kind, event.origin
    shown_kind = _SHOWN if impression.query is None else _QUERY_SHOWN
    if kind == shown_kind:
        return Outcome(impression, shown_at_ms=at, origin=origin)
    task = _TASK_OF_CODE.get(kind)
    if task is None:
        return None
    return Outcome(
        impression,
        first_ms={task: at},
        dwell_ms=event.dwell_ms,
        order=(at, event.amount_cents) if kind == _ORDER else None,
        origin=origin,
    )


def to_table(states: Iterable[tuple[Outcome, int]], windows: Windows) -> pa.Table:
    """Outcomes with their revisions as rows of FEEDBACK_SCHEMA, in their order."""
    outcomes, revisions = [], []
    for outcome, revision in states:
        outcomes.append(outcome)
        revisions.append(revision)
    served = [outcome.impression for outcome in outcomes]
    shown = pa.array([outcome.shown_at_ms for outcome in outcomes], pa.int64())
    columns: dict[str, Any] = {
        "impression_id": [impression.impression_id for impression in served],
        "shown_at_ms": shown,
        "dwell_ms": [outcome.dwell_ms for outcome in outcomes],
        "order_amount_cents": [outcome.order[1] if outcome.order else 0 for outcome in outcomes],
        "origin": [outcome.origin for outcome in outcomes],
        "matured_at_ms": pc.add(shown, windows.longest_ms),
        "revision": revisions,
    }
    for name in Impression.model_fields:
        columns[name] = list(map(attrgetter(name), served))
    for task in TASKS:
        at = pa.array([outcome.first_ms.get(task) for outcome in outcomes], pa.int64())
        columns[f"{task}_at_ms"], columns[task] = at, _attributed(at, shown, windows.of(task))
    return pa.table({name: columns[name] for name in FEEDBACK_SCHEMA.names}, FEEDBACK_SCHEMA)


def _attributed(at: pa.Array, shown: pa.Array, window_ms: int) -> pa.Array:
    """Whether the first action came no later than its window after `shown`.

    One that came before `shown` counts: the user had the video before the client said so.
    Nothing counts until `shown` is known: served is not seen.
    """
    return pc.fill_null(pc.less_equal(at, pc.add(shown, window_ms)), False)


def from_row(row: Mapping[str, Any]) -> tuple[Outcome, int]:
    """The outcome and revision behind a row: `to_table`'s inverse, so files are state."""
    first = {task: at for task in TASKS if (at := row[f"{task}_at_ms"]) is not None}
    order = (first["order"], row["order_amount_cents"]) if "order" in first else None
    served = {name: row[name] for name in Impression.model_fields}
    served["weights"] = None if served["weights"] is None else tuple(served["weights"])
    outcome = Outcome(
        Impression.model_construct(**served),
        row["shown_at_ms"],
        first,
        row["dwell_ms"],
        order,
        row["origin"],
    )
    return outcome, row["revision"]
