"""What became of impressions, many at a time: columns that merge, and rows of feedback.

Knows actions, their first times and attribution windows. Does not know events nor tokens
(`streams.feedback.join`), nor files (`streams.feedback.store`). Pure: no clock, no disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.impression import Impression

Ints = npt.NDArray[np.int64]

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

# Columns of `Outcomes.numbers`. First times are minima, so one that is not known is the latest.
SHOWN = 0
AT = {task: place for place, task in enumerate(TASKS, start=1)}
_FIRSTS = 1 + len(TASKS)
_DWELL, _CENTS, _REVISION, _WIDTH = _FIRSTS, _FIRSTS + 1, _FIRSTS + 2, _FIRSTS + 3
_NEVER = int(np.iinfo(np.int64).max)
_NOTHING = np.array([_NEVER] * _FIRSTS + [0, 0, 0], np.int64).tobytes()
_SERVED = itemgetter(*Impression.model_fields)


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


@dataclass(frozen=True, slots=True)
class Told:
    """What N events say of impressions: of which one, SHOWN or AT[task], and when."""

    row: Ints  # [N], ascending: the event's place in its batch
    of: Ints  # [N], the impression's place among those that the batch names
    what: Ints  # [N]
    at_ms: Ints  # [N]
    dwell_ms: Ints  # [N], 0 of a showing
    cents: Ints  # [N], 0 of all but an order
    origin: list[str]  # [N]

    def between(self, first: int, end: int) -> Told:
        """Those of the batch's rows from `first` up to `end`."""
        start, stop = np.searchsorted(self.row, (first, end)).tolist()
        part = slice(start, stop)
        return Told(
            self.row[part],
            self.of[part],
            self.what[part],
            self.at_ms[part],
            self.dwell_ms[part],
            self.cents[part],
            self.origin[part],
        )


Known = tuple[str, Impression, bytes, str]
"""What is known of one impression: its id, what was served, its numbers (int64), its origin."""


def unknown(impression_id: str, impression: Impression) -> Known:
    """Nothing has been told of it yet."""
    return impression_id, impression, _NOTHING, ""


class Outcomes:
    """What is known of M impressions. Merging is commutative, associative and idempotent.

    Hence events may come in any order, twice, or in other batches: the sum is the same.
    """

    def __init__(
        self, ids: list[str], impressions: list[Impression], numbers: Ints, origins: list[str]
    ) -> None:
        """`numbers`: int64 [M, first times, dwell, amount, revision]."""
        self.ids, self.impressions = ids, impressions
        self._numbers, self._origins = numbers, origins

    @classmethod
    def of(cls, known: Sequence[Known]) -> Outcomes:
        packed = bytearray().join([numbers for _, _, numbers, _ in known])
        numbers = np.frombuffer(packed, np.int64).reshape(-1, _WIDTH)
        ids, impressions = [each[0] for each in known], [each[1] for each in known]
        return cls(ids, impressions, numbers, [each[3] for each in known])

    @classmethod
    def joint(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The parts' rows, one after the other; an impression may stand in several."""
        numbers = [np.empty((0, _WIDTH), np.int64), *(part._numbers for part in parts)]
        return cls(
            [each for part in parts for each in part.ids],
            [each for part in parts for each in part.impressions],
            np.concatenate(numbers),
            [each for part in parts for each in part._origins],
        )

    def take(self, places: Ints) -> Outcomes:
        at = places.tolist()
        return Outcomes(
            [self.ids[i] for i in at],
            [self.impressions[i] for i in at],
            self._numbers[places],
            [self._origins[i] for i in at],
        )

    def known(self) -> list[Known]:
        packed, size = self._numbers.tobytes(), len(_NOTHING)
        rows = [packed[at : at + size] for at in range(0, len(packed), size)]
        return list(zip(self.ids, self.impressions, rows, self._origins, strict=True))

    def merge(self, told: Told) -> Ints:
        """Takes in what events say. Returns the places (ascending) of the impressions of
        which more is known now: each has come to its next revision."""
        touched = np.unique(told.of)
        before = self._numbers[touched]
        self._merge_orders(told)
        np.minimum.at(self._numbers.reshape(-1), told.of * _WIDTH + told.what, told.at_ms)
        np.maximum.at(self._numbers[:, _DWELL], told.of, told.dwell_ms)
        renamed = self._merge_origins(told)
        changed: Ints = touched[(self._numbers[touched] != before).any(axis=1)]
        if renamed:
            changed = np.union1d(changed, np.array(list(renamed), np.int64))
        self._numbers[changed, _REVISION] += 1
        return changed

    def _merge_orders(self, told: Told) -> None:
        """The first order's amount, the smaller one of two at once."""
        for event in np.flatnonzero(told.what == AT["order"]).tolist():
            known = self._numbers[told.of[event]]
            order = (int(told.at_ms[event]), int(told.cents[event]))
            if order < (known[AT["order"]], known[_CENTS]):
                known[AT["order"]], known[_CENTS] = order

    def _merge_origins(self, told: Told) -> set[int]:
        renamed = set()
        for place, origin in zip(told.of.tolist(), told.origin, strict=True):
            if origin > self._origins[place]:
                self._origins[place] = origin
                renamed.add(place)
        return renamed

    def table(self, windows: Windows) -> pa.Table:
        """Rows of FEEDBACK_SCHEMA, in their order."""
        if not self.ids:
            return FEEDBACK_SCHEMA.empty_table()
        numbers = np.ascontiguousarray(self._numbers.T)
        shown = _time(numbers[SHOWN])
        columns: dict[str, Any] = {
            "impression_id": self.ids,
            "shown_at_ms": shown,
            "dwell_ms": numbers[_DWELL],
            "order_amount_cents": numbers[_CENTS],
            "origin": self._origins,
            "matured_at_ms": pc.add(shown, windows.longest_ms),
            "revision": numbers[_REVISION],
        }
        columns |= zip(
            Impression.model_fields,
            zip(*map(_SERVED, map(vars, self.impressions)), strict=True),
            strict=True,
        )
        for task, place in AT.items():
            at = _time(numbers[place])
            columns[f"{task}_at_ms"] = at
            columns[task] = _attributed(at, shown, windows.of(task))
        return pa.table({name: columns[name] for name in FEEDBACK_SCHEMA.names}, FEEDBACK_SCHEMA)


def _time(column: Ints) -> pa.Array:
    return pa.array(column, mask=column == _NEVER)


def _attributed(at: pa.Array, shown: pa.Array, window_ms: int) -> pa.Array:
    """Whether the first action came no later than its window after `shown`.

    One that came before `shown` counts: the user had the video before the client said so.
    Nothing counts until `shown` is known: served is not seen.
    """
    return pc.fill_null(pc.less_equal(at, pc.add(shown, window_ms)), False)


def from_row(row: Mapping[str, Any]) -> Known:
    """What is known by a row: the inverse of `Outcomes.table`, so files are state."""
    times = [row["shown_at_ms"], *(row[f"{task}_at_ms"] for task in TASKS)]
    firsts = [_NEVER if at is None else at for at in times]
    numbers = [*firsts, row["dwell_ms"], row["order_amount_cents"], row["revision"]]
    served = {name: row[name] for name in Impression.model_fields}
    served["weights"] = None if served["weights"] is None else tuple(served["weights"])
    impression = Impression.model_construct(**served)
    packed = np.array(numbers, np.int64).tobytes()
    return row["impression_id"], impression, packed, row["origin"]
