"""Laws of an update's one step: killed at any moment, it loses no feedback, uses none twice and
leaves no torn release; two processes never update at once.

`TIDEMILL_UPDATE_KILLS=2000` is the long form; TIDEMILL_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.ranking.ple.inputs import SIGNATURE
from models.release.in_process import InProcessClient
from models.release.promotion import Promoter
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.training.update import watermark_ms
from models.training.update_finish import MOST_TRIES
from models.training.update_state import lease_holder, read_state, staging_folder, write_attempt

KILLS = int(os.environ.get("TIDEMILL_UPDATE_KILLS", "30"))
PROGRAM = Path(__file__).with_name("update_process.py")
USED = "used.json"  # in a challenger of the program: the impressions that it was given
RUNTIME = "models.echo:EchoRuntime"  # loads in no time; its answers are not asked for here


@dataclass
class Updates:
    """A home with a live ranker, and the program that updates it in processes of its own."""

    home: Path
    process: subprocess.Popen[str]

    @property
    def store(self) -> ReleaseStore:
        return ReleaseStore(self.home / "releases")

    def start(self, rows: int, *, promoted: bool = True, **more: Any) -> int:
        return int(self._ask({"rows": rows, "promoted": promoted, **more}))

    def wait(self, pid: int) -> dict[str, Any]:
        return dict(self._ask({"wait": pid}))

    def run(self, rows: int, *, promoted: bool = True, **more: Any) -> dict[str, Any]:
        """Starts an update and returns its report; {} if it was killed."""
        return self.wait(self.start(rows, promoted=promoted, **more))

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command | {"home": str(self.home)}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def promoter(self) -> Promoter:
        repository = ModelRepository(self.home / "repository")
        client = InProcessClient(repository.folder)
        return Promoter(self.store, repository, client, lambda _: None)

    def seal(self) -> int:
        """Another version of the ranker, as a training makes it."""
        staging = self.store.staging("ranker")
        (staging / "weights").write_text("trained")
        sealed = self.store.seal(
            "ranker", staging, runtime=RUNTIME, signature=SIGNATURE, created_ms=1
        )
        return sealed.version

    def go_live(self, version: int) -> None:
        release = self.store.propose({"ranker": version}, created_ms=1)
        self.promoter().promote(release, now_ms=1)

    def used(self) -> list[str]:
        """Impressions that challengers used which went live, with repetitions."""
        ids: list[str] = []
        for release in self.store.manifests():
            if release.gate is not None and self.store.was_live(release.release_id):
                ids += json.loads(self._file(release.models["ranker"], USED))
        return ids

    def _file(self, version: int, name: str) -> str:
        return (self.store.bundle("ranker", version).path / name).read_text()

    def assert_nothing_is_torn(self) -> None:
        """Every bundle has its seal, every release its bundles, and the live one is served."""
        store = self.store
        for version in store.versions("ranker"):
            store.bundle("ranker", version)
        for release in store.manifests():
            assert set(release.models.values()) <= set(store.versions("ranker"))
        repository = ModelRepository(self.home / "repository")
        for version in repository.versions("ranker"):
            served = repository.bundle_folder("ranker", version)
            sealed = store.bundle("ranker", version).path
            assert _files(served) == _files(sealed)
        live = store.current()
        assert live is not None
        assert live.models["ranker"] in repository.versions("ranker")
        assert live.gate is None or live.gate["promoted"]

    def assert_feedback_is_used_once(self, where: str) -> None:
        """The watermark says exactly what was used: nothing below it is lost, nothing twice."""
        used = self.used()
        upto = watermark_ms(self.store, "ranker")
        below = impressions(upto // 10)
        assert sorted(used) == sorted(below), where


def impressions(rows: int) -> list[str]:
    """The first impressions of the program; number n matures at 10 * (n + 1) ms."""
    return [f"i{n}" for n in range(rows)]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def program() -> Iterator[subprocess.Popen[str]]:
    """One program for all tests: each update is a process that it forks."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def updates(program: subprocess.Popen[str], tmp_path: Path) -> Updates:
    made = Updates(tmp_path, program)
    made.go_live(made.seal())
    return made


def test_a_kill_at_any_moment_loses_doubles_and_tears_nothing(updates: Updates) -> None:
    seed = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    rng, rows = random.Random(seed), 3
    first = updates.run(rows)
    assert first["promoted"]
    endings = {"killed": 0, "undone": 0, "resumed": 0}
    for number in range(KILLS):
        where = f"seed {seed}, kill {number}"
        rows += rng.randrange(1, 6)
        moment = {"kill_after_s": rng.random() * 0.05}
        if number % 4 < 3:  # at a random one of the changes, each tenth of them in turn
            tenth = (number % 10 + rng.random()) / 10
            moment = {"kill_at": 1 + int(tenth * first["changes"])}
        report = updates.run(rows, promoted=rng.random() < 0.6, **moment)
        endings["killed"] += report == {}
        left = read_state(updates.store, "ranker").unfinished
        endings["undone"] += left is not None and left.phase == "training"
        updates.assert_nothing_is_torn()
        report = updates.run(rows, promoted=rng.random() < 0.6)
        endings["resumed"] += bool(report.get("resumed"))
        assert report.get("error") in (None, "NotEnoughData"), (where, report)
        updates.assert_nothing_is_torn()
        updates.assert_feedback_is_used_once(where)
        assert read_state(updates.store, "ranker").unfinished is None, where
        assert not staging_folder(updates.store, "ranker").exists(), where
    while updates.run(rows).get("resumed"):
        pass
    assert sorted(updates.used()) == sorted(impressions(rows))
    assert min(endings.values()) > 0, f"seed {seed}: {endings}, so this run proves little"


