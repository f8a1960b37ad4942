"""Drawn bad files in the log stop no reader or writer and hide no good file.

The long form: python -m benchmarks fuzz.
"""

from __future__ import annotations

from benchmarks.fuzz.cases import drawn_seed
from benchmarks.fuzz.files import fuzz_files

CASES = 20


def test_drawn_files_break_nothing() -> None:
    seed = drawn_seed()
    print(f"TIDEMILL_SEED={seed}")
    tally = fuzz_files(CASES, seed)
    assert tally.faults == []
    assert tally.cases >= CASES // 2
