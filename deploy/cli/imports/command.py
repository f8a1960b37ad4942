"""`tidemill import`: files and tables of other systems as events, items and users; `tidemill export`.

Knows the command line and tables. The work is that of `streams.imports` and
`features.offline.export`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deploy import state, wiring
from deploy.console import ProgressDisplay, errors, out, share_progress, styled
from deploy.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.imports.check import Verdict
    from streams.imports.mapping import Mapping
    from streams.imports.source import Place

CHECKED_ROWS = 10_000  # before anything is sent
app = typer.Typer()


@app.command(
    "import",
    epilog="[bold]Examples[/]  tidemill import --mappings  ·  tidemill import '2019-*.csv.gz' --map rees46 "
    "--dry-run  ·  tidemill import shop.csv --map shop.toml --newest now  ·  tidemill import "
    "postgresql://db/shop --query 'SELECT * FROM orders ORDER BY id' --map orders.toml",
)
def import_(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Files, patterns in quotes, or postgresql://…")
    ] = None,
    mapping: Annotated[
        str, typer.Option("--map", help="A shipped mapping, or a TOML file of your own.")
    ] = "",
    query: Annotated[str, typer.Option(help="What to read from a database.")] = "",
    dry_run: Annotated[
        bool, typer.Option(help="Show ten rows as they would arrive, and count the refused.")
    ] = False,
    newest: Annotated[
        str,
        typer.Option(help="`now` or a day such as 2026-01-31: shift all times by one constant."),
    ] = "",
    mappings: Annotated[
        bool, typer.Option("--mappings", help="List the shipped mappings.")
    ] = False,
    show: Annotated[str, typer.Option(help="Print a shipped mapping, to copy and change.")] = "",
) -> None:
    """Load events, items or users from files and databases. Resumes where it stopped."""
    from streams.imports.mapping import BadMapping, load, shipped_text
    from streams.imports.source import UnreadableFile, find

    try:
        if mappings:
            out.print(_shipped_table())
        elif show:
            out.print(shipped_text(show), end="")
        elif not sources or not mapping:
            raise BadMapping("name a file and --map NAME; `tidemill import --mappings` lists them")
        else:
            _import(find(sources, query), load(mapping), dry_run=dry_run, newest=newest)
    except (BadMapping, UnreadableFile) as error:
        errors.print(styled((type(error).__name__, "red"), ": ", str(error)))
        raise typer.Exit(2) from None


@app.command(epilog="Example: tidemill export ./backup --what log,feedback")
def export(
    folder: Annotated[Path, typer.Argument(help="Where the files are written.")],
    what: Annotated[str, typer.Option(help="Of log, features and feedback.")] = (
        "log,features,feedback"
    ),
) -> None:
    """Write the event log, every entity's features and feedback as Parquet."""
    from features.offline.export import export_feedback, export_log

    chosen = set(what.split(","))
    if unknown := chosen - {"log", "features", "feedback"}:
        raise typer.BadParameter(f"{sorted(unknown)[0]!r} is none of log, features, feedback")
    settings, rows = state.settings_in_use(), dict[str, int]()
    if "log" in chosen:
        with share_progress("log"):
            rows["log"] = export_log(settings.log_dir, folder)
    if "feedback" in chosen:
        rows["feedback"] = export_feedback(settings.feedback_dir, folder)
    if "features" in chosen:
        rows |= _export_features(settings, folder)
    for name, count in rows.items():
        out.print(f"{folder / name}.parquet: {count:,} rows")


def _export_features(settings: Settings, folder: Path) -> dict[str, int]:
    """The rows of each file."""
    from features.definitions import DEFINITIONS
    from features.offline.export import export_features
    from features.store import StoreDown

    if not settings.store.address:
        raise state.NotRunning("features are read from the online store: run `tidemill up` first")
    store, now_ms = wiring.feature_store(settings), wiring.clock(settings.clock).now_ms()
    rows = dict[str, int]()
    try:
        for entity in DEFINITIONS:
            name = f"features_{entity}"
            with share_progress(name) as progress:
                ids = sorted(set(store.ids(entity)))
                rows[name] = export_features(store, entity, ids, now_ms, folder, progress)
    except StoreDown as error:
        errors.print(f"the features need the online store: {error}")
        raise typer.Exit(1) from None
    return rows


def _shipped_table() -> Table:
    from streams.imports.mapping import shipped

    table = Table("mapping", "target", "of", box=None, pad_edge=False)
    for name, mapping in shipped().items():
        table.add_row(name, mapping.target, mapping.about)
    return table


def _import(places: list[Place], mapping: Mapping, *, dry_run: bool, newest: str) -> None:
    settings = state.settings_in_use()
    now_ms = wiring.clock(settings.clock).now_ms()
    target_ms = _newest_ms(newest, now_ms)
    shift_ms = 0 if target_ms is None else _shift(places, mapping, target_ms)
    limit = None if dry_run else CHECKED_ROWS
    verdict = _checked(places, mapping, settings, shift_ms, limit)
    if dry_run:
        _print_verdict(verdict, mapping, shift_ms)
        return
    if not verdict.accepted:
        _print_verdict(verdict, mapping, shift_ms)
        errors.print(f"none of the first {verdict.rows:,} rows would be accepted: nothing was sent")
        raise typer.Exit(2)
    _send(places, mapping, settings, shift_ms)


