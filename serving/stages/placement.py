"""Limits on which candidates may take which slot of a slate: pins, groups and shares.

Knows masks over a pool and the slots chosen so far. Does not know where limits come from
(`serving.stages.rules`) nor how a slot is drawn (`serving.stages.selectors`).

Where limits contradict each other, this is the order: a pin holds; then maximum shares and groups;
then minimum shares, which yield to these. Every limit depends only on the slots above and on what is
pinned, so the propensity of a draw among the candidates that are left is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Pin:
    """Candidate `row` of the pool stands in `slot`."""

    rule: str
    slot: int
    row: int


@dataclass(frozen=True)
class Group:
    """At most `at_most` candidates of one group. of: int64 [C], -1 for a candidate of none."""

    rule: str
    of: np.ndarray
    at_most: int


@dataclass(frozen=True)
class Share:
    """At least `least` and at most `most` slots for the candidates of `match` (bool [C])."""

    rule: str
    match: np.ndarray
    least: int
    most: int

    @staticmethod
    def of(rule: str, match: np.ndarray, minimum: float, maximum: float, k: int) -> Share:
        """minimum, maximum: shares of k slots."""
        return Share(rule, match, math.ceil(minimum * k - 1e-9), int(maximum * k + 1e-9))


@dataclass(frozen=True)
class Limits:
    """The limits of one slate. only_pinned: bool [C], candidates that serve pins alone."""

    pins: Sequence[Pin] = ()
    groups: Sequence[Group] = ()
    shares: Sequence[Share] = ()
    only_pinned: np.ndarray | None = None


@dataclass
class SlateLimits:
    """The limits of a slate while its slots are chosen from the first to the last.

    A pin whose slot a short slate does not reach moves up.

    slots: how many the slate can have. What is pinned counts from the start, wherever it stands.
    """

    limits: Limits
    slots: int
    closed: np.ndarray = field(init=False)
    """bool [C] or [1]: what groups and maximum shares exclude now."""
    _counts: list[np.ndarray] = field(default_factory=list)
    _have: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        groups, shares = self.limits.groups, self.limits.shares
        self._counts = [np.zeros(int(g.of.max(initial=-1)) + 2, np.int64) for g in groups]
        self._have = [0] * len(shares)
        self.closed = np.zeros(1, bool)
        for share in shares:
            if share.most <= 0:
                self.closed = self.closed | share.match
        self._pins = {pin.slot: pin for pin in self.limits.pins}
        for pin in self._pins.values():
            self._count(pin.row)

    def without_pinned(self, left: np.ndarray) -> np.ndarray:
        """bool [C]: `left` without what is pinned or serves pins alone."""
        found = left.copy()
        found[[pin.row for pin in self._pins.values()]] = False
        return found if self.limits.only_pinned is None else found & ~self.limits.only_pinned

    def pinned(self, slot: int) -> Pin | None:
        return self._pins.get(slot)

    def pinned_after(self, slot: int) -> list[Pin]:
        """The pins of this slot and those below, in order: they move up in a short slate."""
        return [self._pins[each] for each in sorted(self._pins) if each >= slot]

    def open(self, slot: int, left: np.ndarray) -> tuple[np.ndarray, bool]:
        """bool [C]: the candidates of `left` that may take this slot; and whether a minimum
        restricts the choice among those that no maximum excludes."""
        allowed = left & ~self.closed
        needs = self._needs()
        if not needs:
            return allowed, False
        free = sum(1 for each in range(slot, self.slots) if each not in self._pins)
        if free > sum(need for _, need in needs):
            return allowed, False
        needed = allowed & np.logical_or.reduce([share.match for share, _ in needs])
        return (needed, True) if needed.any() else (allowed, False)

    def chosen(self, row: int, restricted: bool) -> str | None:
        """Counts the candidate of an open slot. Returns the rule whose minimum restricted it."""
        rule = None
        if restricted:
            rule = next((share.rule for share, _ in self._needs() if share.match[row]), None)
        self._count(row)
        return rule

    def why_closed(self, row: int) -> tuple[str, str] | None:
        """The rule that excludes a candidate now, and how; None where none does."""
        for group, counts in zip(self.limits.groups, self._counts, strict=True):
            if group.of[row] >= 0 and counts[group.of[row]] >= group.at_most:
                return group.rule, f"its group already has {group.at_most}"
        for share, have in zip(self.limits.shares, self._have, strict=True):
            if share.match[row] and have >= share.most:
                return share.rule, f"already {have} of at most {share.most} slots"
        return None

    def unmet(self) -> dict[str, str]:
        """Rules whose minimum was not reached."""
        return {
            share.rule: f"{share.least - need} of at least {share.least} slots"
            for share, need in self._needs()
        }

    def _needs(self) -> list[tuple[Share, int]]:
        """Shares that have not reached their minimum, and how many slots they lack."""
        pairs = zip(self.limits.shares, self._have, strict=True)
        return [(share, share.least - have) for share, have in pairs if have < share.least]

    def _count(self, row: int) -> None:
        for group, counts in zip(self.limits.groups, self._counts, strict=True):
            of = group.of[row]
            if of >= 0:
                counts[of] += 1
                if counts[of] == group.at_most:
                    self.closed = self.closed | (group.of == of)
        for at, share in enumerate(self.limits.shares):
            if share.match[row]:
                self._have[at] += 1
                if self._have[at] == share.most:
                    self.closed = self.closed | share.match
