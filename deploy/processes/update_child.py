"""One update as a process of its own: `python -m deploy.processes.update_child MODEL [--home HOME]`.

Knows exit codes and its own low priority. Does not know when it is due (`deploy.processes.updater`)
nor the steps of an update (`models.training.update`).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from deploy import state, wiring
from deploy.processes.lifecycle import Process
from deploy.settings import Settings, load
from models.recipe import NotEnoughData
from models.release.store import ReleaseStore
from models.training.update_report import progress_writer
from models.training.update_state import UpdateBusy
from streams.json_logs import configure_logs

LABEL = "update"  # in logs
DONE, FAILED, WAITING, BUSY = 0, 1, 3, 4
LOWEST_PRIORITY = 19  # of the processor; requests are answered beside the training
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")

_log = logging.getLogger("tidemill.update")


def main(arguments: Sequence[str] | None = None) -> int:
    configure_logs(LABEL)  # the settings may say otherwise
    parser = argparse.ArgumentParser(
        prog="python -m deploy.processes.update_child",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model")
    parser.add_argument("--home", type=Path, help="read stack.json there, not the environment")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    _lower_priority()
    settings = state.read_settings(given.home) if given.home else load()
    Process(LABEL, settings).log()
    wiring.declare(settings)
    return run(settings, given.model)


def run(settings: Settings, model: str) -> int:
    """Updates `model` on the running stack; the exit code. Every error is logged."""
    from models.training.update import update_model

    store = ReleaseStore(settings.releases_dir)
    now_ms = wiring.clock(settings.clock).now_ms()
    report = progress_writer(store, model)
    try:
        report(0.0, "reading the log and its feedback")
        log = wiring.training_log(settings)
        with wiring.promoter(settings, running=True) as promoter:
            outcome = update_model(model, log, store, promoter, now_ms=now_ms, progress=report)
    except NotEnoughData as error:
        _log.info("%s waits for feedback: %s", model, error)
        return WAITING
    except UpdateBusy as error:
        _log.info("%s: %s", model, error)
        return BUSY
    except Exception:
        _log.exception("the update of %s failed", model)
        return FAILED
    _log.info(
        "%s %d -> %d: %s: %s",
        model,
        outcome.incumbent,
        outcome.challenger,
        "promoted" if outcome.promoted else "refused",
        "; ".join(outcome.reasons),
    )
    return DONE


def _stop(number: int, frame: object) -> None:
    """An update that is stopped in time undoes itself and does not count as a failure."""
    del number, frame
    sys.exit(FAILED)


def _lower_priority() -> None:
    os.nice(LOWEST_PRIORITY)
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


if __name__ == "__main__":
    raise SystemExit(main())
