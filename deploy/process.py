"""Starts one of the stack's own processes: `python -m deploy.process NAME`.

Knows arguments, settings and signals. Does not know what the process does
(`deploy.processes`) nor who starts it: the stack on one machine gives `--home` (the settings
are then those of its `stack.json`), a container gives everything by environment.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from deploy import logins, renamed, state, wiring
from deploy.processes import PROCESSES, forks
from deploy.processes.lifecycle import Process
from deploy.processes.tuning import keep_pandas_out_of_pyarrow
from deploy.settings import INSTANCE, Settings, SettingsError, load
from streams.json_logs import configure_logs


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    keep_pandas_out_of_pyarrow()
    configure_logs(given.name)  # the settings may say otherwise, and reading them may warn
    try:
        settings = settings_of(given.name, given.home, given.instance)
    except (SettingsError, state.NotRunning) as error:
        print(error, file=sys.stderr)
        return 2
    process = Process(given.name, settings)
    process.log()
    if refused := list(logins.refusals(settings)):
        for _, refusal in refused:
            print(refusal, file=sys.stderr)
        return 2
    wiring.declare(settings)
    if not forks(given.name, settings):  # its workers do: threads do not survive a fork
        process.observe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop.set())
    try:
        module = import_module(f"deploy.processes.{PROCESSES[given.name]}")
        return int(module.run(process))
    finally:
        process.stop.set()  # arms the watchdog also where `run` returned by itself


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.process",
        description=__doc__,
        epilog="examples:\n  python -m deploy.process batcher\n"
        "  python -m deploy.process features --home .tidemill --instance 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", type=renamed.process_name, choices=sorted(PROCESSES))
    parser.add_argument("--home", type=Path, help="read stack.json there, not the environment")
    parser.add_argument(
        "--instance",
        type=_instance,
        help="needed where several processes of one kind run: unique among them, the same over "
        "restarts (TIDEMILL_INSTANCE)",
    )
    return parser


def _instance(text: str) -> str:
    if not re.fullmatch(INSTANCE, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {INSTANCE}")
    return text


def settings_of(name: str, home: Path | None, instance: str | None) -> Settings:
    """The settings of the stack in `home`, else of the environment, for one process of a kind.

    Raises:
        SettingsError: a key is wrong, or one of several ingest replicas has no instance name.
        NotRunning: no stack runs in `home`.
    """
    settings = state.read_settings(home) if home else load()
    if instance is not None:
        settings = settings.model_copy(update={"instance": instance})
    replicas = settings.ingest.replicas
    if name == "batcher" and replicas > 1 and not settings.instance:
        raise SettingsError(
            f"ingest.replicas is {replicas}, and replicas of one name fence each other: give each "
            "a name of its own that it keeps over restarts (--instance 1, or TIDEMILL_INSTANCE=1)"
        )
    return settings


if __name__ == "__main__":
    raise SystemExit(main())
