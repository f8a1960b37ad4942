"""The state of impressions: columns that merge, and rows of feedback.

Knows actions, their first times and attribution windows. Does not know events nor tokens
(`streams.feedback.join`), nor files (`streams.feedback.store`). Pure: no clock, no disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.declaration import contract
from streams.contract.impression import Impression
from streams.contract.signals import Signals

Ints = npt.NDArray[np.int64]

FEEDBACK_TASKS: tuple[str, ...] = (
    "play",
    "long_view",
    "like",
    "follow",
    "order",
    "query_click",
    "skip",
)

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
        # what the user did
        pa.field("shown_at_ms", pa.int64()),  # null: served, but never reported as seen
        *(
            field
            for task in FEEDBACK_TASKS
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
        pa.field("revision", pa.int64(), nullable=False),  # from 1; the largest one is current
        # also from the token; null unless drawn weights ranked the slate
        pa.field("weights", pa.list_(pa.float64())),
        pa.field("log_density", pa.float64()),
        # also from the token; null outside an experiment
        pa.field("arm", pa.string()),
        # also from the token; null in rows that were written before there were rules
        pa.field("placed", pa.bool_()),
        pa.field("experiment", pa.string()),
        pa.field("team", pa.string()),
    ]
)

# Columns of a state's numbers. First times are minima, so a missing one is the latest time. Those of
# declared signals come last.
SHOWN = 0
ACTION_CODE = {task: code for code, task in enumerate(FEEDBACK_TASKS, start=1)}
_FIRSTS = 1 + len(FEEDBACK_TASKS)
_DWELL, _CENTS, _REVISION, _WIDTH = _FIRSTS, _FIRSTS + 1, _FIRSTS + 2, _FIRSTS + 3
_NEVER = int(np.iinfo(np.int64).max)
_EMPTY = [_NEVER] * _FIRSTS + [0, 0, 0]
_SERVED_FIELDS = tuple(name for name in Impression.model_fields if name in FEEDBACK_SCHEMA.names)
_SERVED = itemgetter(*_SERVED_FIELDS)


@dataclass(frozen=True)
class TaskColumns:
    """Where each task's first time stands, under the signals in force.

    declared: the tasks of declared signals, also of removed ones, by number. schema: of feedback.
    """

    declared: tuple[str, ...]
    code: Mapping[str, int]
    schema: pa.Schema
    empty: bytes  # the state before any action


def task_columns() -> TaskColumns:
    return _task_columns_of(contract().signals)


@lru_cache(maxsize=16)
def _task_columns_of(signals: Signals) -> TaskColumns:
    tasks = sorted(signals.added_tasks, key=signals.number.__getitem__)
    # Rows of before the declaration have no such column: it may be null there.
    added = [
        field
        for task in tasks
        for field in (pa.field(task, pa.bool_()), pa.field(f"{task}_at_ms", pa.int64()))
    ]
    code = ACTION_CODE | {task: _WIDTH + place for place, task in enumerate(tasks)}
    schema = pa.schema([*FEEDBACK_SCHEMA, *added]) if added else FEEDBACK_SCHEMA
    empty = np.array([*_EMPTY, *[_NEVER] * len(tasks)], np.int64).tobytes()
    return TaskColumns(tuple(tasks), code, schema, empty)


@dataclass(frozen=True)
class AttributionWindows:
    """The time after `shown` within which an action is attributed to an impression, ms per task.

    A task that the mapping leaves out gets the longest window.
    """

    per_task_ms: Mapping[str, int]

    @property
    def longest_ms(self) -> int:
        return max(self.per_task_ms.values())

    def of(self, task: str) -> int:
        return self.per_task_ms.get(task, self.longest_ms)


@dataclass(frozen=True, slots=True)
class ImpressionActions:
    """N actions of one batch, columnar: each on one of the batch's impressions."""

    row: Ints  # [N], ascending: the event's row in its batch
    impression: Ints  # [N], index into the batch's impressions
    action: Ints  # [N], SHOWN or `task_columns().code[task]`
    at_ms: Ints  # [N]
    dwell_ms: Ints  # [N], 0 for SHOWN
    cents: Ints  # [N], 0 unless an order
    origin: list[str]  # [N]

    def in_rows(self, first: int, end: int) -> ImpressionActions:
        """The actions of the batch's rows from `first` up to `end`."""
        start, stop = np.searchsorted(self.row, (first, end)).tolist()
        part = slice(start, stop)
        return ImpressionActions(
            self.row[part],
            self.impression[part],
            self.action[part],
            self.at_ms[part],
            self.dwell_ms[part],
            self.cents[part],
            self.origin[part],
        )


class ImpressionState(NamedTuple):
    """What is known of one impression. `numbers`: int64, packed."""

    impression_id: str
    impression: Impression
    numbers: bytes
    origin: str

    @staticmethod
    def empty(impression_id: str, impression: Impression) -> ImpressionState:
        """The state before any action."""
        return ImpressionState(impression_id, impression, task_columns().empty, "")

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> ImpressionState:
        """The inverse of `ImpressionColumns.feedback_rows`: stored rows restore the state."""
        times = [row["shown_at_ms"], *(row[f"{task}_at_ms"] for task in FEEDBACK_TASKS)]
        firsts = [_NEVER if at is None else at for at in times]
        numbers = [*firsts, row["dwell_ms"], row["order_amount_cents"], row["revision"]]
        declared = (row[f"{task}_at_ms"] for task in task_columns().declared)
        numbers += [_NEVER if at is None else at for at in declared]
        served = {name: row[name] for name in _SERVED_FIELDS}
        served["weights"] = None if served["weights"] is None else tuple(served["weights"])
        impression = Impression.model_construct(**served)
        packed = np.array(numbers, np.int64).tobytes()
        return ImpressionState(row["impression_id"], impression, packed, row["origin"])


