"""`tidemill features`: apply the declarations, rebuild rows, compare, look, and tell freshness.

Knows the command line, tables and progress bars. The work is `features`'; all commands
need the online store, so a stack (or an external store) must run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy import state, wiring
from deploy.settings import Settings, load
from features.store import DefinitionChanged, GenerationChanged, Status, StoreDown

if TYPE_CHECKING:
    from features.feast.registry import RegisteredFeatureStore
    from features.offline.backfill import Live
    from features.offline.backfill import Progress as Report
    from models.monitoring.skew import Skewed, SkewReport

app = typer.Typer(
    help="Apply, rebuild, compare and look at features.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
console = Console(soft_wrap=True)

Entity = Literal["user", "video", "author", "query"]


@app.command(epilog="Example: tidemill features apply")
def apply() -> None:
    """Writes the declared features into the Feast registry; refuses what stored rows do not fit."""
    with _told():
        settings = _settings()
        _store(settings).apply()
    console.print(f"registry {settings.registry_path}: entities, views and services are applied")


@app.command(epilog="Example: tidemill features backfill --rebuild")
def backfill(
    rebuild: Annotated[
        bool, typer.Option(help="Start anew, even where an unfinished backfill could go on.")
    ] = False,
    without_broker: Annotated[
        bool, typer.Option(help="The topics hold nothing of the log (a new or emptied broker).")
    ] = False,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Events in memory at once.")] = 400_000,
) -> None:
    """Rebuilds every row from the event log; live folds go on beside it and count the rest."""
    from features.offline.backfill import backfill as run

    with _told(), _bar("backfill") as progress:
        settings = _settings()
        report = run(
            settings.log_dir,
            _store(settings),
            live=None if without_broker else _live(settings),
            progress=progress,
            chunk_rows=chunk_rows,
            resume=not rebuild,
        )
    went = "resumed, " if report.resumed else ""
    console.print(
        f"{went}{report.events:,} events folded, {report.rows:,} rows written, {report.swept:,} "
        f"without support in the log removed; generation {report.generation:08x}"
    )
    _tell_beginning(settings)


@app.command(epilog="Example: tidemill features diff --limit 50")
def diff(
    limit: Annotated[int, typer.Option(min=1, help="Differences to print.")] = 20,
) -> None:
    """Compares the online rows with the log's own; exit code 1 when they differ."""
    from features.offline.diff import diff as run

    with _told(), _bar("fold the log") as progress:
        settings = _settings()
        now_ms = wiring.clock(settings.clock).now_ms()
        every = run(settings.log_dir, _store(settings), now_ms, progress)
        found = list(islice(every, limit))
        more = sum(1 for _ in every)
    _tell_beginning(settings)
    if not found:
        console.print("0 differences: the online rows are what the log says")
        return
    table = Table("entity", "id", "column", "online", "rebuilt from the log")
    for each in found:
        table.add_row(each.entity, each.entity_id, each.column, str(each.online), str(each.rebuilt))
    console.print(table)
    shown = f", {len(found):,} of them here (--limit prints more)" if more else ""
    console.print(f"{len(found) + more:,} differences{shown}")
    raise typer.Exit(1)


@app.command(epilog="Example: tidemill features skew --slates 500")
def skew(
    slates: Annotated[int, typer.Option(min=1, help="The newest slates to compare.")] = 2_000,
    in_flight_s: Annotated[
        float,
        typer.Option(min=0, help="Slates this close (wall seconds) to an event are left out."),
    ] = 2.0,
) -> None:
    """Compares what the ranker saw with what training would read; exit code 1 where they differ."""
    from models.monitoring.served_log import ServedLog
    from models.monitoring.skew import skew as judge
    from models.training.datasets import load_training_log

    settings = _settings()
    home = settings.home / "gateway"
    now_ms = wiring.clock(settings.clock).now_ms()
    log = load_training_log(settings.log_dir, settings.feedback_dir, now_ms)
    served = ServedLog(home / "served").read(slates)
    found = judge(served, log, in_flight_ms=int(in_flight_s * 1e3 * settings.clock.rate))
    _keep_for_metrics(home / "skew.json", found)
    console.print(
        f"{found.slates:,} slates and {found.candidates:,} candidates compared; left out: "
        f"{found.in_flight:,} with events in flight, {found.foreign:,} that cannot be compared; "
        f"{found.stale:,} of the slates were answered from last good rows"
    )
    if found.clean:
        said = "no skew: what was served is what training reads" if found.slates else "no verdict"
        console.print(said)
        return
    for each in found.skewed:
        _tell(each)
    raise typer.Exit(1)


