"""`tidemill rules`: shows the standing rules, checks a file of them and puts it in force.

Knows files and the gateway's address. What a rule says and how it is checked is `serving`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.ask import call_gateway
from deploy.console import out

app = typer.Typer(help="Standing rules: filters, boosts, pins, groups and shares.")
_File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Rules in TOML.")]


@app.command()
def show() -> None:
    """Prints the rules in force as JSON."""
    out.print_json(data=call_gateway("GET", "/v1/rules"))


@app.command()
def check(file: _File) -> None:
    """Checks a file against the declared attributes and the surfaces; needs no stack."""
    stated = _checked(file)
    out.print(f"{len(stated['rules'])} rules, no faults", highlight=False)


@app.command("set")
def set_(file: _File) -> None:
    """Replaces all standing rules by those of the file."""
    stated = _checked(file)
    call_gateway("PUT", "/v1/rules", stated)
    out.print(f"{len(stated['rules'])} rules are in force", highlight=False)


def _checked(file: Path) -> dict[str, Any]:
    from serving.rules.definitions import RulesRefused, read_rules_toml
    from serving.surfaces import load_surfaces, rule_kinds

    try:
        rules = read_rules_toml(file.read_text(encoding="utf-8"), rule_kinds(load_surfaces()))
    except RulesRefused as refused:
        for where, why in refused.problems:
            out.print(f"{where}: {why}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from refused
    stated: dict[str, Any] = json.loads(json.dumps(rules.stated.stated()))
    return {"rules": stated.get("rules", [])}
