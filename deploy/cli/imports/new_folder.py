"""`tidemill init`: a folder with settings, declarations, features and mappings of one's own.

Knows the files and what they begin with. Guessing columns is `streams.imports.guess`'.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from deploy.console import errors, out, styled

app = typer.Typer()

SETTINGS = """\
# Settings of this stack; `tidemill up` in this folder reads them. Every setting:
# deploy/settings/__init__.py. How to declare: docs/extending/declare-attributes-and-signals.md

[items]
undeclared = "mark"          # of other attributes: keep, mark or reject

[items.attributes]           # number, text, label, labels, flag, vector
{attributes}
# [users.attributes]
# membership = "label"

# A signal of your own beside play, like, cart, order, ...: counted, joined to what was shown, and
# learned from.
# [signals.rating]
# role = "engagement"        # or exposure, dislike, conversion
# payload = ["value"]
# window_ms = 86_400_000

[features]
file = "own_features.py"

# [updates.ranker]           # learn from feedback by itself
# every = "6h"
"""
FEATURES = '''\
"""Features of our own, beside the shipped ones: `tidemill features plan` says what a change costs."""

from features.definitions import MONTH, Decayed, Ratio

FEATURES = {
    "user": [
        Decayed("recent_orders", "order_count", MONTH, half_life_ms=7 * 86_400_000),
        Ratio("orders_per_play", "order_count", "play_count", (MONTH,)),
    ],
}
'''
EVENTS = """\
# Which column is which field; `tidemill import --mappings` lists shipped ones, `--show NAME` prints one.
target = "events"

[fields]
user_id = "user_id"
item_id = "item_id"
event_time_ms = { column = "time", unit = "iso", zone = "UTC" }   # or unit = "s", "ms", "%d.%m.%Y %H:%M"
kind = { column = "event", map = { view = "play", cart = "cart", purchase = "order" } }
amount_cents = { column = "price", scale = 100 }
"""
ITEMS = """\
target = "items"

[fields]
item_id = "item_id"
kind = { value = "product" }
title = "title"
categories = { column = "category", separator = "|" }
price_cents = { column = "price", scale = 100 }
"""


@app.command(
    "init",
    epilog="[bold]Examples[/]  tidemill init my-shop  ·  tidemill init my-shop --events orders.csv "
    "--items products.csv",
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    events: Annotated[
        str, typer.Option(help="A CSV or Parquet file: its mapping is guessed.")
    ] = "",
    items: Annotated[str, typer.Option(help="The same of items.")] = "",
) -> None:
    """Create a folder with settings, attributes, features and mappings, to be filled in."""
    from streams.imports.source import UnreadableFile

    if folder.exists() and any(folder.iterdir()):
        errors.print(styled(("init", "red"), f": {folder} is not empty; name a new folder"))
        raise typer.Exit(2)
    try:
        files = _files(events, items)
    except UnreadableFile as error:
        errors.print(styled((type(error).__name__, "red"), ": ", str(error)))
        raise typer.Exit(2) from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    out.print(f"{folder}: {', '.join(files)}\n")
    out.print(_next_steps(folder, events, items))


def _files(events: str, items: str) -> dict[str, str]:
    from streams.imports.guess import guess_events, guess_items
    from streams.imports.source import sample

    guessed_items = guess_items(sample(items)) if items else None
    attributes = guessed_items.attributes if guessed_items else {}
    lines = "".join(f'{name} = "{kind}"\n' for name, kind in attributes.items())
    return {
        "tidemill.toml": SETTINGS.format(attributes=lines or '# colour = "label"\n'),
        "own_features.py": FEATURES,
        "events.toml": guess_events(sample(events)).toml if events else EVENTS,
        "items.toml": guessed_items.toml if guessed_items else ITEMS,
    }


def _next_steps(folder: Path, events: str, items: str) -> str:
    def path(name: str, default: str) -> str:
        return shlex.quote(str(Path(name).resolve())) if name else default

    both = (("items.toml", path(items, "ITEMS.csv")), ("events.toml", path(events, "EVENTS.csv")))
    checks = "\n".join(f"  tidemill import {file} --map {name} --dry-run" for name, file in both)
    loads = "\n".join(
        f"  tidemill import {file} --map {name}" + (" --newest now" if "events" in name else "")
        for name, file in both
    )
    return f"""Look at the mappings, and at what they make of your rows:
  cd {shlex.quote(str(folder))}
{checks}
Then, with `tidemill up` running in another terminal in that folder:
{loads}
  tidemill models train && tidemill models promote
  tidemill ask ONE_OF_YOUR_USERS"""
