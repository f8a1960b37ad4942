"""`tidemill replay --dead-letters`: refused events, repaired and sent again.

Knows where a repair function is found and what is printed. What a dead letter is and how it
is sent again is `streams.ingest.replay`'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path

import typer

from deploy import state, wiring
from deploy.console import ProgressDisplay, out
from deploy.settings import load
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.dead_letters import DeadLetter
from streams.ingest.replay import Repair, Replayed, replay


def replay_dead_letters(repair: str | None, causes: Collection[str], again: bool = False) -> None:
    """Sends the dead letters of the running stack again and prints the counts."""
    try:
        function = only_causes(causes, load_repair(repair) if repair else unchanged)
    except ValueError as reason:
        out.print(str(reason), style="red")
        raise typer.Exit(2) from reason
    settings = state.read_settings(state.home_in_use(load().home.resolve()))
    bus = wiring.bus(settings)
    total = sum(stop - start for start, stop in bus.ends(BEHAVIOUR_DEAD).values())
    with ProgressDisplay() as display:
        task = display.add("dead letters", total)
        done = replay(bus, function, progress=task.update, again=again)
        read = done.sent + done.skipped + done.truncated + done.known
        task.update(read, total=read)
    out.print(summary(done))


def unchanged(dead: DeadLetter) -> bytes | None:
    """For events that were refused by a wrong clock or by rules that have changed since."""
    return dead.record.value


def only_causes(causes: Collection[str], repair: Repair) -> Repair:
    """`repair` for dead letters of these causes; others are skipped. No causes: all of them."""
    if not causes:
        return repair
    return lambda dead: repair(dead) if dead.cause.cause in causes else None


def load_repair(place: str) -> Repair:
    """The function at MODULE:FUNCTION; modules of the working folder are found too.

    Raises:
        ValueError: there is none; the message says what was looked for.
    """
    module, _, name = place.partition(":")
    if not name:
        raise ValueError(f"--repair {place}: write MODULE:FUNCTION, such as repairs:renamed_kinds")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Callable[[DeadLetter], bytes | None] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as reason:
        raise ValueError(f"--repair {place}: {reason}; looked in {folder} too") from reason
    return found


def summary(done: Replayed) -> str:
    text = f"{done.sent:,} dead letters sent again, {done.skipped:,} skipped."
    if done.known:
        text += (
            f" {done.known:,} were sent again before and are not sent twice (--again sends them)."
        )
    if done.truncated:
        text += (
            f" {done.truncated:,} were truncated (too large for a dead letter) and were not sent: "
            "for these the repair function must return the whole event."
        )
    return text
