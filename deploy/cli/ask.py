"""`tidemill ask`: one request to the running gateway, its reply as a table.

Knows the command line, tables and the gateway's address. The reply is `serving`'s.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from deploy import state
from deploy.console import out
from deploy.settings import load
from serving.registry import SURFACES

app = typer.Typer(help="Send a request to the running gateway.", rich_markup_mode=None)

_MAX_REASONS = 5


@app.command(
    epilog="Example: tidemill ask u196 --under v242    tidemill ask u196 --with context.device=tv"
)
def ask(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    k: Annotated[int, typer.Option(min=1, max=100, help="How many items.")] = 5,
    surface: Annotated[str, typer.Option(help=f"One of {', '.join(SURFACES)}.")] = "",
    fields: Annotated[
        list[str] | None,
        typer.Option("--with", help="FIELD=VALUE or context.FIELD=VALUE; repeatable."),
    ] = None,
    under: Annotated[
        str, typer.Option(help="Short for --surface queries --with item_id=ITEM.")
    ] = "",
    dormant: Annotated[bool, typer.Option(help="Short for --surface reactivation.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes exploration repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole reply as JSON.")] = False,
) -> None:
    """Asks a surface: the feed, unless another is named."""
    surface = surface or ("queries" if under else "reactivation" if dormant else "feed")
    if surface not in SURFACES:
        raise typer.BadParameter(f"{surface!r} is none of the surfaces {', '.join(SURFACES)}")
    body: dict[str, Any] = {"user_id": user, "k": k, **_own_fields(fields or [])}
    body |= {"item_id": under} if under else {}
    body |= {"seed": seed} if seed is not None else {}
    reply = _post(f"/v1/{surface}", body)
    if as_json:
        out.print_json(data=reply)
    else:
        _show(reply, k)


def _own_fields(stated: list[str]) -> dict[str, Any]:
    """FIELD=VALUE pairs; a value that is JSON is sent as that, any other as a text.

    SECTION.FIELD=VALUE sets a field of an object.
    """
    fields: dict[str, Any] = {}
    for pair in stated:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{pair!r}: write FIELD=VALUE, as in item_id=v242")
        section, dot, inner = name.partition(".")
        into = fields.setdefault(section, {}) if dot else fields
        if not isinstance(into, dict):
            raise typer.BadParameter(f"{pair!r}: {section} is stated as one value already")
        into[inner or name] = _json_or_text(value)
    return fields


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return call_gateway("POST", path, body, scope="recommend")


def call_gateway(
    method: str, path: str, body: dict[str, Any] | None = None, *, scope: str = "admin"
) -> dict[str, Any]:
    """The running gateway's reply; a failure is printed and ends the command.

    scope: of the API key that is sent, where the settings have keys.
    """
    settings = state.read_settings(state.home_in_use(load().home))
    address = f"{settings.gateway.url}{path}"
    keys = settings.security.api_keys
    allowed = [key for key, scopes in keys.items() if scope in scopes]
    key = os.environ.get("TIDEMILL_API_KEY") or next(iter(allowed), "")
    try:
        headers = {"X-API-Key": key} if key else {}
        reply = httpx.request(method, address, json=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        out.print(
            f"the gateway at {address} does not answer: {error}. `tidemill status` shows what runs, "
            "`tidemill up` starts a stack",
            style="red",
        )
        raise typer.Exit(1) from error
    if reply.status_code != 200:
        out.print(f"{reply.status_code}: {reply.text}", style="red")
        raise typer.Exit(1)
    found: dict[str, Any] = reply.json()
    return found


def _show(reply: dict[str, Any], k: int) -> None:
    notes = [f"release {reply['release']}"]
    notes += ["cold start"] if reply["cold_start"] else []
    notes += ["from the last features read"] if reply["stale"] else []
    table = Table(title=f"{reply['surface']} for {reply['user_id']} ({', '.join(notes)})")
    for column in ("slot", "item", "score", "source", "P(action)"):
        table.add_column(column)
    for item in reply["items"]:
        table.add_row(*_row(item))
    out.print(table)
    if reason := reply.get("reason"):
        out.print(f"no items: {reason}", style="yellow")
    for line in [*_goal_lines(reply), *_shortfall_lines(reply, k)]:
        out.print(line, style="yellow")
    for fallback in reply["fallbacks"]:
        out.print(f"{fallback['stage']}: {fallback['reason']}", style="yellow")
    for line in _next_steps(reply):
        out.print(line, style="yellow")


def _next_steps(reply: dict[str, Any]) -> list[str]:
    """What to do on a stack that has no items, or no models yet."""
    lines = []
    if not reply["items"] and not reply["candidates"] and reply["surface"] == "feed":
        lines.append(
            "nothing to recommend: add items to the catalogue (PUT /v1/catalogue/{item_id}), or "
            "load the demo's films and histories (tidemill replay)"
        )
    if reply.get("models") == {}:
        lines.append(
            "no model is live: tidemill models train, then tidemill models promote (they need "
            "events: tidemill replay loads some)"
        )
    return lines


def _goal_lines(reply: dict[str, Any]) -> list[str]:
    """A trajectory whose goal was removed from the slate."""
    goal = reply.get("goal")
    return [f"its goal, {goal['title']}, cannot be shown"] if goal and not goal["shown"] else []


def _shortfall_lines(reply: dict[str, Any], k: int) -> list[str]:
    """Why there are fewer than k items: how many candidates there were, and what removed them."""
    count = len(reply["items"])
    if count >= k:
        return []
    if reply.get("goal") and not reply["removed_total"]:
        return [f"{count} of {k} items: the path to its goal takes no more steps"]
    lines = [f"{count} of {k} items: {reply['candidates']} candidates were found"]
    reasons = Counter((each["stage"], each["reason"]) for each in reply["removed"])
    for (stage, reason), removed in reasons.most_common(_MAX_REASONS):
        lines.append(f"  {removed} removed by {stage}: {reason}")
    if len(reasons) > _MAX_REASONS:
        lines.append(f"  and {len(reasons) - _MAX_REASONS} further reasons: --json shows them")
    return lines


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    what = item.get("query") or item["title"]
    role = f" [{item['role']}]" if "role" in item else ""
    score = "" if item["score"] is None else f"{item['score']:.3f}"
    chances = "  ".join(f"{task} {p:.2f}" for task, p in item["p"].items() if p is not None)
    return str(item["slot"] + 1), f"{what}{role}", score, item["source"], chances
