"""`tidemill replay --dead-letters`: refused events mended and sent again.

Knows where a mending function is found and what the user is told. What a letter is and
how it is sent again is `streams.ingest.dead_letters`'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deploy import state, wiring
from deploy.settings import load
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.dead_letters import DeadLetter, Mend, Replayed, replay


def send_again(mend: str | None, causes: Collection[str], out: Console) -> None:
    """Sends the letters of the running stack again and prints what became of them."""
    try:
        mending = only(causes, mending_at(mend) if mend else as_it_is)
    except ValueError as reason:
        out.print(str(reason), style="red", markup=False)
        raise typer.Exit(2) from reason
    settings = state.read_settings(state.home_in_use(load().home.resolve()))
    bus = wiring.bus(settings)
    total = sum(stop - start for start, stop in bus.ends(BEHAVIOUR_DEAD).values())
    with Progress(TextColumn("letters"), BarColumn(), MofNCompleteColumn(), console=out) as bar:
        task = bar.add_task("", total=total)
        done = replay(bus, mending, progress=lambda count: bar.update(task, completed=count))
        bar.update(task, total=done.sent + done.skipped + done.cut)
    out.print(summary(done))


def as_it_is(dead: DeadLetter) -> bytes | None:
    """For letters that were right and came at the wrong time (a clock, an older mill)."""
    return dead.record.value


def only(causes: Collection[str], mend: Mend) -> Mend:
    """`mend` for letters of these causes; all others are passed over. No causes: all letters."""
    if not causes:
        return mend
    return lambda dead: mend(dead) if dead.cause.cause in causes else None


def mending_at(place: str) -> Mend:
    """The function at MODULE:FUNCTION; modules of the working folder are found too.

    Raises:
        ValueError: there is none; the message says what was looked for.
    """
    module, _, name = place.partition(":")
    if not name:
        raise ValueError(f"--mend {place}: write MODULE:FUNCTION, such as mending:renamed_kinds")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Callable[[DeadLetter], bytes | None] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as reason:
        raise ValueError(f"--mend {place}: {reason}; looked in {folder} too") from reason
    return found


def summary(done: Replayed) -> str:
    text = f"{done.sent:,} letters sent again, {done.skipped:,} passed over."
    if done.cut:
        text += (
            f" {done.cut:,} are not whole (too large for a letter) and were not sent: "
            "their mending must return the whole event."
        )
    return text
