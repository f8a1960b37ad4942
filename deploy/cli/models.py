"""`tidemill models`: train, evaluate, export, promote, update, roll back, list releases.

Knows the command line and tables. The work is `models`'. A release is loaded by the running
stack's model server; without a stack it is loaded and tested in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from deploy import state, wiring
from deploy.cli.update_plan import dry_run_lines
from deploy.console import ProgressDisplay, out
from deploy.settings import Settings
from models.client import ModelUnavailable
from models.recipe import NotEnoughData
from models.registry import REGISTRY
from models.release.bundle import ReleaseError
from models.release.store import Manifest, ReleaseStore
from models.release.triton_repository import ModelRepository
from models.updates.report import reports_of

if TYPE_CHECKING:
    from models.release.promotion import Promoter

app = typer.Typer(
    help="Train, evaluate, release and align the served models.",
    epilog="Examples: tidemill models train    tidemill models promote    tidemill models status",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Names = Annotated[
    list[str] | None, typer.Argument(help="Models by name; all models if none is given.")
]
Seed = Annotated[int, typer.Option(help="The same seed and log give the same model.")]


@app.command(epilog="Example: tidemill models train ranker queries --seed 7")
def train(names: Names = None, seed: Seed = 0) -> None:
    """Trains models on the whole log and seals a bundle of each."""
    from models.training.build import train_model

    settings = state.settings_in_use()
    store, now_ms = ReleaseStore(settings.releases_dir), _now(settings)
    log = wiring.training_log(settings)
    with _known_errors(), ProgressDisplay() as display:
        for name in _known(names):
            report = display.add(f"train {name}").update
            bundle = train_model(name, log, store, now_ms=now_ms, seed=seed, progress=report)
            out.print(f"{name}: version {bundle.version} in {bundle.path}")
    out.print("to make them live: tidemill models promote")


@app.command(epilog="Example: tidemill models evaluate ranker")
def evaluate(
    names: Names = None,
    seed: Seed = 0,
    off_policy: Annotated[
        bool,
        typer.Option(help="Estimate the value of a ranker that is not live, from logged slates."),
    ] = False,
    version: Annotated[
        int | None,
        typer.Option(help="Version of the ranker; default: the newest that is not live."),
    ] = None,
    every_slate: Annotated[
        bool, typer.Option(help="Include slates that the ranker may have been trained on.")
    ] = False,
) -> None:
    """Trains on the first 80 % of time and evaluates on the rest, beside a trivial baseline."""
    if off_policy:
        _off_policy(_known(names) if names else ["ranker"], version, every_slate, seed)
        return
    from models.training.build import evaluate_model

    log = wiring.training_log(state.settings_in_use())
    notes: list[str] = []
    table = Table("model", "metric", "value", "baseline", "its value", "difference (95 %)", "n")
    with _known_errors(), ProgressDisplay() as display:
        for name in _known(names):
            found = evaluate_model(
                name, log, seed=seed, progress=display.add(f"evaluate {name}").update
            )
            row = (name, found.metric, f"{found.value:.4f}", found.baseline)
            interval = _interval(found.difference)
            table.add_row(*row, f"{found.baseline_value:.4f}", interval, str(found.n))
            notes += [f"{name}: {note}" for note in found.notes]
    out.print(table)
    for note in notes:
        out.print(note, soft_wrap=True)


def _off_policy(names: list[str], version: int | None, every_slate: bool, seed: int) -> None:
    """One row for each estimator: the value of re-ordering the live ranker's slates."""
    from models.alignment.ranker_value import off_policy_value

    if names != ["ranker"]:
        raise typer.BadParameter("only the ranker's slates have logged propensities: name ranker")
    settings = state.settings_in_use()
    store, log = ReleaseStore(settings.releases_dir), wiring.training_log(settings)
    with _known_errors(), ProgressDisplay() as display:
        found = off_policy_value(
            store,
            log,
            version=version,
            every_slate=every_slate,
            seed=seed,
            progress=display.add("off-policy").update,
        )
    table = Table("estimator", "value (95 %)", "logged", "difference (95 %)", "effective choices")
    for each in found.estimates:
        value = f"{each.value:.4f} [{each.interval[0]:.4f}, {each.interval[1]:.4f}]"
        row = (each.method, value, f"{each.logged_value:.4f}", _interval(each.difference))
        table.add_row(*row, f"{each.effective_n:.0f}")
    out.print(f"ranker {found.version} on {found.slates} slates of ranker {found.live}, live")
    out.print(table)


@app.command(epilog="Example: tidemill models export --to ./repository ranker")
def export(
    names: Names = None,
    to: Annotated[Path, typer.Option(help="The folder of the model repository.")] = Path(
        "model-repository"
    ),
) -> None:
    """Writes the newest bundles as a Triton model repository, for an external server."""
    from models.training.build import newest_versions

    store = ReleaseStore(state.settings_in_use().releases_dir)
    with _known_errors():
        for name, version in newest_versions(store, _known(names)).items():
            ModelRepository(to).add(store.bundle(name, version))
            out.print(f"{to / name / str(version)}")


