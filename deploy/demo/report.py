"""The demo's final table: events, requests, models and simulated rates.

Knows figures and their format. Does not know where they were counted.
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
    """Events since the start. `folded` counts the user fold; None: not known."""

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
    returns: tuple[int, int]  # dormant users who came back, of those shown a trajectory
    before: Mapping[str, int]
    after: Mapping[str, int]
    gate: str
    reasons: Sequence[str]
    rates: Mapping[str, tuple[Rate, Rate]] = field(default_factory=dict)  # phase -> clicks, orders


def table(result: Result) -> Table:
    rows = Table(title="Result of the demo", title_justify="left", show_header=False)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    _flow(rows, result.flow)
    rows.add_section()
    _answers(rows, result)
    rows.add_section()
    rows.add_row("models before the update", _versions(result.before))
    rows.add_row("models after the update", _versions(result.after))
    rows.add_row("the gate", result.gate)
    for reason in result.reasons:
        rows.add_row("", reason)
    rows.add_section()
    for phase, (clicks, orders) in result.rates.items():
        rows.add_row(f"simulated click rate, {phase}", _rate(clicks))
        rows.add_row(f"simulated order rate, {phase}", _rate(orders))
    rows.caption = (
        f"Histories are replayed: {ACKNOWLEDGEMENT}. Reactions are simulated. Rates are per item "
        "shown, with 95 % intervals over users; phases differ in time and users as well."
    )
    rows.caption_justify = "left"
    return rows


def _flow(rows: Table, flow: Flow) -> None:
    rows.add_row("events in", _count(flow.events_in))
    rows.add_row("folded into features", _count(flow.folded))
    rows.add_row("dead letters", _count(flow.dead))


def _answers(rows: Table, result: Result) -> None:
    for surface, took in result.latencies.items():
        text = f"{took.count:,} answered, p50 {took.p50_ms:.0f} ms, p99 {took.p99_ms:.0f} ms"
        failed = result.failures.get(surface, 0)
        rows.add_row(f"requests, {surface}", text + (f", {failed} failed" if failed else ""))
    for surface in sorted(set(result.failures) - set(result.latencies)):
        rows.add_row(f"requests, {surface}", f"none answered, {result.failures[surface]} failed")
    lost = ", ".join(f"{name} {n:,}" for name, n in sorted(result.fallbacks.items()))
    rows.add_row("fallbacks", lost or "none")
    came, called = result.returns
    rows.add_row(
        "dormant users who came back", f"{came} of {called} shown a trajectory (simulated)"
    )


def _count(n: int | None) -> str:
    return "unknown: the broker or the worker did not answer" if n is None else f"{n:,}"


def _versions(models: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {v}" for name, v in sorted(models.items())) or "none live"


def _rate(found: Rate) -> str:
    if math.isnan(found.value):
        return "nothing shown"
    spread = f"[{found.low:.2%}, {found.high:.2%}]"
    return f"{found.value:.2%} {spread} of {found.n:,} shown"
