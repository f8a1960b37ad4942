"""Drawn settings are read or refused with a reason that holds no secret.

The long form: python -m benchmarks fuzz.
"""

from __future__ import annotations

import pytest

from benchmarks.fuzz.cases import drawn_seed
from benchmarks.fuzz.settings import SECRET, fuzz_settings

CASES = 150


def test_drawn_settings_break_nothing() -> None:
    seed = drawn_seed()
    print(f"TIDEMILL_SEED={seed}")
    tally = fuzz_settings(CASES, seed)
    assert tally.faults == []
    assert tally.cases >= CASES // 2


def test_the_law_sees_a_secret_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.settings.names._shown", lambda name: f"{name} {SECRET}")
    (fault,) = fuzz_settings(400, 1).faults
    assert "holds a secret" in fault