@app.command(epilog="Examples: tidemill models promote    tidemill models promote ranker=3")
def promote(
    pinned: Annotated[
        list[str] | None,
        typer.Argument(help="MODEL=VERSION; default: the newest of each that no gate refused."),
    ] = None,
) -> None:
    """Makes a release of bundles, loads it beside the live one, tests it and switches to it."""
    from models.release.promotion import successor
    from models.training.build import newest_versions

    settings = state.settings_in_use()
    store = ReleaseStore(settings.releases_dir)
    with _known_errors(), _releasing(settings, store) as promoter, ProgressDisplay() as display:
        chosen = _pins(pinned) if pinned else newest_versions(store, REGISTRY)
        now_ms = _now(settings)
        release = store.propose(successor(store, chosen), created_ms=now_ms)
        promoter.promote(release, now_ms=now_ms, progress=display.add("promote").update)
    out.print(_describe(release))


@app.command(
    epilog="Examples: tidemill models update ranker    tidemill models update ranker --dry-run"
)
def update(
    name: Annotated[str, typer.Argument(help="The model.")],
    seed: Seed = 0,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say whether an update is due, what it would read and what the gate would "
            "compare; change nothing.",
        ),
    ] = False,
) -> None:
    """Aligns a challenger on feedback since the last update; a gate decides whether it goes live.

    An update that was killed after its verdict is finished first. A refused challenger's feedback
    is kept for the next one. The setting updates.MODEL.every runs updates by themselves.
    """
    from models.alignment.guards import drift_in_words
    from models.training.update import update_model

    settings = state.settings_in_use()
    store, now_ms = ReleaseStore(settings.releases_dir), _now(settings)
    log = wiring.training_log(settings)
    if dry_run:
        with _known_errors():
            for line in dry_run_lines(name, settings, store, log, now_ms):
                out.print(Text(line), soft_wrap=True)
        return
    with _known_errors(), ProgressDisplay() as display, wiring.promoter(settings) as promoter:
        report = display.add(f"update {name}").update
        outcome = update_model(
            name, log, store, promoter, now_ms=now_ms, seed=seed, progress=report
        )
    decision = "promoted" if outcome.promoted else "refused"
    resumed = " (its process had been interrupted)" if outcome.resumed else ""
    out.print(f"{name} {outcome.incumbent} -> {outcome.challenger}: {decision}{resumed}")
    for reason in outcome.reasons:
        out.print(f"  {reason}")
    reports = [each.in_words() for each in reports_of(outcome.release.gate)]
    for line in (*reports, *drift_in_words(outcome.release.gate)):
        out.print(f"  {line}")


@app.command(epilog='Example: tidemill models rollback --reason "orders fell"')
def rollback(
    reason: Annotated[str, typer.Option(help="Stored with the quarantined feedback.")] = "by hand",
) -> None:
    """Returns to the previous release; training then excludes the feedback of the one rolled back."""
    settings = state.settings_in_use()
    store = ReleaseStore(settings.releases_dir)
    with _known_errors(), _releasing(settings, store) as promoter:
        out.print(_describe(promoter.rollback(now_ms=_now(settings), reason=reason)))


@app.command(epilog="Example: tidemill models status")
def status() -> None:
    """Lists releases with the live one and each gate's decision."""
    store = ReleaseStore(state.settings_in_use().releases_dir)
    live = store.current()
    table = Table("release", "live", "models", "parent", "gate")
    for one in store.manifests():
        here = "*" if live and one.release_id == live.release_id else ""
        versions = ", ".join(f"{model} {v}" for model, v in sorted(one.models.items()))
        table.add_row(one.release_id, here, versions, one.parent or "", _gate_text(one))
    out.print(table)


def _now(settings: Settings) -> int:
    return wiring.clock(settings.clock).now_ms()


@contextmanager
def _releasing(settings: Settings, store: ReleaseStore) -> Iterator[Promoter]:
    """The promoter, while no other process makes a release."""
    with store.making_release(), wiring.promoter(settings) as promoter:
        yield promoter


def _known(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in REGISTRY:
            raise typer.BadParameter(f"{name} is not one of {', '.join(REGISTRY)}")
    return list(names or REGISTRY)


def _pins(pinned: list[str]) -> dict[str, int]:
    pairs = [each.partition("=") for each in pinned]
    for name, _, version in pairs:
        if name not in REGISTRY or not version.isdigit():
            raise typer.BadParameter(f"{name}={version}: write MODEL=VERSION, as in ranker=3")
    return {name: int(version) for name, _, version in pairs}


@contextmanager
def _known_errors() -> Iterator[None]:
    """An expected error ends the command with its message instead of a traceback."""
    try:
        yield
    except (NotEnoughData, ReleaseError, ModelUnavailable) as error:
        out.print(str(error), style="red")
        raise typer.Exit(1) from error


def _interval(difference: tuple[float, float, float]) -> str:
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)


def _describe(release: Manifest) -> str:
    versions = ", ".join(f"{model} {v}" for model, v in sorted(release.models.items()))
    return f"{release.release_id} is live: {versions}"


def _gate_text(release: Manifest) -> str:
    if release.gate is None:
        return ""
    decision = "promoted" if release.gate["promoted"] else "refused"
    return f"{decision}: {release.gate['reasons'][0]}"
