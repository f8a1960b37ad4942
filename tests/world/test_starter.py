"""Starter bundles: trained once, and again when data or code changes; the real recipe trains them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import starter
from deploy.demo.learning import LearningStatus
from deploy.simulation.history import DEFAULT_END_MS, History, history
from deploy.simulation.movielens import MovieLens

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))


def test_the_histories_time_does_not_matter_and_everything_else_does(
    past: History, data: MovieLens
) -> None:
    kept = starter.starter_path("queries", past)
    later = history(0, end_ms=DEFAULT_END_MS + 3 * DAY_MS + 17, data=data)
    assert starter.starter_path("queries", later) == kept
    assert starter.starter_path("queries", history(1, data=data)) != kept
    fewer = dataclasses.replace(past, frame=past.frame.head(-1))
    assert starter.starter_path("queries", fewer) != kept


def test_changed_code_is_another_starter(past: History, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = starter.starter_path("queries", past)
    monkeypatch.setattr(starter, "STARTERS", {"queries": ("models/generation",)})
    assert starter.starter_path("queries", past) != kept


def test_it_is_trained_once(past: History, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []

    def train(_: str, arguments: list[str], report: Any, *__: Any) -> int:
        report(LearningStatus("queries", 0.5, "halfway"))
        runs.append(arguments)
        assert {path.name for path in Path(arguments[1]).iterdir()} == {
            starter.EVENTS,
            starter.ITEMS,
        }
        (Path(arguments[2]) / "weights").write_text("trained")
        return 0

    monkeypatch.setattr(starter, "run_reporting", train)
    seen: list[LearningStatus] = []
    folders = [starter.train_once("queries", past, seen.append) for _ in range(2)]
    assert len(runs) == 1
    assert len(seen) == 1
    assert (folders[0] / "weights").read_text() == "trained"
    assert folders[0] == folders[1]


def test_a_failed_training_leaves_nothing_and_names_its_log(past: History) -> None:
    nothing = dataclasses.replace(past, frame=past.frame.head(50))  # too few query clicks
    with pytest.raises(starter.StarterFailed) as raised:
        starter.train_once("queries", nothing, lambda _: None)
    assert not starter.starter_path("queries", nothing).exists()
    log = starter.starter_path("queries", nothing).with_suffix(".log")
    assert str(log) in str(raised.value)
    assert "NotEnoughData" in log.read_text()
