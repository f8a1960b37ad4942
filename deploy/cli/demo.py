"""`tidemill demo | replay`: the world as commands.

Knows options and exit codes. The work is `deploy.demo.run`'s and `deploy.simulation`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deploy import state, wiring
from deploy.settings import load

app = typer.Typer()
out = Console(soft_wrap=True)
World = Annotated[
    Path | None, typer.Option("--world", help="Another world's constants (TOML).", exists=True)
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same people.")]


@app.command(epilog="[bold]Examples[/]  tidemill demo  ·  tidemill demo --duration 90")
def demo(
    duration: Annotated[
        float, typer.Option(help="Seconds from the first page; 0 goes on until Ctrl-C.")
    ] = 0.0,
    world: World = None,
    seed: Seed = 0,
) -> None:
    """The whole loop: replayed histories, a simulated crowd, training, one preference update."""
    from deploy.cli.stack import ends_on_signals
    from deploy.demo.run import Demo
    from deploy.simulation.config import DEFAULT_PATH, WorldConfig
    from deploy.simulation.movielens import DataUnavailable

    constants = WorldConfig.load(world or DEFAULT_PATH)
    with ends_on_signals():
        try:
            Demo(load(), constants, out, duration or None, seed).run()
        except DataUnavailable as reason:
            out.print(str(reason), style="red", markup=False)
            raise typer.Exit(1) from reason
    out.print("stopped; nothing is left running")


@app.command(
    epilog="[bold]Examples[/]  tidemill replay  ·  "
    "tidemill replay --dead-letters --cause unknown_kind --mend mending:renamed_kinds"
)
def replay(
    world: World = None,
    seed: Seed = 0,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Send mended dead letters again instead.")
    ] = False,
    mend: Annotated[
        str | None,
        typer.Option(help="Your mending, MODULE:FUNCTION: a DeadLetter in, bytes or None out."),
    ] = None,
    cause: Annotated[
        list[str] | None, typer.Option(help="Only letters of this cause; may be repeated.")
    ] = None,
) -> None:
    """Load the catalogue and the histories into the running stack; resumes where it stopped.

    With --dead-letters it sends refused events again to where they came from: as they are
    (admission may have changed, or the clock), or as --mend returns them.
    """
    if dead_letters:
        from deploy.cli.dead_letters import send_again

        return send_again(mend, cause or [], out)
    if mend or cause:
        out.print("--mend and --cause go with --dead-letters", style="red")
        raise typer.Exit(2)
    from deploy.simulation.config import DEFAULT_PATH, WorldConfig
    from deploy.simulation.history import history
    from deploy.simulation.movielens import ACKNOWLEDGEMENT
    from deploy.simulation.movielens import load as load_data
    from deploy.simulation.replay import Mark
    from deploy.simulation.replay import replay as send
    from deploy.simulation.truth import plant

    settings = state.read_settings(state.home_in_use(load().home.resolve()))
    constants = WorldConfig.load(world or DEFAULT_PATH)
    data = load_data()
    mark = Mark.load(settings.home)
    end_ms = wiring.clock(settings.clock).now_ms() - constants.replay.gap_ms
    if mark is not None:
        end_ms = mark.end_ms
    past = history(seed, end_ms=end_ms, world=constants, data=data)
    plant(data, constants, seed).write(settings.home)
    with Progress(TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), console=out) as bar:
        task = bar.add_task("", total=len(past.frame))
        sent = send(
            wiring.bus(settings),
            past,
            settings.home,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            log_dir=settings.log_dir,
        )
    out.print(f"{sent:,} events sent. {ACKNOWLEDGEMENT}.")
