"""`tidemill log`: what the event log holds, its small files merged, its old hours dropped.

Knows the command line, tables and progress bars. The work is `streams.storage.compaction`'s, which
the stack does by itself as well; all of it is safe beside a running one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy import state, wiring
from deploy.settings import Settings

if TYPE_CHECKING:
    from streams.storage.compaction import Progress as Report
    from streams.storage.segments import Segments

app = typer.Typer(
    help="Look at the event log, merge its files, drop its old hours.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
console = Console(soft_wrap=True)


@app.command(epilog="Example: tidemill log show")
def show() -> None:
    """Rows, hours, files, size and times of the event log and of feedback."""
    from streams.storage.compaction import extent

    settings = state.settings_in_use()
    parts = _parts(settings)
    table = Table("", *parts)
    found = [extent(segments) for segments in parts.values()]
    table.add_row("rows", *(f"{each.rows:,}" for each in found))
    table.add_row("oldest", *(_moment(each.oldest_ms) for each in found))
    table.add_row("newest", *(_moment(each.newest_ms) for each in found))
    table.add_row("hours", *(f"{each.hours:,}" for each in found))
    table.add_row("Parquet files", *(f"{each.files:,}" for each in found))
    table.add_row("batches waiting for Parquet", *(f"{each.waiting:,}" for each in found))
    table.add_row("size, MB", *(f"{each.size_bytes / 1e6:,.1f}" for each in found))
    table.add_row("partitions", *(str(len(each.places)) for each in found))
    table.add_row("epochs", *(str(len({e for e, _ in each.places})) for each in found))
    table.add_row("dropped before", *(_moment(each.begins_at_ms) for each in found))
    console.print(table)
    console.print(f"Parquet by hour: {settings.log_dir / 'parquet'}")


@app.command(epilog="Example: tidemill log compact")
def compact() -> None:
    """Files every batch as Parquet, merges small files within their hour and sorts them."""
    from streams.storage.compaction import compact as run

    settings = state.settings_in_use()
    now_ms = wiring.clock(settings.clock).now_ms()
    for name, segments in _parts(settings).items():
        segments.gather()
        with _bar(f"compact {name}") as progress:
            done = run(segments, now_ms, progress)
        console.print(
            f"{name}: {done.files:,} files merged into {done.into:,}, {done.rows:,} rows rewritten"
        )


@app.command(epilog="Example: tidemill log retain --days 90")
def retain(
    days: Annotated[
        int | None, typer.Option(min=1, help="Instead of the setting log.retention_days.")
    ] = None,
) -> None:
    """Drops the hours of log and feedback that are older than they are to be kept."""
    from streams.contract.clock import DAY_MS
    from streams.storage.compaction import begins_at_ms
    from streams.storage.compaction import retain as run

    settings = state.settings_in_use()
    kept = days or settings.log.retention_days
    if kept is None:
        console.print("everything is kept: set log.retention_days, or give --days")
        return
    before_ms = wiring.clock(settings.clock).now_ms() - kept * DAY_MS
    for name, segments in _parts(settings).items():
        segments.gather()
        dropped = run(segments, before_ms)
        begins = _moment(begins_at_ms(segments.directory))
        console.print(f"{name}: {dropped:,} rows dropped; it begins at {begins}")


def _parts(settings: Settings) -> dict[str, Segments]:
    from streams.event_log import EventLog
    from streams.feedback.store import segments_of

    return {
        "log": EventLog(settings.log_dir).segments,
        "feedback": segments_of(settings.feedback_dir),
    }


def _moment(ms: int | None) -> str:
    if ms is None:
        return "-"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        task = bars.add_task(what, total=1.0, step="")
        yield lambda share, step: bars.update(task, completed=share, step=step)
