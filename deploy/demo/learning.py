"""The demo's training, in a process of its own: `python -m deploy.demo.learning HOME train MODEL…`,
`update MODEL` or `adopt MODEL FOLDER`, which makes a starter bundle live (`deploy.demo.starter`).

Knows how to call the models' training, promotion and update on a running stack, and
prints its status on standard output, one JSON object a line. In a process of its own, so
that the demo does not import torch and Ctrl-C ends the work at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import state, wiring
from deploy.settings import Settings

if TYPE_CHECKING:
    from models.release.bundle import Bundle
    from models.release.promotion import Promoter
    from models.release.store import ReleaseStore

ALIGNED = "ranker"  # the model whose preference update the demo runs
_NICE = 5  # below the serving processes
_NICER = 15  # below the training that the demo waits for


@dataclass(frozen=True)
class LearningStatus:
    """Progress of one model. `share` is in [0, 1]; `outcome` is empty until the model is done:
    skipped, promoted, refused or waiting (for feedback)."""

    model: str
    share: float = 0.0
    step: str = ""
    outcome: str = ""
    reasons: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    release: str = ""


def run_learning(
    home: Path,
    arguments: Sequence[str],
    report: Callable[[LearningStatus], None],
    log: Path,
    timeout_s: float,
) -> int:
    """Runs this module as a process; see `run_reporting`."""
    return run_reporting("deploy.demo.learning", [str(home), *arguments], report, log, timeout_s)


def run_reporting(
    module: str,
    arguments: Sequence[str],
    report: Callable[[LearningStatus], None],
    log: Path,
    timeout_s: float,
) -> int:
    """Runs `module` as a process and reports the statuses that it prints; errors go to `log`.

    Returns the exit code; it is negative if the process was ended after `timeout_s`.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), child.kill)
        timer.start()
        try:
            assert child.stdout is not None
            for raw in child.stdout:
                with contextlib.suppress(json.JSONDecodeError, TypeError):
                    report(LearningStatus(**json.loads(raw)))
            return child.wait()
        finally:
            timer.cancel()
            child.kill()
            child.wait()


def main(arguments: list[str]) -> int:
    home, command, *names = Path(arguments[0]), *arguments[1:]
    os.nice(_NICE if command != "train" or ALIGNED in names else _NICER)
    settings = state.read_settings(home)
    wiring.declare(settings)
    if command == "train":
        train_and_promote(settings, names)
    elif command == "adopt":
        adopt(settings, names[0], Path(names[1]))
    else:
        update(settings, *names)
    return 0


def train_and_promote(settings: Settings, names: Sequence[str]) -> None:
    """Trains each model on the whole log and makes it live at once."""
    from models.recipe import NotEnoughData
    from models.release.store import ReleaseStore
    from models.training.build import train_model

    clock = wiring.clock(settings.clock)
    store = ReleaseStore(settings.releases_dir)
    log = wiring.training_log(settings)
    with wiring.promoter(settings, running=True) as promoter:
        for name in names:
            try:
                bundle = train_model(
                    name, log, store, now_ms=clock.now_ms(), progress=print_progress(name)
                )
            except NotEnoughData as error:
                print_status(LearningStatus(name, 1.0, str(error), outcome="skipped"))
                continue
            _go_live(settings, store, promoter, bundle)


def adopt(settings: Settings, name: str, folder: Path) -> None:
    """Seals a copy of a starter bundle as the model's next version and makes it live."""
    from models.registry import REGISTRY
    from models.release.store import ReleaseStore

    store, entry = ReleaseStore(settings.releases_dir), REGISTRY[name]
    print_progress(name)(0.5, "loading the starter bundle")
    staging = store.staging(name)
    shutil.copytree(folder, staging, dirs_exist_ok=True)
    bundle = store.seal(
        name,
        staging,
        runtime=entry.runtime,
        signature=entry.load_signature(),
        created_ms=wiring.clock(settings.clock).now_ms(),
        metrics={"starter": folder.name},
    )
    with wiring.promoter(settings, running=True) as promoter:
        _go_live(settings, store, promoter, bundle)


def _go_live(settings: Settings, store: ReleaseStore, promoter: Promoter, bundle: Bundle) -> None:
    from models.release.promotion import successor

    with store.making_release():
        now_ms = wiring.clock(settings.clock).now_ms()
        chosen = successor(store, {bundle.model: bundle.version})
        release = store.propose(chosen, created_ms=now_ms)
        promoter.promote(release, now_ms=now_ms)
    print_status(_live(bundle.model, release.release_id, release.models))


def _live(model: str, release: str, versions: Mapping[str, int]) -> LearningStatus:
    return LearningStatus(
        model, 1.0, "live", outcome="promoted", versions=dict(versions), release=release
    )


def update(settings: Settings, name: str) -> None:
    """One preference update; the last status holds the gate's decision."""
    from models.recipe import NotEnoughData
    from models.release.store import ReleaseStore
    from models.training.update import update_model

    clock = wiring.clock(settings.clock)
    store = ReleaseStore(settings.releases_dir)
    log = wiring.training_log(settings)
    report = print_progress(name)
    with wiring.promoter(settings, running=True) as promoter:
        try:
            outcome = update_model(
                name, log, store, promoter, now_ms=clock.now_ms(), progress=report
            )
        except NotEnoughData as error:
            print_status(
                LearningStatus(name, 1.0, str(error), outcome="waiting", reasons=[str(error)])
            )
            return
    live = store.current()
    print_status(
        LearningStatus(
            name,
            1.0,
            outcome.reasons[0],
            outcome="promoted" if outcome.promoted else "refused",
            reasons=list(outcome.reasons),
            versions=dict(live.models) if live else {},
            release=live.release_id if live else "",
        )
    )


def print_progress(model: str) -> Callable[[float, str], None]:
    """A progress callback that prints statuses of `model`."""
    return lambda share, step: print_status(LearningStatus(model, share, step))


def print_status(status: LearningStatus) -> None:
    """One line of JSON, which `run_reporting` reads."""
    print(json.dumps(asdict(status)), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