def test_every_moment_of_a_promoted_update_can_be_finished_or_undone(updates: Updates) -> None:
    """Kills before changes to the file system in turn: before each in the long form."""
    rows, changes = 2, updates.run(2)["changes"]
    assert changes > 20
    for moment in range(1, changes + 1, 1 if KILLS > 30 else 4):
        rows += 2
        updates.run(rows, kill_at=moment)
        updates.assert_nothing_is_torn()
        report = updates.run(rows)
        # Killed after the last write, the update was complete.
        assert report.get("promoted") or report["error"] == "NotEnoughData"
        updates.assert_feedback_is_used_once(f"kill before change {moment}")
        assert sorted(updates.used()) == sorted(impressions(rows))


def test_feedback_of_a_refused_challenger_is_kept_for_the_next(updates: Updates) -> None:
    assert not updates.run(4, promoted=False)["promoted"]
    assert updates.used() == []
    assert watermark_ms(updates.store, "ranker") == 0
    assert read_state(updates.store, "ranker").seen_until_ms == 40
    assert updates.run(6)["promoted"]
    assert updates.used() == impressions(6)
    assert updates.run(6)["error"] == "NotEnoughData"


def test_of_two_processes_one_updates(updates: Updates) -> None:
    hold = updates.home / "held"
    one = updates.start(3, hold=str(hold))
    _await(hold)
    assert lease_holder(updates.store) == f"of ranker, process {one}"
    other = updates.run(3)
    assert other["error"] == "UpdateBusy"
    assert f"process {one}" in other["text"]
    (updates.home / "go").touch()
    assert updates.wait(one)["promoted"]
    assert len(updates.store.manifests()) == 2
    assert lease_holder(updates.store) == ""


def test_the_lease_of_a_killed_process_is_free_at_once(updates: Updates) -> None:
    hold = updates.home / "held"
    one = updates.start(3, hold=str(hold))
    _await(hold)
    os.kill(one, signal.SIGKILL)
    assert updates.wait(one) == {}
    assert lease_holder(updates.store) == ""
    assert updates.run(3)["promoted"]
    updates.assert_feedback_is_used_once("after the kill")


def test_failures_in_a_row_are_counted_and_a_verdict_ends_them(updates: Updates) -> None:
    for number in (1, 2):
        assert updates.run(3, fails=True)["error"] == "OSError"
        assert read_state(updates.store, "ranker").failures == number
    last = read_state(updates.store, "ranker").last
    assert last is not None
    assert last.reasons == ("OSError: no space left",)
    assert not updates.run(3, promoted=False)["promoted"]
    assert read_state(updates.store, "ranker").failures == 0


def test_a_challenger_of_another_incumbent_does_not_go_live(updates: Updates) -> None:
    hold = updates.home / "held"
    one = updates.start(3, hold=str(hold))
    _await(hold)
    updates.go_live(updates.seal())
    (updates.home / "go").touch()
    report = updates.wait(one)
    assert report["error"] == "ReleaseError"
    assert "went live meanwhile" in report["text"]
    assert updates.store.current().models == {"ranker": 2}  # type: ignore[union-attr]
    assert read_state(updates.store, "ranker").last.ending == "superseded"  # type: ignore[union-attr]
    assert updates.run(3)["promoted"]
    updates.assert_feedback_is_used_once("after the other release")


def test_a_version_that_a_training_took_meanwhile_is_not_overwritten(updates: Updates) -> None:
    updates.run(3, kill_at_write=3)
    state = read_state(updates.store, "ranker")
    assert state.last is not None
    assert state.last.phase == "decided"
    taken = updates.seal()
    assert taken == state.last.version
    assert updates.run(3)["resumed"]
    assert updates.store.current().models == {"ranker": taken + 1}  # type: ignore[union-attr]
    updates.assert_feedback_is_used_once("after the training")


def test_a_release_that_was_rolled_back_before_recovery_stays_down(updates: Updates) -> None:
    updates.run(3)
    store, state = updates.store, read_state(updates.store, "ranker")
    write_attempt(store, "ranker", state, phase="decided", ending="")  # as killed before the end
    updates.promoter().rollback(now_ms=9, reason="a test")
    assert updates.run(3)["resumed"]
    assert updates.store.current().models == {"ranker": 1}  # type: ignore[union-attr]
    updates.assert_feedback_is_used_once("after the rollback")


def test_a_challenger_that_never_loads_is_given_up(updates: Updates) -> None:
    updates.run(3, kill_at_write=3)
    state = read_state(updates.store, "ranker")
    write_attempt(updates.store, "ranker", state, tries=MOST_TRIES)
    report = updates.run(3)  # gives up, then tries again with the same feedback
    assert report["promoted"]
    assert not report["resumed"]
    updates.assert_feedback_is_used_once("after giving up")


def test_the_watermark_of_an_older_home_counts(updates: Updates) -> None:
    (updates.home / "releases" / "watermarks.json").write_text('{"ranker": 20}')
    assert updates.run(5)["promoted"]
    assert updates.used() == ["i2", "i3", "i4"]


def _await(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)
