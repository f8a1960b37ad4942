"""The root of `tidemill`: its groups of commands.

Knows module names. A command imports what it needs when it runs, so that
`tidemill --help` is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer
from typer import rich_utils

from deploy.console import errors, out
from deploy.services.process import ServiceFailed, ServiceUnavailable
from deploy.settings import SettingsError
from deploy.state import AlreadyRunning, NotRunning

# Module -> the group's name; "" puts its commands at the root.
GROUPS = {
    "deploy.cli.stack": "",
    "deploy.cli.demo": "",
    "deploy.cli.ask": "",
    "deploy.cli.log": "log",
    "deploy.cli.features": "features",
    "deploy.cli.models": "models",
}
PIPED_HELP_WIDTH = 120  # in a pipe: wide enough for every option's name
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
    if not out.is_terminal:
        rich_utils.MAX_WIDTH = PIPED_HELP_WIDTH
    try:
        build()()
    except EXPECTED as error:
        errors.print(f"[red]{type(error).__name__}[/]", end=": ")
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
