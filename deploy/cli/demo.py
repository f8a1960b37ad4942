"""`tidemill demo | replay`: the demo and the replayed histories as commands.

Knows options and exit codes. The work is `deploy.demo.run`'s and `deploy.simulation`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy import renamed, state, wiring
from deploy.console import ProgressDisplay, out
from deploy.settings import load

app = typer.Typer()
WorldPath = Annotated[
    Path | None,
    typer.Option("--world", help="Constants of another simulated world (TOML).", exists=True),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same users.")]


@app.command(epilog="[bold]Examples[/]  tidemill demo  ·  tidemill demo --duration 90")
def demo(
    duration: Annotated[
        float, typer.Option(help="Seconds after the page is up; 0: until Ctrl-C.")
    ] = 0.0,
    world: WorldPath = None,
    seed: Seed = 0,
) -> None:
    """The whole loop: replayed histories, a simulated crowd, training, one preference update."""
    from deploy.cli.stack import interrupted_by_signals
    from deploy.demo.run import Demo
    from deploy.simulation.config import DEFAULT_PATH, WorldConfig
    from deploy.simulation.movielens import DataUnavailable

    constants = WorldConfig.load(world or DEFAULT_PATH)
    with interrupted_by_signals():
        try:
            Demo(load(), constants, duration or None, seed).run()
        except DataUnavailable as reason:
            out.print(str(reason), style="red")
            raise typer.Exit(1) from reason
    out.print("stopped; no process is left running")


@app.command(
    epilog="[bold]Examples[/]  tidemill replay  ·  "
    "tidemill replay --dead-letters --cause unknown_kind --repair repairs:renamed_kinds"
)
def replay(
    world: WorldPath = None,
    seed: Seed = 0,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Send dead letters again instead.")
    ] = False,
    repair: Annotated[
        str | None,
        typer.Option(
            help="Repair function MODULE:FUNCTION: takes a DeadLetter; returns new bytes, or "
            "None to skip it."
        ),
    ] = None,
    cause: Annotated[
        list[str] | None, typer.Option(help="Only dead letters of this cause; may be repeated.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also dead letters that were sent again before.")
    ] = False,
    old_repair: Annotated[str | None, typer.Option("--mend", hidden=True)] = None,  # private-word
) -> None:
    """Load the catalogue and the histories into the running stack; resumes where it stopped.

    With --dead-letters, refused events are sent again to the topic they came from: unchanged
    (admission or the clock may have changed since), or as --repair returns them. Each is sent
    once, and not again when it fails again.
    """
    if old_repair is not None:
        renamed.warn("the option --mend", "--repair")  # private-word
        repair = repair or old_repair
    if dead_letters:
        from deploy.cli.dead_letters import replay_dead_letters

        return replay_dead_letters(repair, cause or [], again)
    if repair or cause or again:
        out.print("--repair, --cause and --again go with --dead-letters", style="red")
        raise typer.Exit(2)
    _replay_histories(world, seed)


def _replay_histories(world: Path | None, seed: int) -> None:
    from deploy.simulation.config import DEFAULT_PATH, WorldConfig
    from deploy.simulation.history import history
    from deploy.simulation.movielens import ACKNOWLEDGEMENT
    from deploy.simulation.movielens import load as load_data
    from deploy.simulation.replay import ReplayState
    from deploy.simulation.replay import replay as replay_history
    from deploy.simulation.truth import plant

    settings = state.read_settings(state.home_in_use(load().home.resolve()))
    constants = WorldConfig.load(world or DEFAULT_PATH)
    data = load_data()
    saved = ReplayState.load(settings.home)
    end_ms = wiring.clock(settings.clock).now_ms() - constants.replay.gap_ms
    if saved is not None:
        end_ms = saved.end_ms
    past = history(seed, end_ms=end_ms, world=constants, data=data)
    plant(data, constants, seed).write(settings.home)
    with ProgressDisplay() as display:
        task = display.add("replaying", len(past.frame))
        sent = replay_history(
            wiring.bus(settings),
            past,
            settings.home,
            progress=task.update,
            log_dir=settings.log_dir,
        )
    out.print(f"{sent:,} events sent. {ACKNOWLEDGEMENT}.")
