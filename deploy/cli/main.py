"""The root of `tidemill`: its groups of commands.

Knows module names. A command imports what it needs when it runs, so that
`tidemill --help` is quick.
"""

from __future__ import annotations

import io
import sys
from importlib import import_module

import typer
from typer import rich_utils

from deploy import settings, wiring
from deploy.console import errors, out, styled
from deploy.services.process import ServiceFailed, ServiceUnavailable
from deploy.settings import SettingsError
from deploy.state import AlreadyRunning, NotRunning

# Module -> the group's name; "" puts its commands at the root.
GROUPS = {
    "deploy.cli.stack": "",
    "deploy.cli.demo": "",
    "deploy.cli.ask": "",
    "deploy.cli.imports.command": "",
    "deploy.cli.imports.new_folder": "",
    "deploy.cli.log": "log",
    "deploy.cli.features": "features",
    "deploy.cli.models": "models",
    "deploy.cli.rules": "rules",
    "deploy.cli.experiments": "experiments",
}
PIPED_HELP_WIDTH = 120  # in a pipe: wide enough for every option's name
HELP = {"-h", "--help"}
EXPECTED = (ServiceUnavailable, ServiceFailed, SettingsError, AlreadyRunning, NotRunning)


def build() -> typer.Typer:
    """The whole command."""
    app = typer.Typer(
        help="tidemill: a streaming recommendation platform on one machine.",
        epilog="First time here?  make demo",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_show_locals=False,  # settings may hold keys
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module, name in GROUPS.items():
        app.add_typer(import_module(module).app, name=name or None)
    return app


def main() -> None:
    """Runs the command; an expected error is printed as one line, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a locale cannot print is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    if not out.is_terminal:
        rich_utils.MAX_WIDTH = PIPED_HELP_WIDTH
    try:
        if not HELP.intersection(sys.argv):
            # Before the slow imports, so that a wrong setting is said at once.
            wiring.declare(settings.load())
        build()()
    except EXPECTED as error:
        errors.print(styled((type(error).__name__, "red"), ": ", str(error)))
        sys.exit(2 if isinstance(error, SettingsError) else 1)


if __name__ == "__main__":
    main()
