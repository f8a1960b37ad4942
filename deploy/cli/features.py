"""`tidemill features`: apply the declarations, rebuild, compare and show rows, report freshness.

Knows the command line and tables. The work is `features`'; all commands
need the online store, so a stack (or an external store) must run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.table import Table

from deploy import state, wiring
from deploy.console import errors, out, share_progress
from deploy.settings import Settings, load
from features.definitions import ATTRIBUTES, DEFINITIONS
from features.rows.attributes import user_attributes
from features.store import (
    DefinitionChanged,
    RebuildIdChanged,
    Status,
    StoreDown,
    plain_values,
)

if TYPE_CHECKING:
    from features.feast.registry import RegisteredFeatureStore
    from features.offline.backfill import LiveTopics
    from models.monitoring.skew import FeatureSkew, SkewReport

app = typer.Typer(
    help="Apply, rebuild, compare and show features.",
    epilog="Examples: tidemill features show user u196    tidemill features diff",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Entity = Annotated[str, typer.Argument(help="user, video, author, query, or one of your own.")]


@app.command(epilog="Example: tidemill features apply")
def apply() -> None:
    """Writes the declared features into the Feast registry; fails if stored rows do not fit them.

    Writes a Feast repository into the home too, for `feast -c`, `feast serve` and
    `FeatureStore(repo_path=...)`.
    """
    with _known_errors():
        settings = _settings()
        store = _store(settings)
        store.apply()
        folder = store.write_repository(settings.home / "feast", settings.log_dir)
    out.print(f"registry {settings.registry_path}: entities, views and services are applied")
    out.print(f"Feast repository: feast -c {folder} feature-views list")


@app.command(epilog="Example: tidemill features plan")
def plan(
    sample: Annotated[
        int, typer.Option(min=1, help="Events of the log to fold by both declarations.")
    ] = 50_000,
) -> None:
    """Says what the declared features and signals change, and what a rebuild costs. Changes nothing."""
    from features.offline.declared_change import compared, rebuild_cost, topics_line
    from features.stored_declaration import declaration_in_force, read_declaration

    settings = load()
    log_dir = state.home_in_use(settings.home) / "log"
    with _known_errors():
        before, after = read_declaration(log_dir), declaration_in_force()
    change = compared(before, after)
    if change.signals:
        out.print(f"signals: {change.signals}")
    cost = rebuild_cost(log_dir, before, after, sample)
    table = Table("entity", "features", "bytes per row", "rows")
    for entity, rows in cost.rows.items():
        sizes = [found.get(entity, 0.0) for found in (cost.bytes_before, cost.bytes_after)]
        changes = str(change.features.get(entity, "")) or "as before"
        table.add_row(entity, changes, f"{sizes[0]:,.0f} → {sizes[1]:,.0f}", f"{rows:,}")
    out.print(table)
    if cost.sample_events:
        out.print(f"bytes are means of the rows of the log's first {cost.sample_events:,} events")
    out.print(f"{cost}" if change.rebuilt else f"no row has to be rebuilt; {cost}")
    if topics := topics_line(change, settings.broker.partitions):
        out.print(topics)
    _print_stored_rows()


def _print_stored_rows() -> None:
    """Whether the rows of a store that answers follow the declaration."""
    with suppress(StoreDown, state.NotRunning):
        store = _store(_settings())
        if store.stored_rebuild_id() is not None:
            follow = "follow" if store.matches_definitions() else "do not follow"
            out.print(f"the rows in the store {follow} this declaration")


@app.command(epilog="Example: tidemill features backfill --rebuild")
def backfill(
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Start from the beginning, not from an unfinished backfill."
        ),
    ] = False,
    without_broker: Annotated[
        bool,
        typer.Option(
            "--without-broker",
            help="The topics hold no event of the log (a new or emptied broker).",
        ),
    ] = False,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Events in memory at once.")] = 400_000,
) -> None:
    """Rebuilds every row from the event log while live folds continue with newer events."""
    from features.offline.backfill import backfill as run_backfill

    with _known_errors(), share_progress("backfill") as progress:
        settings = _settings()
        report = run_backfill(
            settings.log_dir,
            _store(settings),
            live=None if without_broker else _live(settings),
            progress=progress,
            chunk_rows=chunk_rows,
            resume=not rebuild,
        )
    resumed = "resumed, " if report.resumed else ""
    out.print(
        f"{resumed}{report.events:,} events folded, {report.rows:,} rows written, {report.swept:,} "
        f"without an event in the log removed; rebuild {report.rebuild_id:08x}"
    )
    _print_log_start(settings)


@app.command(epilog="Example: tidemill features diff --limit 50")
def diff(
    limit: Annotated[int, typer.Option(min=1, help="Differences to print.")] = 20,
) -> None:
    """Compares the online rows with a rebuild from the log; exit code 1 if they differ."""
    from features.offline.diff import diff_against_log

    with _known_errors(), share_progress("fold the log") as progress:
        settings = _settings()
        now_ms = wiring.clock(settings.clock).now_ms()
        every = diff_against_log(settings.log_dir, _store(settings), now_ms, progress)
        found = list(islice(every, limit))
        more = sum(1 for _ in every)
    _print_log_start(settings)
    if not found:
        out.print("0 differences: the online rows equal a rebuild from the log")
        return
    table = Table("entity", "id", "column", "online", "rebuilt from the log")
    for each in found:
        table.add_row(each.entity, each.entity_id, each.column, str(each.online), str(each.rebuilt))
    out.print(table)
    shown = f", {len(found):,} of them here (--limit prints more)" if more else ""
    out.print(f"{len(found) + more:,} differences{shown}")
    raise typer.Exit(1)


@app.command(epilog="Example: tidemill features skew --slates 500")
def skew(
    slates: Annotated[
        int, typer.Option(min=1, help="How many of the newest slates to compare.")
    ] = 2_000,
    in_flight_s: Annotated[
        float,
        typer.Option(min=0, help="Slates this close (wall seconds) to an event are left out."),
    ] = 2.0,
) -> None:
    """Compares the features that were served with those of the log; exit code 1 if they differ."""
    from models.monitoring.served_log import ServedLog
    from models.monitoring.skew import measure_skew
    from models.training.datasets import load_training_log

    settings = _settings()
    home = settings.home / "gateway"
    now_ms = wiring.clock(settings.clock).now_ms()
    log = load_training_log(settings.log_dir, settings.feedback_dir, now_ms)
    served = ServedLog(home / "served").read(slates)
    found = measure_skew(served, log, in_flight_ms=int(in_flight_s * 1e3 * settings.clock.rate))
    _write_for_metrics(home / "skew.json", found)
    out.print(
        f"{found.slates:,} slates and {found.candidates:,} candidates compared; left out: "
        f"{found.in_flight:,} with events in flight, {found.foreign:,} that cannot be compared; "
        f"{found.stale:,} of the slates were answered from the last rows read"
    )
    if found.clean:
        text = (
            "no skew: served features equal training's" if found.slates else "no slate to compare"
        )
        out.print(text)
        return
    for each in found.skewed:
        _print_skew(each)
    raise typer.Exit(1)


def _write_for_metrics(path: Path, found: SkewReport) -> None:
    """The gateway reads it for its metrics `tidemill_feature_skew*`."""
    body = {
        "slates": found.slates,
        "candidates": found.candidates,
        "differing": {each.feature: each.differing for each in found.skewed},
        "compared": {each.feature: each.compared for each in found.skewed},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(body))


def _print_skew(each: FeatureSkew) -> None:
    out.print(
        f"{each.feature}: {each.differing:,} of {each.compared:,} differ, by {each.mean_size:.4g} "
        f"on average and {each.largest:.4g} at most ({each.served:.4g} served, "
        f"{each.offline:.4g} in the log; request {each.request_id})",
    )


@app.command(epilog="Example: tidemill features show user u196")
def show(
    entity: Entity,
    entity_id: str,
    zeros: Annotated[
        bool, typer.Option("--zeros", help="Also columns that are zero or empty.")
    ] = False,
) -> None:
    """Prints one entity's features as the gateway reads them now."""
    if entity not in DEFINITIONS:
        raise typer.BadParameter(f"{entity!r} is none of {', '.join(DEFINITIONS)}")
    with _known_errors():
        settings = _settings()
        now_ms = wiring.clock(settings.clock).now_ms()
        frame = _store(settings).read(entity, [entity_id], now_ms)
    status = Status(int(frame.status[0])).name.lower()
    table = Table("feature", "value", title=f"{entity} {entity_id}: {status}")
    attributes = user_attributes(frame)
    for name, column in frame.columns.items():
        if attributes and name == ATTRIBUTES.column:
            continue  # shown one by one below
        value = plain_values(column)[0]
        if zeros or value:
            table.add_row(name, str(value))
    for name, value in sorted(attributes.items()):
        table.add_row(f"attributes.{name}", str(value))
    out.print(table)


