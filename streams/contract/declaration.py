"""What the owner of a stack declares beside the shipped contract, in force in this process.

Knows the declared attributes, signals and surfaces. Does not know where they are written down (`deploy.settings`).
A process declares once, before it reads its first message; every process of a stack declares the
same, from the same settings. Without a declaration the shipped contract is in force.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from streams.contract.attributes import AttributeDeclarations
from streams.contract.signals import Signals


@dataclass(frozen=True)
class Contract:
    """The open parts of the contract."""

    items: AttributeDeclarations = field(default_factory=AttributeDeclarations)
    users: AttributeDeclarations = field(default_factory=AttributeDeclarations)
    """In force with the signal `PROFILE` (`streams.contract.signals`)."""
    signals: Signals = field(default_factory=Signals)
    across_items: tuple[str, ...] = ()
    """Signals that are also credited to the impression of another item that led to theirs."""
    surfaces: tuple[str, ...] | None = None
    """The surfaces that an event may name beside the default; None: any name of the form."""


_in_force = Contract()


def contract() -> Contract:
    """The contract in force."""
    return _in_force


def declare(declared: Contract) -> None:
    """Puts a contract in force, for this process."""
    global _in_force
    _in_force = declared


@contextmanager
def declared(while_open: Contract) -> Iterator[None]:
    """Puts a contract in force and afterwards the one before, for tests and examples."""
    before = _in_force
    declare(while_open)
    try:
        yield
    finally:
        declare(before)
