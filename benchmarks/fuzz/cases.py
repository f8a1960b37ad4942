"""Drawn cases: how many, by which seed, and what the first fault was.

Knows hypothesis. Does not know what a case is. A fault is printed with the smallest case that
shows it, and `TIDEMILL_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


@dataclass
class Tally:
    """What was tried at one entry point. `faults`: one message for each law that was broken."""

    entry: str
    cases: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def try_cases(
        self,
        what: str,
        strategy: SearchStrategy[T],
        law: Callable[[T], int | None],
        cases: int,
        seed: int,
    ) -> None:
        """Draws `cases` cases and applies the law to each; stops at one that breaks it.

        A law may return how many cases a drawn one holds.
        """

        @seeded(seed)
        @settings(
            max_examples=max(cases, 1),
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(case: T) -> None:
            tried = law(case)
            self.cases += 1 if tried is None else tried

        began = time.monotonic()
        try:
            run()
        except Unsatisfiable:
            pass  # there is no such case, as of an invalid id in a path that any text fits
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", []))
            self.faults.append(f"{what}: {type(error).__name__}: {error} {notes}"[:2_000])
        self.seconds += time.monotonic() - began


def drawn_seed() -> int:
    """TIDEMILL_SEED, else a new one."""
    return int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