class ImpressionColumns:
    """The states of M impressions. Merging is commutative, associative and idempotent.

    Events may therefore come in any order, repeatedly, and in any batches.
    """

    def __init__(
        self, ids: list[str], impressions: list[Impression], numbers: Ints, origins: list[str]
    ) -> None:
        """`numbers`: int64 [M, first times, dwell, amount, revision]."""
        self.ids, self.impressions = ids, impressions
        self._numbers, self._origins = numbers, origins

    @classmethod
    def from_states(cls, states: Sequence[ImpressionState]) -> ImpressionColumns:
        packed = bytearray().join([state.numbers for state in states])
        numbers = np.frombuffer(packed, np.int64).reshape(len(states), -1)
        ids, impressions = [s.impression_id for s in states], [s.impression for s in states]
        return cls(ids, impressions, numbers, [state.origin for state in states])

    @classmethod
    def concat(cls, parts: Sequence[ImpressionColumns]) -> ImpressionColumns:
        """The parts' rows, one after the other; an impression may occur in several."""
        width = len(task_columns().empty) // 8
        numbers = [np.empty((0, width), np.int64), *(part._numbers for part in parts)]
        return cls(
            [each for part in parts for each in part.ids],
            [each for part in parts for each in part.impressions],
            np.concatenate(numbers),
            [each for part in parts for each in part._origins],
        )

    def take(self, indexes: Ints) -> ImpressionColumns:
        at = indexes.tolist()
        return ImpressionColumns(
            [self.ids[i] for i in at],
            [self.impressions[i] for i in at],
            self._numbers[indexes],
            [self._origins[i] for i in at],
        )

    def to_states(self) -> list[ImpressionState]:
        packed, size = self._numbers.tobytes(), 8 * self._numbers.shape[1]
        rows = [packed[at : at + size] for at in range(0, len(packed), size)]
        columns = zip(self.ids, self.impressions, rows, self._origins, strict=True)
        return list(map(ImpressionState._make, columns))

    def merge(self, actions: ImpressionActions) -> Ints:
        """Merges the actions. Returns the indexes (ascending) of the impressions that changed:
        each has its next revision."""
        touched = np.unique(actions.impression)
        before = self._numbers[touched]
        self._merge_orders(actions)
        cells = actions.impression * self._numbers.shape[1] + actions.action
        np.minimum.at(self._numbers.reshape(-1), cells, actions.at_ms)
        np.maximum.at(self._numbers[:, _DWELL], actions.impression, actions.dwell_ms)
        other_origin = self._merge_origins(actions)
        changed: Ints = touched[(self._numbers[touched] != before).any(axis=1)]
        if other_origin:
            changed = np.union1d(changed, np.array(list(other_origin), np.int64))
        self._numbers[changed, _REVISION] += 1
        return changed

    def _merge_orders(self, actions: ImpressionActions) -> None:
        """Keeps the first order's amount, the smaller one of two at the same time."""
        order_code = ACTION_CODE["order"]
        for event in np.flatnonzero(actions.action == order_code).tolist():
            numbers = self._numbers[actions.impression[event]]
            order = (int(actions.at_ms[event]), int(actions.cents[event]))
            if order < (numbers[order_code], numbers[_CENTS]):
                numbers[order_code], numbers[_CENTS] = order

    def _merge_origins(self, actions: ImpressionActions) -> set[int]:
        """Keeps the alphabetically last origin; returns the indexes of those that changed."""
        changed = set()
        for index, origin in zip(actions.impression.tolist(), actions.origin, strict=True):
            if origin > self._origins[index]:
                self._origins[index] = origin
                changed.add(index)
        return changed

    def feedback_rows(self, windows: AttributionWindows) -> pa.Table:
        """Rows of `task_columns().schema`, in the order of the impressions."""
        tasks = task_columns()
        if not self.ids:
            return tasks.schema.empty_table()
        numbers = np.ascontiguousarray(self._numbers.T)
        shown = _nullable_times(numbers[SHOWN])
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
            _SERVED_FIELDS,
            zip(*map(_SERVED, map(vars, self.impressions)), strict=True),
            strict=True,
        )
        for task, code in tasks.code.items():
            at = _nullable_times(numbers[code])
            columns[f"{task}_at_ms"] = at
            columns[task] = _attributed(at, shown, windows.of(task))
        return pa.table({name: columns[name] for name in tasks.schema.names}, tasks.schema)


def _nullable_times(column: Ints) -> pa.Array:
    return pa.array(column, mask=column == _NEVER)


def _attributed(at: pa.Array, shown: pa.Array, window_ms: int) -> pa.Array:
    """Whether the first action came no later than its window after `shown`.

    An action before `shown` counts: the user saw the item before the client reported it.
    Without `shown` nothing counts: a served item may stay unseen.
    """
    return pc.fill_null(pc.less_equal(at, pc.add(shown, window_ms)), False)
