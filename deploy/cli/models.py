"""`tidemill models`: train, evaluate, export, promote, update, roll back, and say what is live.

Knows the command line and progress bars. The work is `models`'; where a stack runs its
server takes the release, else the models are loaded in this process to test them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy import state, wiring
from deploy.settings import Settings
from models.client import ModelClient, ModelUnavailable
from models.recipe import NotEnoughData, TrainingLog
from models.recipe import Progress as Report
from models.registry import CATALOG
from models.release.bundle import Manifest, ReleaseError, ReleaseStore
from models.release.triton_repository import ModelRepository

if TYPE_CHECKING:
    from models.release.promotion import Promoter

app = typer.Typer(
    help="Train, judge, release and align the served models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
console = Console()

Names = Annotated[
    list[str] | None, typer.Argument(help="Models by name; all of the catalogue when none.")
]
Seed = Annotated[int, typer.Option(help="The same seed and log give the same model.")]


@app.command(epilog="Example: tidemill models train ranker queries --seed 7")
def train(names: Names = None, seed: Seed = 0) -> None:
    """Trains models on everything the log holds and seals a bundle of each."""
    from models.training.build import train as build

    settings = state.settings_in_use()
    store, log, now_ms = ReleaseStore(settings.releases_dir), _log(settings), _now(settings)
    with _told(), _bars() as bars:
        for name in _known(names):
            report = _report(bars, f"train {name}")
            bundle = build(name, log, store, now_ms=now_ms, seed=seed, progress=report)
            bars.console.print(f"{name}: version {bundle.version} in {bundle.path}")
    console.print("live only after: tidemill models promote")


@app.command(epilog="Example: tidemill models evaluate ranker")
def evaluate(
    names: Names = None,
    seed: Seed = 0,
    off_policy: Annotated[
        bool, typer.Option(help="Instead: what a ranker that is not live would have earned.")
    ] = False,
    version: Annotated[
        int | None, typer.Option(help="Which ranker; the newest that is not live when none.")
    ] = None,
    every_slate: Annotated[
        bool, typer.Option(help="Also slates that the ranker may have learned from.")
    ] = False,
) -> None:
    """Trains on the first 80 % of time and judges on the rest, beside a trivial baseline."""
    if off_policy:
        _off_policy(_known(names) if names else ["ranker"], version, every_slate, seed)
        return
    from models.training.build import evaluate as judge

    log = _log(state.settings_in_use())
    notes: list[str] = []
    table = Table("model", "metric", "value", "baseline", "its value", "difference (95 %)", "n")
    with _told(), _bars() as bars:
        for name in _known(names):
            found = judge(name, log, seed=seed, progress=_report(bars, f"evaluate {name}"))
            row = (name, found.metric, f"{found.value:.4f}", found.baseline)
            interval = _interval(found.difference)
            table.add_row(*row, f"{found.baseline_value:.4f}", interval, str(found.n))
            notes += [f"{name}: {note}" for note in found.notes]
    console.print(table)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)


def _off_policy(names: list[str], version: int | None, every_slate: bool, seed: int) -> None:
    """One row an estimator: the value of re-ordering the live ranker's slates."""
    from models.alignment.ranker_value import off_policy_value

    if names != ["ranker"]:
        raise typer.BadParameter("only the ranker's slates have logged choices: name ranker")
    settings = state.settings_in_use()
    store, log = ReleaseStore(settings.releases_dir), _log(settings)
    with _told(), _bars() as bars:
        found = off_policy_value(
            store,
            log,
            version=version,
            every_slate=every_slate,
            seed=seed,
            progress=_report(bars, "off-policy"),
        )
    table = Table("estimator", "value (95 %)", "logged", "difference (95 %)", "effective choices")
    for each in found.estimates:
        value = f"{each.value:.4f} [{each.interval[0]:.4f}, {each.interval[1]:.4f}]"
        row = (each.method, value, f"{each.logged_value:.4f}", _interval(each.difference))
        table.add_row(*row, f"{each.effective_n:.0f}")
    console.print(f"ranker {found.version} on {found.slates} slates of ranker {found.live}, live")
    console.print(table)


@app.command(epilog="Example: tidemill models export --to ./repository ranker")
def export(
    names: Names = None,
    to: Annotated[Path, typer.Option(help="The folder of the model repository.")] = Path(
        "model-repository"
    ),
) -> None:
    """Writes the newest bundles as a Triton model repository, for a server of your own."""
    from models.training.build import newest

    store = ReleaseStore(state.settings_in_use().releases_dir)
    with _told():
        for name, version in newest(store, _known(names)).items():
            ModelRepository(to).add(store.bundle(name, version))
            console.print(f"{to / name / str(version)}")


