"""When an update of a model is due: by time, by matured feedback, or after a failure.

Knows one model's schedule and the state of its updates. Pure: clocks and counts are arguments. Does
not start anything (`deploy.processes.updater`).
"""

from __future__ import annotations

from dataclasses import dataclass

from models.training.update_state import UpdateState

FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 3_600.0


@dataclass(frozen=True)
class Schedule:
    """An update is due when either is met; None: not by this. `every_ms`: on the stack's clock.

    after_feedback: impressions that matured since the last attempt.
    """

    every_ms: int | None = None
    after_feedback: int | None = None


@dataclass(frozen=True)
class Due:
    """Whether an update is due, and why. `at_ms`: when time alone makes it due, if it can."""

    now: bool
    why: str
    at_ms: int | None = None


def due(
    schedule: Schedule, state: UpdateState, *, now_ms: int, live_since_ms: int, matured: int
) -> Due:
    """Whether an update should start now.

    live_since_ms: when the first release with the model went live, from which the first interval
    counts. matured: impressions that matured after `state.seen_until_ms`.

    A clock that jumps ahead gives one update and not one for each interval that it skipped. After a
    jump back, an attempt that seems to lie more than one interval ahead does not count.
    """
    if state.unfinished is not None:
        return Due(True, "an interrupted update is to be finished or undone")
    last = state.last
    if last is not None and last.ending in ("failed", "interrupted", "superseded"):
        return Due(True, f"the last attempt was {_how(last.ending)}: {' '.join(last.reasons)}")
    at_ms = None
    if schedule.every_ms is not None:
        base_ms = last.started_ms if last is not None else live_since_ms
        at_ms = base_ms + schedule.every_ms
        if base_ms - now_ms > schedule.every_ms:
            at_ms = now_ms
    if matured == 0:
        return Due(False, "no feedback has matured since the last attempt", at_ms)
    wanted = schedule.after_feedback
    if wanted is not None and matured >= wanted:
        return Due(True, f"{matured} impressions have matured, {wanted} are enough", at_ms)
    if at_ms is not None and now_ms >= at_ms:
        return Due(True, "the interval has passed", at_ms)
    return Due(False, _waits_for(matured, wanted, at_ms), at_ms)


def retry_pause_s(failures: int) -> float:
    """Real seconds from a failure to the next try: doubled by each failure in a row."""
    if failures <= 0:
        return 0.0
    return float(min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 30), LONGEST_RETRY_S))


def _how(ending: str) -> str:
    return {"failed": "a failure"}.get(ending, ending)


def _waits_for(matured: int, wanted: int | None, at_ms: int | None) -> str:
    parts = []
    if wanted is not None:
        parts.append(f"{matured} of {wanted} impressions have matured")
    if at_ms is not None:
        parts.append("the interval has not passed")
    return " and ".join(parts) or "it is not scheduled"