@app.command(epilog="Example: tidemill features freshness")
def freshness() -> None:
    """How long the newest events took from admission to readable, per entity."""
    from features.live.freshness import read_freshness as read

    with _known_errors():
        settings = _settings()
        now_ms = wiring.clock(settings.clock).now_ms()
        entries = read(_store(settings))
    if not entries:
        out.print("no live fold has written a row yet")
        return
    table = Table("entity", "last fold, s ago", "from admission to readable, ms")
    for entry in entries:
        table.add_row(
            entry.entity, f"{(now_ms - entry.folded_at_ms) / 1000:.1f}", f"{entry.lag_ms:,}"
        )
    out.print(table)


def _print_log_start(settings: Settings) -> None:
    """Retention may have dropped the oldest events: a rebuild then counts less than live folds."""
    from streams.event_log import EventLog

    begins = EventLog(settings.log_dir).begins_at_ms()
    if begins is not None:
        when = datetime.fromtimestamp(begins / 1000, UTC)
        out.print(f"the log begins at {when:%Y-%m-%d %H:%M} UTC: older events were dropped")


def _settings() -> Settings:
    """The running stack's settings; else this process's own, for an external store."""
    try:
        return state.read_settings(state.home_in_use(load().home))
    except state.NotRunning:
        settings = load()
        if settings.store.address:
            return settings
        raise


def _store(settings: Settings) -> RegisteredFeatureStore:
    return wiring.feature_store(settings)


def _live(settings: Settings) -> LiveTopics:
    """The ids of the topics that live folds read now."""
    from features.offline.backfill import LiveTopics
    from streams.contract.topics import entity_topic

    bus = wiring.bus(settings, ensure_topics=True)
    topic_ids = {entity: bus.topic_id(entity_topic(entity)) for entity in DEFINITIONS}
    return LiveTopics(settings.broker.partitions, topic_ids)


@contextmanager
def _known_errors() -> Iterator[None]:
    """Errors that the user can fix are printed as one line, without a traceback."""
    from features.stored_declaration import UnreadableDeclaration
    from streams.bus.contract import BusError

    known = (StoreDown, DefinitionChanged, RebuildIdChanged, BusError, UnreadableDeclaration)
    try:
        yield
    except known as error:
        errors.print(f"{type(error).__name__}: {error}")
        raise typer.Exit(1) from error
