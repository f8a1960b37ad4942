"""`tidemill log`: show the event log, merge its small files, drop its old hours.

Knows the command line and tables. The work is `streams.storage.compaction`'s, which a running
stack does by itself as well; the commands are safe beside it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deploy import state, wiring
from deploy.console import out, share_progress
from deploy.settings import Settings

if TYPE_CHECKING:
    from streams.storage.segments import Segments

app = typer.Typer(
    help="Show the event log, merge its files, drop its old hours.",
    epilog="Examples: tidemill log show    tidemill log retain --days 90",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog="Example: tidemill log show")
def show() -> None:
    """Rows, hours, files, size and times of the event log and of feedback."""
    from models.monitoring.served_log import ServedLog, pool_cost
    from streams.storage.compaction import log_stats

    settings = state.settings_in_use()
    segments_by_name = _segments(settings)
    table = Table("", *segments_by_name)
    found = [log_stats(segments) for segments in segments_by_name.values()]
    table.add_row("rows", *(f"{each.rows:,}" for each in found))
    table.add_row("oldest", *(_moment(each.oldest_ms) for each in found))
    table.add_row("newest", *(_moment(each.newest_ms) for each in found))
    table.add_row("hours", *(f"{each.hours:,}" for each in found))
    table.add_row("Parquet files", *(f"{each.files:,}" for each in found))
    table.add_row("batches not yet in Parquet", *(f"{each.pending_batches:,}" for each in found))
    table.add_row("size, MB", *(f"{each.size_bytes / 1e6:,.1f}" for each in found))
    table.add_row("partitions", *(str(len(each.partitions)) for each in found))
    table.add_row(
        "topic ids", *(str(len({topic_id for topic_id, _ in each.partitions})) for each in found)
    )
    table.add_row("dropped before", *(_moment(each.begins_at_ms) for each in found))
    out.print(table)
    out.print(f"Parquet by hour: {settings.log_dir / 'parquet'}")
    for folder in sorted(settings.home.glob("gateway*/served")):
        rows = ServedLog(folder).read()
        pools, size = pool_cost(rows)
        out.print(
            f"{folder.parent.name}: {rows.height:,} served slates, {pools:,} with their pool, "
            f"{size:,.0f} bytes a pool"
        )


@app.command(epilog="Example: tidemill log compact")
def compact() -> None:
    """Writes every batch as Parquet, merges small files within their hour and sorts them."""
    from streams.storage.compaction import compact as run_compaction

    settings = state.settings_in_use()
    now_ms = wiring.clock(settings.clock).now_ms()
    for name, segments in _segments(settings).items():
        segments.flush()
        with share_progress(f"compact {name}") as progress:
            done = run_compaction(segments, now_ms, progress)
        out.print(
            f"{name}: {done.files:,} files merged into {done.into:,}, {done.rows:,} rows rewritten"
        )


@app.command(epilog="Example: tidemill log retain --days 90")
def retain(
    days: Annotated[
        int | None, typer.Option(min=1, help="Overrides the setting log.retention_days.")
    ] = None,
) -> None:
    """Drops the hours of log and feedback that are older than the retention."""
    from streams.contract.clock import DAY_MS
    from streams.storage.compaction import begins_at_ms
    from streams.storage.compaction import retain as apply_retention

    settings = state.settings_in_use()
    kept_days = days or settings.log.retention_days
    if kept_days is None:
        out.print("everything is kept: set log.retention_days, or give --days")
        return
    before_ms = wiring.clock(settings.clock).now_ms() - kept_days * DAY_MS
    for name, segments in _segments(settings).items():
        segments.flush()
        dropped = apply_retention(segments, before_ms)
        begins = _moment(begins_at_ms(segments.directory))
        out.print(f"{name}: {dropped:,} rows dropped; it begins at {begins}")


def _segments(settings: Settings) -> dict[str, Segments]:
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
