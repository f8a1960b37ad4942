"""Bounds of what producers may send: texts, amounts and times, each with its unit.

Knows types and limits, the same for every topic and route. Does not know which message has which
field (`streams.contract.events`), nor how late or early a time may be on the stack's clock
(`streams.ingest.admission`), except for `future_limit_ms`.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from streams.contract.clock import MINUTE_MS, Clock

# Bounds in characters. NUL is rejected because C strings downstream end there.
MAX_ID, MAX_QUERY, MAX_IMPRESSION = 128, 256, 1024
MAX_TITLE, MAX_GENRE, MAX_GENRES = 512, 64, 32
MAX_TEXT, MAX_LABEL, MAX_NAME = 8_192, 128, 63
MAX_DWELL_MS, MAX_AMOUNT_CENTS = 86_400_000, 10**9
MAX_DURATION_MS = 30 * 86_400_000  # a live stream may last for weeks
MAX_COUNT = 2**63 - 1  # offsets and sizes, which Kafka and Arrow store as int64
_NO_NUL = r"^[^\x00]*$"
NAME_PATTERN = "^[a-z][a-z0-9_]*$"

# 1971 to 2100. Times in seconds fall below and times in microseconds above, so that both wrong
# units are rejected rather than guessed.
MIN_EVENT_TIME_MS = 31_536_000_000
MAX_EVENT_TIME_MS = 4_102_444_800_000
FUTURE_MS = 5 * MINUTE_MS  # how far a producer's clock may be ahead


def _zero_or_time(value: int) -> int:
    if 0 < value < MIN_EVENT_TIME_MS:
        raise PydanticCustomError(
            "time_ms",
            "Input should be 0 (not stated) or at least {least}",
            {"least": MIN_EVENT_TIME_MS},
        )
    return value


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=_NO_NUL)]
QueryText = Annotated[str, Field(min_length=1, max_length=MAX_QUERY, pattern=_NO_NUL)]
ImpressionToken = Annotated[str, Field(min_length=1, max_length=MAX_IMPRESSION, pattern=_NO_NUL)]
Title = Annotated[str, Field(max_length=MAX_TITLE, pattern=_NO_NUL)]
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=_NO_NUL)]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL, pattern=_NO_NUL)]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""An item's kind: video, product, live, article or any other name of that form."""
SurfaceName = Annotated[str, Field(max_length=32, pattern=NAME_PATTERN)]
"""A surface's name. Which surfaces a stack has is declared (`streams.contract.declaration`)."""
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
"""ISO 4217."""
Locale = Annotated[str, Field(max_length=35, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]
"""BCP 47, such as pt-BR."""
Genre = Annotated[str, Field(min_length=1, max_length=MAX_GENRE, pattern=_NO_NUL)]
DwellMs = Annotated[int, Field(strict=True, ge=0, le=MAX_DWELL_MS)]
AmountCents = Annotated[int, Field(strict=True, ge=0, le=MAX_AMOUNT_CENTS)]
SignalValue = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""What a signal such as a rating states: a whole or decimal number."""
DurationMs = Annotated[int, Field(ge=0, le=MAX_DURATION_MS)]
PriceCents = Annotated[int, Field(ge=0, le=MAX_AMOUNT_CENTS)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TimeMs = Annotated[int, Field(strict=True, ge=MIN_EVENT_TIME_MS, le=MAX_EVENT_TIME_MS)]
"""Milliseconds since 1970."""
OptionalTimeMs = Annotated[
    int, Field(strict=True, ge=0, le=MAX_EVENT_TIME_MS), AfterValidator(_zero_or_time)
]
"""`TimeMs`, or 0 for a time that is not stated."""

TIME_FIELDS = frozenset({"event_time_ms", "created_ms", "at_ms", "now_ms"})
"""Fields whose rejection states the fix for a wrong unit."""


def future_limit_ms(clock: Clock, future_ms: int = FUTURE_MS) -> int:
    """The largest time that a message may state now."""
    return clock.now_ms() + future_ms


def is_time_ms(value: object) -> bool:
    """Whether a stored value is a time within the bounds."""
    return type(value) is int and MIN_EVENT_TIME_MS <= value <= MAX_EVENT_TIME_MS


# Milliseconds per unit, and the fix.
_UNITS = (
    (1_000, "these look like seconds: multiply by 1000"),
    (1e-3, "these look like microseconds: divide by 1000"),
    (1e-6, "these look like nanoseconds: divide by 1000000"),
)


def time_fix(stated: object) -> str:
    """How to fix a time that is not a whole number of milliseconds since 1970."""
    if isinstance(stated, str):
        return "send a number, not a string: whole milliseconds since 1970"
    if isinstance(stated, int | float):
        for size, fix in _UNITS:
            # Not `stated * size`: an integer may be too large for a float.
            if MIN_EVENT_TIME_MS / size <= stated <= MAX_EVENT_TIME_MS / size:
                return fix
    return "send whole milliseconds since 1970"


# Names that a column cannot have: Feast's own columns, and the words that SQL reserves.
_FEAST_WORDS = "created_timestamp entity_df entity_id event_timestamp now_ms project ttl"
_SQL_WORDS = (
    "all alter analyze and any array as asc between both by case cast check collate "
    "column constraint create cross current_date current_time current_timestamp "
    "current_user default delete desc distinct drop else end except exists false fetch "
    "for foreign from full grant group having in inner insert intersect interval into is "
    "join lateral leading left like limit natural not null offset on or order outer "
    "primary references right row rows select session_user set some table then to "
    "trailing true union unique update user using values when where window with "
)
_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}")


def declared_name_problem(name: str, taken: frozenset[str]) -> str:
    """Why an owner cannot declare `name`; "": it is free. `taken`: the contract's own names."""
    if not _NAME.fullmatch(name) or "__" in name or name.endswith("_"):
        return (
            f"a name has 1 to {MAX_NAME} characters of a-z, 0-9 and single underscores, and begins "
            "with a letter"
        )
    if name in taken:
        return f"{name!r} is a name of the contract already"
    if name in _FEAST_WORDS.split():
        return f"{name!r} is a name that Feast uses; take another one, such as {name}_value"
    if name in _SQL_WORDS.split():
        return f"{name!r} is a word that SQL reserves; take another one, such as {name}_value"
    return ""
