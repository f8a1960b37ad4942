"""Signals: the kinds of events, shipped and declared by an owner, each with a number for good.

Knows names, numbers, roles, payloads and attribution windows. Does not know how an event of a kind
is validated (`streams.contract.events`) nor where numbers are kept (`streams.storage.signal_register`).

Stored rows hold a kind's number. The shipped kinds have the numbers 0 to 11, and 12 states a user's
attributes where those are declared. A declared signal gets
the next free one from `FIRST_NUMBER` on, and a number is never given to another name. So rows stay
right when a declaration is removed, moved or renamed: they keep the name that they were written by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS

Role = Literal["exposure", "engagement", "dislike", "conversion"]
Payload = Literal["dwell", "amount", "value", "text"]
MAX_SIGNAL_NAME = 16  # characters: what the compiled JSON scan compares in two machine words
FIRST_NUMBER, LAST_NUMBER = 64, 254  # of declared signals; below, the contract may grow
DEFAULT_WINDOW_MS = DAY_MS
# Payload -> the event's column. Rows of stacks without such a signal do not have the last two.
PAYLOAD_COLUMNS: dict[str, str] = {
    "dwell": "dwell_ms",
    "amount": "amount_cents",
    "value": "value",
    "text": "text",
}


class SignalDeclaration(BaseModel):
    """One section `[signals.NAME]` of the settings. Times are milliseconds.

    payload: what events state beside the item. `dwell` is `dwell_ms`, `amount` is `amount_cents`,
    `value` is a finite number and `text` has up to 8,192 characters.
    number: what stored rows hold; chosen by the stack where it is not stated. State it where
    processes share no home.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    payload: tuple[Payload, ...] = ()
    window_ms: Annotated[int, Field(ge=1, le=2**53)] = DEFAULT_WINDOW_MS
    number: Annotated[int, Field(ge=FIRST_NUMBER, le=LAST_NUMBER)] | None = None


@dataclass(frozen=True)
class Signal:
    """One kind of events. `window_ms`: None where no task is attributed to an impression."""

    name: str
    number: int
    role: Role | None
    payload: tuple[str, ...] = ()
    window_ms: int | None = None


SHIPPED: tuple[Signal, ...] = (
    Signal("shown", 0, "exposure"),
    Signal("skip", 1, "dislike", ("dwell",), DEFAULT_WINDOW_MS),
    Signal("play", 2, "engagement", ("dwell",), 10 * MINUTE_MS),
    Signal("long_view", 3, "engagement", ("dwell",), 30 * MINUTE_MS),
    Signal("like", 4, "engagement", (), HOUR_MS),
    Signal("share", 5, "engagement"),
    Signal("follow", 6, "engagement", (), HOUR_MS),
    Signal("query_shown", 7, "exposure"),
    Signal("query_click", 8, "engagement", (), 10 * MINUTE_MS),
    Signal("search", 9, None),
    Signal("cart", 10, "engagement", ("amount",)),
    Signal("order", 11, "conversion", ("amount",), DAY_MS),
)
"""The contract's own kinds. `streams.contract.events` says which fields each has."""

ENGAGED: tuple[str, ...] = ("play", "long_view", "like", "share", "follow", "cart", "order")
"""The shipped kinds by which a user engages with an item. A `query_click` is about a query."""

PROFILE = Signal("profile", 12, None, ("text",))
"""States the attributes of a user, which are stored as JSON in the column `text`. It is among the
declared signals where attributes of users are declared, and unknown elsewhere."""


@dataclass(frozen=True)
class Signals:
    """The kinds of events in force.

    removed: signals that were declared once. Stored rows may hold them; new events may not.
    """

    declared: tuple[Signal, ...] = ()
    removed: tuple[Signal, ...] = ()

    @cached_property
    def admitted(self) -> tuple[Signal, ...]:
        """The kinds that a producer may state, shipped ones first."""
        return (*SHIPPED, *self.declared)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The names of `admitted`."""
        return tuple(signal.name for signal in self.admitted)

    @cached_property
    def user_attributes(self) -> bool:
        """Whether events may state attributes of users."""
        return PROFILE in self.declared

    @cached_property
    def stand_ins(self) -> Mapping[str, str]:
        """Declared engagement or conversion -> the shipped kind that it counts as where only those
        are weighed: a play, since how much an engagement says is not declared, or an order."""
        kinds = {"engagement": "play", "conversion": "order"}
        return {signal.name: kinds[signal.role] for signal in self.declared if signal.role in kinds}

    @cached_property
    def engaged(self) -> tuple[str, ...]:
        """The names of signals by which a user engages with an item, shipped ones first."""
        return (*ENGAGED, *self.stand_ins)

    @cached_property
    def number(self) -> Mapping[str, int]:
        """Name -> number, also of removed signals."""
        return {signal.name: signal.number for signal in (*self.removed, *self.admitted)}

    @cached_property
    def name(self) -> tuple[str, ...]:
        """Number -> name for every number of a byte; of one that is not known, `signal_NUMBER`."""
        known = {number: name for name, number in self.number.items()}
        return tuple(known.get(number, f"signal_{number}") for number in range(256))

    @cached_property
    def numbers(self) -> frozenset[int]:
        """Every number that a stored row may hold."""
        return frozenset(self.number.values())

    @cached_property
    def added_tasks(self) -> tuple[str, ...]:
        """Declared signals that are joined to impressions as outcomes, also removed ones."""
        return tuple(
            signal.name
            for signal in (*self.declared, *self.removed)
            if signal.role not in (None, "exposure")
        )

    @cached_property
    def windows_ms(self) -> dict[str, int]:
        """Declared task -> its attribution window."""
        return {
            signal.name: signal.window_ms
            for signal in self.declared
            if signal.name in self.added_tasks and signal.window_ms is not None
        }

    @cached_property
    def added_columns(self) -> tuple[str, ...]:
        """The event columns that stored rows have beside those of the shipped contract."""
        stated = {name for signal in (*self.declared, *self.removed) for name in signal.payload}
        return tuple(PAYLOAD_COLUMNS[each] for each in ("value", "text") if each in stated)