def _keep_for_metrics(path: Path, found: SkewReport) -> None:
    """The gateway's /metrics tells it from then on (`tidemill_feature_skew`)."""
    differing = {each.feature: each.differing for each in found.skewed}
    body = {"slates": found.slates, "candidates": found.candidates, "differing": differing}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(body))


def _tell(each: Skewed) -> None:
    console.print(
        f"{each.feature}: {each.differing:,} of {each.compared:,} differ, by {each.mean_size:.4g} "
        f"in the mean and {each.largest:.4g} at most ({each.served:.4g} served, "
        f"{each.joined:.4g} in the log; request {each.request_id})",
        markup=False,
    )


@app.command(epilog="Example: tidemill features show user 196")
def show(
    entity: Entity,
    entity_id: str,
    zeros: Annotated[bool, typer.Option(help="Also the columns that are zero or empty.")] = False,
) -> None:
    """Prints one entity's features as a reader gets them now."""
    with _told():
        settings = _settings()
        now_ms = wiring.clock(settings.clock).now_ms()
        frame = _store(settings).read(entity, [entity_id], now_ms)
    status = Status(int(frame.status[0])).name.lower()
    table = Table("feature", "value", title=f"{entity} {entity_id}: {status}")
    for name, column in frame.columns.items():
        value = column[0]
        if zeros or (len(value) if isinstance(value, list) else value):
            table.add_row(name, str(value))
    console.print(table)


@app.command(epilog="Example: tidemill features freshness")
def freshness() -> None:
    """How long the newest events took from admission to readable, per entity."""
    from features.live.freshness import freshness as read

    with _told():
        settings = _settings()
        now_ms = wiring.clock(settings.clock).now_ms()
        entries = read(_store(settings))
    if not entries:
        console.print("no live fold has written yet")
        return
    table = Table("entity", "last fold, s ago", "admission to readable, ms")
    for entry in entries:
        table.add_row(
            entry.entity, f"{(now_ms - entry.folded_at_ms) / 1000:.1f}", f"{entry.lag_ms:,}"
        )
    console.print(table)


def _tell_beginning(settings: Settings) -> None:
    """A rebuild from a log that retention has shortened is not the whole story."""
    from streams.event_log import EventLog

    begins = EventLog(settings.log_dir).begins_at_ms()
    if begins is not None:
        when = datetime.fromtimestamp(begins / 1000, UTC)
        console.print(f"the log begins at {when:%Y-%m-%d %H:%M} UTC: what came before was dropped")


def _settings() -> Settings:
    """Those of the running stack; else this process's, for a store elsewhere."""
    try:
        return state.read_settings(state.home_in_use(load().home))
    except state.NotRunning:
        settings = load()
        if settings.store.address:
            return settings
        raise


def _store(settings: Settings) -> RegisteredFeatureStore:
    return wiring.feature_store(settings)


def _live(settings: Settings) -> Live:
    """The epochs of the topics that live folds read now."""
    from features.offline.backfill import Live
    from streams.contract.topics import ENTITY_TOPIC

    bus = wiring.bus(settings, ensure_topics=True)
    epochs = {entity: bus.epoch(topic) for entity, topic in _entities(ENTITY_TOPIC)}
    return Live(settings.broker.partitions, epochs)


def _entities(topics: dict[str, str]) -> Iterator[tuple[Entity, str]]:
    from features.definitions import DEFINITIONS

    yield from ((entity, topics[entity]) for entity in DEFINITIONS)


@contextmanager
def _told() -> Iterator[None]:
    """What a person can mend, in one line and without a traceback."""
    from streams.bus.contract import BusError

    try:
        yield
    except (StoreDown, DefinitionChanged, GenerationChanged, BusError) as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
        raise typer.Exit(1) from error


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        task = bars.add_task(what, total=1.0, step="")
        yield lambda share, step: bars.update(task, completed=share, step=step)
