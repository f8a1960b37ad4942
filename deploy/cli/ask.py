"""`tidemill ask`: one request to the running gateway, its reply as a table.

Knows the command line, tables and the gateway's address. The reply is `serving`'s.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.markup import escape
from rich.table import Table

from deploy import state
from deploy.console import out
from deploy.settings import load

app = typer.Typer(help="Send a request to the running gateway.", rich_markup_mode=None)

Surface = Literal["feed", "queries", "reactivation"]


@app.command(epilog="Example: tidemill ask u196 --k 5    tidemill ask u196 --under v242")
def ask(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    k: Annotated[int, typer.Option(min=1, max=100, help="How many items.")] = 5,
    under: Annotated[str, typer.Option(help="Queries under this item, not a feed.")] = "",
    dormant: Annotated[
        bool, typer.Option(help="The trajectory of a dormant user, not a feed.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes exploration repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole reply as JSON.")] = False,
) -> None:
    """Asks for a feed, for queries under an item, or for a dormant user's trajectory."""
    surface: Surface = "queries" if under else "reactivation" if dormant else "feed"
    body: dict[str, Any] = {"user_id": user, "k": k}
    body |= {"video_id": under} if under else {}
    body |= {"seed": seed} if seed is not None else {}
    reply = _post(f"/v1/{surface}", body)
    if as_json:
        out.print_json(data=reply)
    else:
        _show(reply)


def _post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    settings = state.read_settings(state.home_in_use(load().home))
    address = f"{settings.gateway.url}{path}"
    keys = settings.security.api_keys
    allowed = [key for key, scopes in keys.items() if "recommend" in scopes]
    key = os.environ.get("TIDEMILL_API_KEY") or next(iter(allowed), "")
    try:
        reply = httpx.post(address, json=body, headers={"X-API-Key": key} if key else {})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        out.print(f"the gateway at {address} does not answer: {error}", style="red")
        raise typer.Exit(1) from error
    if reply.status_code != 200:
        out.print(f"{reply.status_code}: {reply.text}", style="red", markup=False)
        raise typer.Exit(1)
    found: dict[str, Any] = reply.json()
    return found


def _show(reply: dict[str, Any]) -> None:
    notes = [f"release {reply['release']}"]
    notes += ["cold start"] if reply["cold_start"] else []
    notes += ["from the last features read"] if reply["stale"] else []
    table = Table(title=f"{reply['surface']} for {reply['user_id']} ({', '.join(notes)})")
    for column in ("slot", "item", "score", "source", "P(action)"):
        table.add_column(column)
    for item in reply["items"]:
        table.add_row(*map(escape, _row(item)))
    out.print(table)
    if reason := reply.get("reason"):
        out.print(f"no items: {reason}", style="yellow", markup=False)
    for fallback in reply["fallbacks"]:
        out.print(f"{fallback['stage']}: {fallback['reason']}", style="yellow", markup=False)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    what = item.get("query") or item["title"]
    role = f" [{item['role']}]" if "role" in item else ""
    score = "" if item["score"] is None else f"{item['score']:.3f}"
    chances = "  ".join(f"{task} {p:.2f}" for task, p in item["p"].items() if p is not None)
    return str(item["slot"] + 1), f"{what}{role}", score, item["source"], chances