def _newest_ms(newest: str, now_ms: int) -> int | None:
    from streams.imports.mapping import BadMapping

    if newest in ("", "now"):
        return now_ms if newest else None
    try:
        day = datetime.fromisoformat(newest)
    except ValueError:
        raise BadMapping(f"--newest {newest}: write `now` or a day such as 2026-01-31") from None
    return int((day if day.tzinfo else day.replace(tzinfo=UTC)).timestamp() * 1000)


def _shift(places: Iterable[Place], mapping: Mapping, target_ms: int) -> int:
    """The constant that puts the newest event of all places at `target_ms`."""
    from streams.imports.mapping import BadMapping
    from streams.imports.source import opened

    if "event_time_ms" not in mapping.fields:
        raise BadMapping("--newest shifts event_time_ms, which this mapping does not have")
    found = []
    for place in places:
        with opened(place, mapping) as rows:
            if (newest_ms := rows.newest_ms()) is not None:
                found.append(newest_ms)
    return target_ms - max(found) if found else 0


def _checked(
    places: Iterable[Place], mapping: Mapping, settings: Settings, shift_ms: int, limit: int | None
) -> Verdict:
    from streams.imports.check import Verdict, checker
    from streams.imports.source import opened
    from streams.ingest.admission import AdmissionLimits

    now_ms = wiring.clock(settings.clock).now_ms()
    check = checker(mapping.target, now_ms, AdmissionLimits(**settings.admission.model_dump()))
    verdict = Verdict()
    with ProgressDisplay() as display:
        task = display.add("checking rows", limit or 0)
        for place in places:
            with opened(place, mapping) as rows:
                for piece in rows.pieces(shift_ms=shift_ms, now_ms=now_ms):
                    check(piece if limit is None else piece.slice(0, limit - verdict.rows), verdict)
                    task.update(verdict.rows)
                    if limit is not None and verdict.rows >= limit:
                        return verdict
    return verdict


def _send(places: list[Place], mapping: Mapping, settings: Settings, shift_ms: int) -> None:
    from streams.imports.check import Verdict
    from streams.imports.send import Progress, send, topic_of
    from streams.imports.source import opened

    home: Path = state.home_in_use(settings.home.resolve())
    settings = state.read_settings(home)
    bus = wiring.bus(settings)
    topic_id = bus.topic_id(topic_of(mapping))
    now_ms = wiring.clock(settings.clock).now_ms()
    total, resumed = Verdict(), 0
    with ProgressDisplay() as display:
        for place in places:
            progress = Progress.load(home / "imports", place, mapping, topic_id)
            if progress.shift_ms is None:
                progress.shift_ms = shift_ms  # a resumed import shifts as it began
            resumed += progress.sent
            task = display.add(place.shown, 0)
            with opened(place, mapping) as rows:
                pieces = rows.pieces(shift_ms=progress.shift_ms, now_ms=now_ms)
                done = send(bus, pieces, mapping, progress, task.update)
            task.update(progress.sent, total=progress.sent)
            total.rows += done.rows
            total.skipped += done.skipped
    sent = total.rows - total.skipped.total()
    out.print(f"{sent:,} messages sent to `{topic_of(mapping)}`; {resumed:,} rows were sent before")
    _print_skipped(total)
    out.print("Refused ones are in the topic `behaviour.dead` with their cause, and on the page.")


def _print_verdict(verdict: Verdict, mapping: Mapping, shift_ms: int) -> None:
    from streams.contract.clock import DAY_MS

    table = Table("as it would arrive", "refused because", box=None, pad_edge=False)
    for message, problem in verdict.shown:
        table.add_row(message, problem or "-")
    out.print(table)
    out.print(
        f"\n{verdict.rows:,} rows: {verdict.accepted:,} {mapping.target} accepted, "
        f"{verdict.refused.total():,} refused, {verdict.skipped.total():,} left out by the mapping"
    )
    for cause, count in verdict.refused.most_common(10):
        out.print(f"  refused {count:,}: {cause}")
    if mapping.target == "events" and any(
        cause.startswith("wrong_type: event_time_ms") for cause in verdict.refused
    ):
        unit = mapping.fields["event_time_ms"].unit
        out.print(
            f"  times that are not of the unit {unit!r}: set it in the mapping, for example "
            'event_time_ms = { column = "time", unit = "%d.%m.%Y %H:%M:%S", zone = "Europe/Berlin" }'
        )
    _print_skipped(verdict)
    if verdict.oldest_ms is None or verdict.newest_ms is None or mapping.target != "events":
        return
    shifted = f", shifted by {shift_ms / DAY_MS:+,.1f} days" if shift_ms else ""
    out.print(f"times: {_moment(verdict.oldest_ms)} to {_moment(verdict.newest_ms)}{shifted}")
    month, horizon = verdict.older_than_ms.values()
    if month and not shift_ms:
        out.print(
            f"  {month:,} are older than 30 days, {horizon:,} than 400 days. Imported rows count at "
            "their own time: the log, totals, lists and training have all of them, windows of an "
            "hour to 30 days only what falls into them, and log.retention_days drops old hours. "
            "--newest now shifts all by one constant, so that the windows are filled."
        )


def _print_skipped(verdict: Verdict) -> None:
    for kind, count in verdict.skipped.most_common(10):
        out.print(f"  left out {count:,}: the mapping names no kind for {kind!r}")


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
