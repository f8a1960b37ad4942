"""The demo's last word: one table of what went through the mill.

Knows figures and how they are written. Does not know where they were counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from deploy.simulation.movielens import ACKNOWLEDGEMENT
from deploy.simulation.tally import Latency, Rate


@dataclass(frozen=True)
class Flow:
    """Events since the start. `folded` counts the user fold; None: it could not be asked."""

    events_in: int | None
    folded: int | None
    dead: int | None


@dataclass(frozen=True)
class Result:
    """Everything the table shows. Versions are model -> version; {} where none went live."""

    flow: Flow
    latencies: Mapping[str, Latency]
    failures: Mapping[str, int]
    fallbacks: Mapping[str, int]
    returns: tuple[int, int]  # silent users who came back, of those called on
    before: Mapping[str, int]
    after: Mapping[str, int]
    gate: str
    reasons: Sequence[str]
    rates: Mapping[str, tuple[Rate, Rate]] = field(default_factory=dict)  # phase -> clicks, orders


def table(result: Result) -> Table:
    made = Table(title="What went through the mill", title_justify="left", show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    _flow(made, result.flow)
    made.add_section()
    _answers(made, result)
    made.add_section()
    made.add_row("models before the update", _versions(result.before))
    made.add_row("models after the update", _versions(result.after))
    made.add_row("the gate", result.gate)
    for reason in result.reasons:
        made.add_row("", reason)
    made.add_section()
    for phase, (clicks, orders) in result.rates.items():
        made.add_row(f"simulated click rate, {phase}", _rate(clicks))
        made.add_row(f"simulated order rate, {phase}", _rate(orders))
    made.caption = (
        f"Histories are replayed: {ACKNOWLEDGEMENT}. Reactions are simulated. Rates are per film "
        "shown, intervals 95 % over users; two phases differ in time and users as well."
    )
    made.caption_justify = "left"
    return made


def _flow(made: Table, flow: Flow) -> None:
    made.add_row("events in", _count(flow.events_in))
    made.add_row("folded into features", _count(flow.folded))
    made.add_row("dead letters", _count(flow.dead))


def _answers(made: Table, result: Result) -> None:
    for surface, took in result.latencies.items():
        text = f"{took.count:,} answered, p50 {took.p50_ms:.0f} ms, p99 {took.p99_ms:.0f} ms"
        failed = result.failures.get(surface, 0)
        made.add_row(f"requests, {surface}", text + (f", {failed} failed" if failed else ""))
    for surface in sorted(set(result.failures) - set(result.latencies)):
        made.add_row(f"requests, {surface}", f"none answered, {result.failures[surface]} failed")
    lost = ", ".join(f"{name} {n:,}" for name, n in sorted(result.fallbacks.items()))
    made.add_row("fallbacks", lost or "none")
    came, called = result.returns
    made.add_row("silent users who came back", f"{came} of {called} called on (simulated)")


def _count(n: int | None) -> str:
    return "not known: the broker or the worker did not answer" if n is None else f"{n:,}"


def _versions(models: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {v}" for name, v in sorted(models.items())) or "none live"


def _rate(found: Rate) -> str:
    if math.isnan(found.value):
        return "nothing shown"
    spread = f"[{found.low:.2%}, {found.high:.2%}]"
    return f"{found.value:.2%} {spread} of {found.n:,} shown"
