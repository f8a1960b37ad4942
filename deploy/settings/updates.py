"""Settings sections `[updates.MODEL]`: when a model is updated by itself.

Knows durations and which models can be updated. Does not know when an update is due
(`models.training.schedule`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from deploy.settings.values import Section
from models.registry import REGISTRY

if TYPE_CHECKING:
    from models.training.schedule import Schedule

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])")


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as "30m"; raises `ValueError` for other forms."""
    found = _DURATION.fullmatch(text)
    length = int(float(found[1]) * _UNITS_MS[found[2]]) if found else 0
    if length < 1:
        raise ValueError("must be a number above 0 with a unit: 90s, 30m, 6h or 1d")
    return length


def _checked_duration(text: str) -> str:
    duration_ms(text)
    return text


class UpdateSchedule(Section):
    """An update is due when either is met. A failed one is retried after 30 s, then ever later."""

    # A duration of the stack's clock, such as "6h", since the last update began.
    every: Annotated[str, AfterValidator(_checked_duration)] | None = None
    # Impressions whose feedback matured since the last update.
    after_feedback: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        if self.every is None and self.after_feedback is None:
            raise ValueError('says not when: set every = "6h", after_feedback = 5000, or both')
        return self

    def schedule(self) -> Schedule:
        from models.training.schedule import Schedule  # not loaded by every command

        every_ms = duration_ms(self.every) if self.every is not None else None
        return Schedule(every_ms, self.after_feedback)

    def in_words(self) -> str:
        parts = [f"every {self.every}"] if self.every is not None else []
        if self.after_feedback is not None:
            parts.append(f"after {self.after_feedback} matured impressions")
        return " or ".join(parts)


def _models_with_updates(schedules: dict[str, UpdateSchedule]) -> dict[str, UpdateSchedule]:
    known = sorted(spec.name for spec in REGISTRY.values() if spec.update)
    for name in schedules:
        if name not in known:
            raise ValueError(f"{name!r} has no preference update; these have: {', '.join(known)}")
    return schedules


UpdatesSettings = Annotated[dict[str, UpdateSchedule], AfterValidator(_models_with_updates)]
"""Sections `[updates.MODEL]`; empty: nothing is updated by itself."""
