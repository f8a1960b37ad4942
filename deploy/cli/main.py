"""The root of `tidemill`: which groups of commands there are.

Knows module names. A command imports what it needs when it runs, so that
`tidemill --help` is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer
from rich.console import Console

from deploy.services.process import PartFailed, PartUnavailable
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
EXPECTED = (PartUnavailable, PartFailed, SettingsError, AlreadyRunning, NotRunning)


def build() -> typer.Typer:
    """The whole command."""
    app = typer.Typer(
        help="tidemill: behaviour in, features folded, models asked, answers explained.",
        epilog="First time here?  make demo",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_show_locals=False,  # a settings object may hold keys
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module, name in GROUPS.items():
        app.add_typer(import_module(module).app, name=name or None)
    return app


def main() -> None:
    """Runs the command; what a person can mend is told in one line, without a traceback."""
    try:
        build()()
    except EXPECTED as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]{type(error).__name__}[/]", end=": ")
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
