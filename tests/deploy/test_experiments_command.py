"""`tidemill experiments` from start to stop, on a home of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli.main import build
from models.experiments.store import ExperimentStore

ARMS = ("--arm", "ranker=live@0.5", "--arm", "popularity=popularity@0.5")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def _run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(build(), ["experiments", *words])
    return done.exit_code, done.output


def test_an_experiment_is_started_shown_and_stopped(home: Path) -> None:
    code, _ = _run("start", "taste", *ARMS, "--guard", "play", "--worse-by", "0.1")
    assert code == 0
    store = ExperimentStore(home / "experiments.json")
    (found,) = store.running()
    assert [(arm.name, arm.policy, arm.share) for arm in found.arms] == [
        ("ranker", "live", 0.5),
        ("popularity", "popularity", 0.5),
    ]
    assert found.guard is not None
    assert found.guard.worse_by == 0.1
    assert _run("status", "taste")[0] == 0
    assert _run("stop", "taste", "--reason", "enough")[0] == 0
    assert store.running() == ()
    assert store.all()[0].reason == "enough"
    assert _run("status")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("start", "x", "--arm", "ranker"),
        ("start", "x", "--arm", "ranker=live@2"),
        ("start", "x", "--arm", "r=release:r0404@0.1"),
        ("start", "x", *ARMS, "--surface", "queries"),
        ("stop", "unknown"),
        ("status", "unknown"),
    ],
)
def test_what_cannot_run_ends_with_one_and_starts_nothing(
    home: Path, words: tuple[str, ...]
) -> None:
    code, _ = _run(*words)
    assert code == 1
    assert ExperimentStore(home / "experiments.json").all() == ()
