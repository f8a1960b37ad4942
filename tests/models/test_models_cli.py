"""Laws of `tidemill models`: an empty home gives the next command; every command works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli.models import app
from models.ranking.ple.inputs import SIGNATURE
from models.release.bundle import Bundle
from models.release.store import ReleaseStore
from models.training.build import newest_versions

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:  # noqa: ARG001 - the command reads the home that it sets
    def invoke(*argv: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, list(argv), env={"COLUMNS": "200"})
        return found.exit_code, " ".join(found.output.split())

    return invoke


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "export", "promote", "update", "rollback", "status"]
)
def test_every_command_shows_an_example(run: Run, command: str) -> None:
    code, said = run(command, "--help")
    assert code == 0
    assert re.search(f"Examples?: tidemill models {command}", said)


def test_an_empty_log_says_what_is_missing(run: Run) -> None:
    code, said = run("train", "ranker")
    assert code == 1
    assert "actions: 0 of 200" in said


def test_nothing_trained_names_the_command(run: Run) -> None:
    code, said = run("promote")
    assert code == 1
    assert "tidemill models train" in said


def test_an_unknown_model_is_refused_by_name(run: Run) -> None:
    code, said = run("train", "oracle")
    assert code == 2
    assert "oracle is not one of ranker" in said


def test_promote_status_rollback_and_export(
    run: Run, home: Path, trained: Path, reseal: Callable[[ReleaseStore, Path], Bundle]
) -> None:
    store = ReleaseStore(home / "releases")
    reseal(store, trained)
    reseal(store, trained)
    assert run("promote", "ranker=1")[0] == 0
    assert "r0002 is live: ranker 2" in run("promote")[1]
    assert "r0001 is live" in run("rollback", "--reason", "a test")[1]
    assert "r0002" in run("status")[1]
    assert json.loads((home / "releases/quarantine.json").read_text())[0]["reason"] == "a test"
    assert run("export", "ranker", "--to", "out")[0] == 0
    assert Path("out/ranker/2/bundle/ranker.onnx").is_file()
    assert "max_batch_size: 0" in Path("out/ranker/config.pbtxt").read_text()


def test_promote_without_arguments_leaves_out_a_refused_challenger(home: Path) -> None:
    store = ReleaseStore(home / "releases")
    for metrics in ({}, {"promoted": True}, {"promoted": False}):
        staging = store.staging("ranker")
        store.seal(
            "ranker",
            staging,
            runtime="models.echo:EchoRuntime",
            signature=SIGNATURE,
            created_ms=1,
            metrics=metrics,
        )
    assert newest_versions(store, ["ranker", "queries"]) == {"ranker": 2}


def test_off_policy_says_what_it_needs(run: Run) -> None:
    code, said = run("evaluate", "--off-policy")
    assert code == 1
    assert "no ranker is live" in said
    assert "name ranker" in run("evaluate", "queries", "--off-policy")[1]


def test_a_dry_run_says_what_an_update_would_do_and_changes_nothing(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run("update", "ranker", "--dry-run")
    assert code == 1
    assert "no release with ranker is live" in said
    store = ReleaseStore(home / "releases")
    sealed = store.seal(
        "ranker",
        store.staging("ranker"),
        runtime="models.echo:EchoRuntime",
        signature=SIGNATURE,
        created_ms=1,
    )
    store.set_current(store.propose({"ranker": sealed.version}, created_ms=1).release_id, at_ms=1)
    before = _contents(home)
    code, said = run("update", "ranker", "--dry-run")
    assert code == 0
    assert "not scheduled ([updates.ranker] in settings.toml does that)" in said
    assert "incumbent: ranker version 1 of release r0001" in said
    assert "0 impressions" in said
    assert "0 slates with matured feedback since the last update, 100 needed" in said
    monkeypatch.setenv("TIDEMILL_UPDATES__RANKER__EVERY", "6h")
    assert "not due: no feedback has matured" in run("update", "ranker", "--dry-run")[1]
    assert "scheduled every 6h" in run("update", "ranker", "--dry-run")[1]
    assert run("update", "queries", "--dry-run")[0] == 1
    assert _contents(home) == before


def _contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
