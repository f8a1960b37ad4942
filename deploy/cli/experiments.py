"""`tidemill experiments`: start, status, stop.

Knows the command line and tables. The work is `models.experiments`'; releases that an arm names
are loaded beside the live one by `models.release.promotion`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from deploy import state, wiring
from deploy.console import out
from deploy.settings import Settings
from models.client import ModelUnavailable
from models.experiments.definition import (
    Experiment,
    ExperimentError,
    Guard,
    checked,
    read_arm,
)
from models.release.bundle import ReleaseError
from models.release.store import ReleaseStore

app = typer.Typer(
    help="Serve users by arms, and compare the arms while they run.",
    epilog="Examples: tidemill experiments start ranker-7 --arm ranker=live@0.95 "
    "--arm challenger=release:r0007@0.05    tidemill experiments status    "
    "tidemill experiments stop ranker-7",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    epilog="Examples: tidemill experiments start taste --arm ranker=live@0.5 "
    "--arm popularity=popularity@0.5    tidemill experiments start ranker-7 "
    "--arm ranker=live@0.95 --arm challenger=release:r0007@0.05 --guard play --worse-by 0.05    "
    "tidemill experiments start teams --arm ranker=live@0.5 "
    "--arm both=interleave:live+release:r0007@0.5"
)
def start(
    name: Annotated[str, typer.Argument(help="A new name: it salts the hash of users.")],
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME=POLICY@SHARE; the first is the control. POLICY: live, popularity, "
            "release:ID, or interleave:POLICY+POLICY."
        ),
    ],
    surface: Annotated[str, typer.Option(help="The surface whose users are split.")] = "feed",
    reward: Annotated[str, typer.Option(help="The task that is compared, per slate.")] = "play",
    guard: Annotated[
        str | None, typer.Option(help="Stop when an arm's rate of this task is worse.")
    ] = None,
    worse_by: Annotated[
        float, typer.Option(help="The share of the control's rate that an arm may lose.")
    ] = 0.0,
    level: Annotated[
        float, typer.Option(help="Chance of ever calling equal arms different.")
    ] = 0.05,
) -> None:
    """Starts an experiment; releases that its arms name are loaded beside the live one."""
    settings = state.settings_in_use()
    watch = Guard(guard, worse_by) if guard is not None else None
    with _known_errors():
        now_ms = wiring.clock(settings.clock).now_ms()
        arms = tuple(read_arm(text) for text in arm)
        found = checked(
            Experiment(name, arms, surface, reward, watch, level=level, started_ms=now_ms)
        )
        _check_surface(found)
        start_with_releases(settings, found)
    out.print(Text(f"{name} runs on {surface}: tidemill experiments status {name}"))


@app.command(epilog="Examples: tidemill experiments status    tidemill experiments status ranker-7")
def status(
    name: Annotated[str | None, typer.Argument(help="One experiment; default: all.")] = None,
) -> None:
    """Shows experiments with each arm's rate, evaluated now; it may be read at any time."""
    from models.experiments.evaluation import evaluate

    settings = state.settings_in_use()
    store = wiring.experiments(settings)
    chosen = [each for each in reversed(store.all()) if name in (None, each.name)]
    if not chosen:
        out.print("no experiment was started: tidemill experiments start --help")
        raise typer.Exit(0 if name is None else 1)
    for each in chosen:
        out.print(Text(_headline(each)), soft_wrap=True)
        found = evaluate(each, settings.feedback_dir).to_json()
        out.print(_table(found))
        if found["mismatch"]:
            out.print(
                f"the arms do not have the users of their shares (p = "
                f"{found['ratio']['p_value']:.1g}): do not trust the comparison",
                style="red",
            )


@app.command(epilog='Example: tidemill experiments stop ranker-7 --reason "orders fell"')
def stop(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    reason: Annotated[str, typer.Option(help="Kept with the experiment.")] = "by hand",
) -> None:
    """Stops an experiment: the live models serve its users from the next request on."""
    settings = state.settings_in_use()
    store = wiring.experiments(settings)
    with _known_errors():
        at_ms = wiring.clock(settings.clock).now_ms()
        changed = store.stop(name, at_ms=at_ms, reason=reason)
        if changed and any(a.releases for e in store.all() if e.name == name for a in e.arms):
            releases = ReleaseStore(settings.releases_dir)
            with releases.making_release(), wiring.promoter(settings) as promoter:
                promoter.prune()
    out.print(f"{name} is stopped" if changed else f"{name} had been stopped before")


def start_with_releases(settings: Settings, found: Experiment) -> None:
    """Loads the releases of the arms, then starts the experiment, as one step for promotions."""
    store, releases = wiring.experiments(settings), ReleaseStore(settings.releases_dir)
    named = {release for arm in found.arms for release in arm.releases}
    if not named:
        store.start(found)
        return
    with releases.making_release(), wiring.promoter(settings) as promoter:
        for release in sorted(named):
            promoter.stand_by(releases.manifest(release))
        try:
            store.start(found)
        except ExperimentError:
            promoter.prune()
            raise


def _check_surface(found: Experiment) -> None:
    from serving.surfaces import Surfaces, load_surfaces

    specs = load_surfaces()
    if found.surface not in specs:
        raise ExperimentError(f"surfaces are {', '.join(specs)}")
    can = Surfaces.policies(specs[found.surface])
    for arm in found.arms:
        if not arm.kinds <= can:
            raise ExperimentError(
                f"{found.surface} cannot serve {arm.policy}: it serves {', '.join(sorted(can))}"
            )


def _headline(found: Experiment) -> str:
    now = "runs" if found.running else f"was stopped: {found.reason}"
    guard = f", guarded by {found.guard.metric}" if found.guard else ""
    return f"{found.name} on {found.surface} {now} ({found.reward} per slate{guard})"


def _table(found: dict[str, Any]) -> Table:
    table = Table("arm", "policy", "share", "users", "slates", "rate", "difference", "verdict")
    for arm in found["arms"]:
        judged = arm["preference"] or arm["lift"]
        cells = (arm["name"], arm["policy"], f"{arm['share']:.0%}")
        counts = (str(arm["users"]), str(arm["slates"]))
        shown = _interval(judged, "+") if judged else "control"
        table.add_row(*cells, *counts, _interval(arm["rate"]), shown, arm["verdict"])
    return table


def _interval(found: dict[str, float | None], sign: str = "") -> str:
    value, low, high = found["value"], found["low"], found["high"]
    if value is None:
        return "-"
    ends = "" if low is None or high is None else f" [{low:{sign}.4f}, {high:{sign}.4f}]"
    return f"{value:{sign}.4f}{ends}"


@contextmanager
def _known_errors() -> Iterator[None]:
    """An expected error ends the command with its message instead of a traceback."""
    try:
        yield
    except (ExperimentError, ReleaseError, ModelUnavailable, OSError) as error:
        out.print(Text(str(error)), style="red")
        raise typer.Exit(1) from error
