"""Runs updates in forked processes, for tests that kill them: one JSON command a line on stdin.

The update is the real one, from its interval to its release, on the in-process model server; only
the challenger is not trained: it names the impressions that it was given. A process may be told to
kill itself before its n-th change to the file system, which no clock can miss.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from models.recipe import NotEnoughData, TrainingLog
from models.release.in_process import InProcessClient
from models.release.promotion import Promoter
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.training.update import update_model
from streams.progress import ProgressCallback

CHANGES = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.utime",
    "os.truncate",
    "fcntl.flock",
}
USED = "used.json"


def feedback_of(rows: int) -> pl.DataFrame:
    """The first `rows` impressions: one matures every 10 ms."""
    return pl.DataFrame(
        {
            "impression_id": [f"i{n}" for n in range(rows)],
            "matured_at_ms": [10 * (n + 1) for n in range(rows)],
            "served_at_ms": [10 * n for n in range(rows)],
            "release": ["r0001"] * rows,
        },
        schema_overrides={"matured_at_ms": pl.Int64, "served_at_ms": pl.Int64},
    )


@dataclass(frozen=True)
class StatedResult:
    promoted: bool
    reasons: tuple[str, ...] = ("as the test says",)

    def as_dict(self) -> Mapping[str, Any]:
        return {"promoted": self.promoted, "reasons": self.reasons, "share": float("nan")}


@dataclass(frozen=True)
class StatedChallenge:
    """Copies the incumbent, lists its impressions, and passes or not as it is told.

    hold: a file that it creates, and then waits for the file "go" beside it.
    """

    promoted: bool
    fails: bool = False
    hold: str = ""

    def challenge(
        self,
        incumbent: Path,
        log: TrainingLog,
        bundle: Path,
        *,
        seed: int,
        progress: ProgressCallback,
    ) -> StatedResult:
        del seed
        ids = log.feedback["impression_id"].to_list()
        if not ids:
            raise NotEnoughData("0 impressions, 1 needed")
        shutil.copyfile(incumbent / "weights", bundle / "weights")
        (bundle / USED).write_text(json.dumps(ids))
        if self.fails:
            raise OSError("no space left")
        if self.hold:
            Path(self.hold).touch()
            while not Path(self.hold).with_name("go").exists():
                time.sleep(0.005)
        progress(1.0, "gated")
        return StatedResult(self.promoted)


def update(home: Path, command: Mapping[str, Any]) -> dict[str, Any]:
    """One update; what became of it."""
    store = ReleaseStore(home / "releases")
    repository = ModelRepository(home / "repository")
    announced: list[str] = []
    promoter = Promoter(
        store,
        repository,
        InProcessClient(repository.folder),
        lambda release: announced.append(release.release_id),
    )
    nothing = pl.DataFrame()
    log = TrainingLog(nothing, nothing, feedback_of(command["rows"]), 10 * command["rows"] + 5)
    challenge = StatedChallenge(
        command["promoted"], command.get("fails", False), command.get("hold", "")
    )
    try:
        outcome = update_model(
            "ranker", log, store, promoter, now_ms=log.until_ms, challenge=challenge
        )
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {
        "promoted": outcome.promoted,
        "resumed": outcome.resumed,
        "release": outcome.release.release_id,
        "announced": announced,
    }


def count_changes(kill_at: int, kill_at_write: int) -> list[int]:
    """Counts changes to the file system from here on, and kills before number `kill_at`, or before
    write `kill_at_write` of the state: 1 begins, 2 decides."""
    seen, writes = [0], [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not opened and event not in CHANGES:
            return
        seen[0] += 1
        writes[0] += event == "os.rename" and Path(os.fsdecode(arguments[1])).name == "ranker.json"
        if seen[0] == kill_at or (kill_at_write and writes[0] == kill_at_write):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def child(home: Path, command: Mapping[str, Any]) -> None:
    result = home / f"result-{os.getpid()}.json"
    seen = count_changes(command.get("kill_at", 0), command.get("kill_at_write", 0))
    found = update(home, command) | {"changes": seen[0]}
    seen[0] = -(10**9)
    result.write_text(json.dumps(found))


def start(home: Path, command: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            child(home, command)
        finally:
            os._exit(0)
    return pid


def wait(home: Path, pid: int) -> dict[str, Any]:
    """What the child reported; {} if it was killed before."""
    os.waitpid(pid, 0)
    result = home / f"result-{pid}.json"
    if not result.exists():
        return {}
    found = json.loads(result.read_text())
    result.unlink()
    return dict(found)


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        home = Path(command["home"])
        if "wait" in command:
            print(json.dumps(wait(home, command["wait"])), flush=True)
            continue
        pid = start(home, command)
        if "kill_after_s" in command:
            time.sleep(command["kill_after_s"])
            os.kill(pid, signal.SIGKILL)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