@app.command(epilog="Example: tidemill models promote ranker=3 (or nothing: the newest of all)")
def promote(
    pinned: Annotated[
        list[str] | None, typer.Argument(help="MODEL=VERSION; the newest of each when none.")
    ] = None,
) -> None:
    """Makes bundles a release, loads it beside the live one, tests it, and switches."""
    from models.release.promotion import successor
    from models.training.build import newest

    settings = state.settings_in_use()
    store = ReleaseStore(settings.releases_dir)
    with _told(), _bars() as bars, _promoter(settings, store) as promoter:
        chosen = _pins(pinned) if pinned else newest(store, CATALOG)
        now_ms = _now(settings)
        release = store.propose(successor(store, chosen), created_ms=now_ms)
        promoter.promote(release, now_ms=now_ms, progress=_report(bars, "promote"))
    console.print(_says(release))


@app.command(epilog="Example: tidemill models update ranker")
def update(name: Annotated[str, typer.Argument(help="The model.")], seed: Seed = 0) -> None:
    """Aligns a challenger on feedback since the last update; a gate decides if it goes live."""
    from models.training.update import update as run

    settings = state.settings_in_use()
    store, log, now_ms = ReleaseStore(settings.releases_dir), _log(settings), _now(settings)
    with _told(), _bars() as bars, _promoter(settings, store) as promoter:
        report = _report(bars, f"update {name}")
        outcome = run(name, log, store, promoter, now_ms=now_ms, seed=seed, progress=report)
    word = "promoted" if outcome.promoted else "refused"
    console.print(f"{name} {outcome.incumbent} -> {outcome.challenger}: {word}")
    for reason in outcome.reasons:
        console.print(f"  {reason}")


@app.command(epilog='Example: tidemill models rollback --reason "orders fell"')
def rollback(
    reason: Annotated[str, typer.Option(help="Kept with the quarantined feedback.")] = "by hand",
) -> None:
    """Goes back to the release before; training leaves out what the other one gathered."""
    settings = state.settings_in_use()
    store = ReleaseStore(settings.releases_dir)
    with _told(), _promoter(settings, store) as promoter:
        console.print(_says(promoter.rollback(now_ms=_now(settings), reason=reason)))


@app.command(epilog="Example: tidemill models status")
def status() -> None:
    """Lists releases, which one is live, and what their gates said."""
    store = ReleaseStore(state.settings_in_use().releases_dir)
    live = store.current()
    table = Table("release", "live", "models", "parent", "gate")
    for one in store.manifests():
        here = "*" if live and one.release_id == live.release_id else ""
        versions = ", ".join(f"{model} {v}" for model, v in sorted(one.models.items()))
        table.add_row(one.release_id, here, versions, one.parent or "", _gate_word(one))
    console.print(table)


def _now(settings: Settings) -> int:
    return wiring.clock(settings.clock).now_ms()


def _log(settings: Settings) -> TrainingLog:
    from models.training.datasets import load_training_log

    return load_training_log(settings.log_dir, settings.feedback_dir, _now(settings))


@contextmanager
def _promoter(settings: Settings, store: ReleaseStore) -> Iterator[Promoter]:
    """On the stack's server and topics where one runs, else in this process and silent."""
    from models.release.promotion import Promoter, announcement

    running = state.is_claimed(settings.home)
    client = wiring.model_client(settings) if running else _in_process(settings)
    producer = wiring.bus(settings).producer() if running else None

    def announce(release: Manifest) -> None:
        if producer is not None:
            producer.send([announcement(release)])

    try:
        with wiring.making_a_release(settings):
            yield Promoter(store, ModelRepository(settings.repository_dir), client, announce)
    finally:
        if producer is not None:
            producer.close()


def _in_process(settings: Settings) -> ModelClient:
    from models.release.in_process import InProcessClient

    return InProcessClient(settings.repository_dir)


def _known(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in CATALOG:
            raise typer.BadParameter(f"{name} is not one of {', '.join(CATALOG)}")
    return list(names or CATALOG)


def _pins(pinned: list[str]) -> dict[str, int]:
    pairs = [each.partition("=") for each in pinned]
    for name, _, version in pairs:
        if name not in CATALOG or not version.isdigit():
            raise typer.BadParameter(f"{name}={version}: write MODEL=VERSION, as in ranker=3")
    return {name: int(version) for name, _, version in pairs}


def _bars() -> Progress:
    columns = (TextColumn("{task.fields[model]:<18}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console)


def _report(bars: Progress, model: str) -> Report:
    task = bars.add_task("", total=1.0, model=model)
    return lambda share, what: bars.update(task, completed=share, description=what)


@contextmanager
def _told() -> Iterator[None]:
    """A known failure ends the command with its message instead of a traceback."""
    try:
        yield
    except (NotEnoughData, ReleaseError, ModelUnavailable) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


def _interval(difference: tuple[float, float, float]) -> str:
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)


def _says(release: Manifest) -> str:
    versions = ", ".join(f"{model} {v}" for model, v in sorted(release.models.items()))
    return f"{release.release_id} is live: {versions}"


def _gate_word(release: Manifest) -> str:
    if release.gate is None:
        return ""
    word = "promoted" if release.gate["promoted"] else "refused"
    return f"{word}: {release.gate['reasons'][0]}"
