"""The demo's final table: events, requests, models, arms and simulated rates.

Knows figures and their format. Does not know where they were counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from deploy.simulation.movielens import ACKNOWLEDGEMENT
from deploy.simulation.tally import Comparison, Latency, Rate


@dataclass(frozen=True)
class Flow:
    """Events since the start. `folded` counts the user fold; None: not known."""

    events_in: int | None
    folded: int | None
    dead: int | None


@dataclass(frozen=True)
class Result:
    """Everything the table shows.

    live_s: model -> seconds from the page to its first release; verdict_s: to the update's
    verdict, None without one. models: model -> version at the end. phases: clicks and orders of
    the ranker's arm, {} unless the update was promoted.
    """

    flow: Flow
    latencies: Mapping[str, Latency]
    failures: Mapping[str, int]
    fallbacks: Mapping[str, int]
    returns: tuple[int, int]  # dormant users who came back, of those shown a trajectory
    live_s: Mapping[str, float]
    verdict_s: float | None
    models: Mapping[str, int]
    gate: str
    reasons: Sequence[str]
    arms: Comparison
    phases: Mapping[str, tuple[Rate, Rate]] = field(default_factory=dict)


def table(result: Result) -> Table:
    rows = Table(title="Result of the demo", title_justify="left", show_header=False)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    _flow(rows, result.flow)
    rows.add_section()
    _answers(rows, result)
    rows.add_section()
    _models(rows, result)
    rows.add_section()
    _arms(rows, result.arms)
    for phase, (clicks, orders) in result.phases.items():
        rows.add_section()
        rows.add_row(f"clicks, ranker, {phase}", _percent(clicks))
        rows.add_row(f"orders, ranker, {phase}", _percent(orders))
    rows.caption = (
        f"Histories are replayed: {ACKNOWLEDGEMENT}. Reactions are simulated. Rates are per item "
        "shown, with 95 % intervals over users. The arms are served at the same time, users "
        "hashed; popularity explores nothing. The ceiling is computed from the simulation's "
        "truth: the oracle's best films for the same visits."
    )
    rows.caption_justify = "left"
    return rows


def _models(rows: Table, result: Result) -> None:
    live = (f"{name} {seconds:.0f} s" for name, seconds in result.live_s.items())
    rows.add_row("live, after the page", ", ".join(live) or "none")
    rows.add_row("models at the end", _versions(result.models))
    at = "" if result.verdict_s is None else f", {result.verdict_s:.0f} s after the page"
    rows.add_row("the update's gate", result.gate + at)
    for reason in result.reasons:
        rows.add_row("", reason)


def _arms(rows: Table, arms: Comparison) -> None:
    for arm, clicks in arms.clicks.items():
        rows.add_row(f"clicks, {arm}", _percent(clicks))
    gap = arms.difference
    if math.isnan(gap.value):
        rows.add_row("ranker - popularity", "not both arms were shown")
    else:
        spread = f"[{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        rows.add_row("ranker - popularity", f"{100 * gap.value:+.2f} percentage points {spread}")
    expected = f"{arms.ceiling:.2%}, expected on the same visits"
    ceiling = "nothing shown" if math.isnan(arms.ceiling) else expected
    rows.add_row("clicks, oracle (ceiling)", ceiling)
    for arm, orders in arms.orders.items():
        rows.add_row(f"orders, {arm}", _percent(orders))


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


def _percent(found: Rate) -> str:
    if math.isnan(found.value):
        return "nothing shown"
    spread = f"[{found.low:.2%}, {found.high:.2%}]"
    return f"{found.value:.2%} {spread} of {found.n:,} shown"
