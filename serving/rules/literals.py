"""Times, durations and patterns as they are written in an expression.

Knows their forms. Does not know expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from serving.rules.syntax import RuleError

MAX_PATTERN = 256  # characters
_MAX_PATTERN_BYTES = 1 << 20  # of a compiled pattern
_UNIT_MS = {"h": 3_600_000.0, "m": 60_000.0, "s": 1_000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?(?:h|ms|m|s|us|ns))+)")
_PART = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|ns)")
_LONGEST_MS = 1e15  # below, milliseconds are exact


def timestamp_ms(text: str) -> float:
    """Milliseconds since 1970. Raises `RuleError`."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise RuleError(f"{text!r} is no time with a zone, such as 2026-11-30T08:00:00Z")
    return round(at.timestamp() * 1e3, 3)


def duration_ms(text: str) -> float:
    """Milliseconds. Raises `RuleError`."""
    whole = _DURATION.fullmatch(text) if len(text) <= 64 else None
    found = 0.0
    if whole is not None:
        found = sum(float(n) * _UNIT_MS[unit] for n, unit in _PART.findall(whole[2]))
    if whole is None or found > _LONGEST_MS:
        raise RuleError(f"{text[:64]!r} is no duration, such as 72h or 1h30m")
    return -found if whole[1] == "-" else found


def pattern_test(pattern: str) -> Callable[[str], bool]:
    """Whether a text contains a match, in time linear in its length. Raises `RuleError`."""
    import re2  # type: ignore[import-untyped]  # comes with the CEL library, and takes 0.1 s to import

    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"a pattern has up to {MAX_PATTERN} characters, and this {len(pattern)}")
    options = re2.Options()
    options.max_mem, options.log_errors = _MAX_PATTERN_BYTES, False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise RuleError(f"{pattern!r} is no RE2 pattern: {why}") from error
    return lambda text: compiled.search(text) is not None
