"""The demo's training, in a process of its own: `python -m deploy.demo.learning HOME train|update MODEL…`.

Knows how to call the models' training, promotion and update on a running stack, and
says on standard output, one JSON object a line, how far it is. It is apart so that the
demo itself needs no torch and that Ctrl-C ends the work at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import state, wiring
from deploy.settings import Settings

if TYPE_CHECKING:
    from models.release.bundle import ReleaseStore
    from models.release.promotion import Promoter

REST = ("reactivation", "queries")  # quick ones first
ALIGNED = "ranker"  # the model whose preference update the demo runs
_NICE = 5  # answers come before training
_NICER = 15  # and what the demo waits for before what may come whenever it is ready


@dataclass(frozen=True)
class Line:
    """One line of progress. `share` is in [0, 1]; `ended` is the last word of one model:
    done, skipped, promoted, refused or waiting."""

    model: str
    share: float = 0.0
    what: str = ""
    ended: str = ""
    reasons: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    release: str = ""


def learn(
    home: Path, what: Sequence[str], tell: Callable[[Line], None], log: Path, within_s: float
) -> int:
    """Runs the child, hands on its lines, returns its exit status; its errors go to `log`.

    It is ended after `within_s`; the status is then negative.
    """
    command = [sys.executable, "-m", "deploy.demo.learning", str(home), *what]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        alarm = threading.Timer(min(within_s, threading.TIMEOUT_MAX), child.kill)
        alarm.start()
        try:
            assert child.stdout is not None
            for raw in child.stdout:
                with contextlib.suppress(json.JSONDecodeError, TypeError):
                    tell(Line(**json.loads(raw)))
            return child.wait()
        finally:
            alarm.cancel()
            child.kill()
            child.wait()


def main(arguments: list[str]) -> int:
    home, what, *names = Path(arguments[0]), *arguments[1:]
    os.nice(_NICE if what == "update" or ALIGNED in names else _NICER)
    settings = state.read_settings(home)
    if what == "train":
        train_all(settings, names)
    else:
        update_one(settings, *names)
    return 0


def train_all(settings: Settings, names: Sequence[str]) -> None:
    """Trains each model on what the log holds and makes it live at once."""
    from models.recipe import NotEnoughData
    from models.release.bundle import ReleaseStore
    from models.release.promotion import successor
    from models.training.build import train
    from models.training.datasets import load_training_log

    clock = wiring.clock(settings.clock)
    store = ReleaseStore(settings.releases_dir)
    log = load_training_log(settings.log_dir, settings.feedback_dir, clock.now_ms())
    with _promoter(settings, store) as promoter:
        for name in names:
            try:
                bundle = train(name, log, store, now_ms=clock.now_ms(), progress=_reporting(name))
            except NotEnoughData as error:
                _say(Line(name, 1.0, str(error), ended="skipped"))
                continue
            with wiring.making_a_release(settings):
                chosen, now_ms = successor(store, {name: bundle.version}), clock.now_ms()
                release = store.propose(chosen, created_ms=now_ms)
                promoter.promote(release, now_ms=now_ms)
            _say(_live(name, release.release_id, release.models))


def _live(model: str, release: str, versions: Mapping[str, int]) -> Line:
    return Line(model, 1.0, "live", ended="promoted", versions=dict(versions), release=release)


def update_one(settings: Settings, name: str) -> None:
    """One preference update; what the gate says is the last line."""
    from models.recipe import NotEnoughData
    from models.release.bundle import ReleaseStore
    from models.training.datasets import load_training_log
    from models.training.update import update

    clock = wiring.clock(settings.clock)
    store = ReleaseStore(settings.releases_dir)
    log = load_training_log(settings.log_dir, settings.feedback_dir, clock.now_ms())
    report = _reporting(name)
    with wiring.making_a_release(settings), _promoter(settings, store) as promoter:
        try:
            outcome = update(name, log, store, promoter, now_ms=clock.now_ms(), progress=report)
        except NotEnoughData as error:
            _say(Line(name, 1.0, str(error), ended="waiting", reasons=[str(error)]))
            return
    live = store.current()
    _say(
        Line(
            name,
            1.0,
            outcome.reasons[0],
            ended="promoted" if outcome.promoted else "refused",
            reasons=list(outcome.reasons),
            versions=dict(live.models) if live else {},
            release=live.release_id if live else "",
        )
    )


@contextlib.contextmanager
def _promoter(settings: Settings, store: ReleaseStore) -> Iterator[Promoter]:
    from models.release.promotion import Promoter, announcement
    from models.release.triton_repository import ModelRepository

    producer = wiring.bus(settings).producer()
    try:
        yield Promoter(
            store,
            ModelRepository(settings.repository_dir),
            wiring.model_client(settings),
            lambda release: producer.send([announcement(release)]),
        )
    finally:
        producer.close()


def _reporting(model: str) -> Callable[[float, str], None]:
    return lambda share, what: _say(Line(model, share, what))


def _say(line: Line) -> None:
    print(json.dumps(asdict(line)), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
