"""The register of declared signals: which name has which number, for good.

Knows one JSON file beside the event log, whose rows hold the numbers. Does not know where signals
are declared (the settings). Processes that share the folder may register at once.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.contract.signals import (
    FIRST_NUMBER,
    LAST_NUMBER,
    PROFILE,
    Signal,
    SignalDeclaration,
    Signals,
)

FILE = "signals.json"


class SignalConflict(ValueError):
    """A declaration contradicts the register; the message says how to resolve it."""


def register(
    directory: Path,
    declarations: Mapping[str, SignalDeclaration],
    *,
    user_attributes: bool = False,
) -> Signals:
    """The signals in force: the declared ones, each with its number, and those declared before.

    A new name gets its number here and is written down. Nothing is written without a declaration.
    user_attributes: whether attributes of users are declared, so that `PROFILE` is in force.

    Raises:
        SignalConflict: a stated number belongs to another name, or none is free.
    """
    path = directory / FILE
    if not declarations and not user_attributes and not path.exists():
        return Signals()
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f".{FILE}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(path)
        registered = _with_numbers(known, declarations)
        if user_attributes:
            registered = _with_profile(registered)
        if registered != known:
            _write(path, registered)
    signals = [
        Signal(name, registered[name]["number"], each.role, each.payload, each.window_ms)
        for name, each in declarations.items()
    ]
    signals += [PROFILE] if user_attributes else []
    in_force = {each.name for each in signals}
    removed = [
        Signal(name, entry["number"], entry["role"], tuple(entry["payload"]))
        for name, entry in registered.items()
        if name not in in_force
    ]
    return Signals(tuple(sorted(signals, key=lambda each: each.number)), tuple(removed))


def _with_numbers(
    known: Mapping[str, Any], declarations: Mapping[str, SignalDeclaration]
) -> dict[str, Any]:
    """The register with every declaration. A payload that was stored once stays known."""
    found = {name: dict(entry) for name, entry in known.items()}
    stated = {name: each.number for name, each in declarations.items() if each.number is not None}
    for name, number in stated.items():
        _refuse_conflict(name, number, found)
        found.setdefault(name, {"number": number, "payload": []})
    for name, each in declarations.items():
        if name not in found:
            found[name] = {"number": _next_number(found), "payload": []}
        payload = sorted({*found[name]["payload"], *each.payload})
        found[name] |= {"payload": payload, "role": each.role}
    return found


def _with_profile(known: Mapping[str, Any]) -> dict[str, Any]:
    """The register with `PROFILE`, so that stored profiles stay readable without the declaration."""
    entry = {"number": PROFILE.number, "payload": [*PROFILE.payload], "role": PROFILE.role}
    if known.get(PROFILE.name, entry)["number"] != PROFILE.number:
        raise SignalConflict(
            f"a signal {PROFILE.name!r} was declared in this home, and users.attributes needs that "
            "name: start without users.attributes, or with another home"
        )
    return {**known, PROFILE.name: entry}


def _refuse_conflict(name: str, number: int, found: Mapping[str, Any]) -> None:
    if name in found and found[name]["number"] != number:
        raise SignalConflict(
            f"signals.{name}.number is {number}, and stored rows hold it as "
            f"{found[name]['number']}: state that number, or none"
        )
    for other, entry in found.items():
        if other != name and entry["number"] == number:
            raise SignalConflict(
                f"signals.{name}.number is {number}, which belongs to {other!r} for good, since "
                "stored rows may hold it: state another number, or none"
            )


def _next_number(found: Mapping[str, Any]) -> int:
    number = max((e["number"] for e in found.values()), default=0)
    number = max(number + 1, FIRST_NUMBER)
    if number > LAST_NUMBER:
        free = sorted(
            {*range(FIRST_NUMBER, LAST_NUMBER + 1)} - {e["number"] for e in found.values()}
        )
        if not free:
            raise SignalConflict("no number is free for another signal")
        return int(free[0])
    return int(number)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["signals"])
    except (ValueError, KeyError, TypeError) as error:
        raise SignalConflict(
            f"{path} cannot be read ({error!r}): restore it from a backup, or state each signal's "
            "number in the settings and remove it"
        ) from error


def _write(path: Path, registered: Mapping[str, Any]) -> None:
    """Whole or not at all, also over a power failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump({"signals": registered}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
