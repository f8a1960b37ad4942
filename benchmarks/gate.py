"""Error rates of the gate between a challenger and the live ranker, where the truth is known.

A world of users, pools of 30 candidates and slates of 6, drawn slot by slot by the incumbent
(Plackett-Luce). A candidate's appeal is hidden; the incumbent sees it with noise. A challenger
moves the incumbent's log-preferences towards the appeal, or away from it, beside noise of its
own, so far that its true value differs by the stated share. Truth: the expected number of actions
a slate, over 200,000 slates of the same draws. Each update has its own users, pools and feedback,
and its verdict is that of `models.alignment.gate`, with the settings that updates use.

Traffic of a day: 1,200 users with 5 slates each; the whole pool is logged for a tenth of them.

Bars, set before any measurement, over 200 updates of each kind:

- A challenger that is truly worse by 3 % goes live at most 5 % of the time.
- One that is truly better by 5 % goes live at least 60 % of the time.
- The 95 % interval of the difference in value covers the truth at least 90 % of the time.

The gate that has only shown items (without pools) is reported beside it, without bars, and so is a
challenger of equal value. `--quick`: 40 updates of each kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import Report
from models.alignment.gate import GateThresholds, evaluate_challenger, slate_reasons
from models.alignment.pool_values import LoggedPools

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

USERS, EACH, POOL, SLOTS, LOGGED_SHARE = 1_200, 5, 30, 6, 0.1
WORSE, BETTER = -0.03, 0.05
FALSE_ALARMS, POWER, COVERAGE = 0.05, 0.60, 0.90
LOOK = 1 / np.log2(np.arange(SLOTS) + 2)
RULES = GateThresholds()


@dataclass(frozen=True)
class ShownSlates:
    """A `models.alignment.gate.JudgedSlates`."""

    users: np.ndarray
    slot: np.ndarray
    real: np.ndarray
    acted: np.ndarray

    @property
    def ranked(self) -> np.ndarray:
        return np.ones(len(self), bool)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> ShownSlates:
        return ShownSlates(self.users[rows], self.slot[rows], self.real[rows], self.acted[rows])


@dataclass(frozen=True)
class Day:
    """One day's slates. users [G]; appeal, incumbent, own: float [G, POOL]; shown [G, SLOTS].

    appeal: log-odds of an action; own: the noise that a challenger adds.
    """

    users: np.ndarray
    appeal: np.ndarray
    incumbent: np.ndarray
    own: np.ndarray
    gumbel: np.ndarray

    def challenger(self, step: float) -> np.ndarray:
        return self.incumbent + step * self.appeal + 0.3 * self.own

    def drawn(self, preference: np.ndarray) -> np.ndarray:
        """int [G, SLOTS]: a Plackett-Luce slate with this day's draws."""
        return np.argsort(-(preference + self.gumbel), axis=1)[:, :SLOTS]

    def chances(self, shown: np.ndarray) -> np.ndarray:
        """P(action) at each slot; float [G, SLOTS]."""
        appeal = np.take_along_axis(self.appeal, shown, 1)
        return np.asarray(LOOK / (1 + np.exp(1.5 - appeal)))

    def value(self, preference: np.ndarray) -> float:
        return float(self.chances(self.drawn(preference)).sum(1).mean())


def a_day(seed: int, users: int = USERS) -> Day:
    """A user's slates share part of their appeal, so they are not independent."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(users), EACH)
    shape = (len(who), POOL)
    appeal = rng.normal(size=shape) + 0.5 * rng.normal(size=(users, 1))[who]
    incumbent = 0.5 * (appeal + rng.normal(size=shape))
    return Day(who, appeal, incumbent, rng.normal(size=shape), rng.gumbel(size=shape))


def true_step(share: float, day: Day) -> tuple[float, float]:
    """The step at which a challenger's value differs by `share`, and the difference there."""
    base = day.value(day.incumbent)

    def difference(step: float) -> float:
        return day.value(day.challenger(step)) / base - 1

    low, high = -0.6, 0.6
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if difference(middle) < share else (low, middle)
    return middle, difference(middle)


@dataclass(frozen=True)
class Verdict:
    """One update: whether it went live with pools and without, and its interval as a share."""

    live: bool
    live_without_pools: bool
    interval: tuple[float, float]
    effective_n: float


def one_update(step: float, seed: int) -> Verdict:
    """Serves a day by the incumbent and gates the challenger on its feedback."""
    day = a_day(seed)
    rng = np.random.default_rng([seed, 3])
    shown = day.drawn(day.incumbent)
    acted = rng.random(shown.shape) < day.chances(shown)
    challenger = day.challenger(step)
    slot = np.broadcast_to(np.arange(SLOTS), shown.shape)
    slates = ShownSlates(day.users, slot, np.ones(shown.shape, bool), acted)
    scores = [np.exp(np.take_along_axis(p, shown, 1)) for p in (day.incumbent, challenger)]
    logged = np.flatnonzero(rng.random(len(day.users)) < LOGGED_SHARE)
    found = evaluate_challenger(
        slates,
        scores[0],
        scores[1],
        RULES,
        seed=seed,
        pools=_pools(day, challenger, shown, acted, logged),
    )
    value = found.pool_value
    assert value is not None
    without = slate_reasons(found.slates, found.gauc, (found.snips, found.doubly_robust), RULES)
    low, high = (edge / value.logged_value for edge in value.difference[1:])
    return Verdict(found.promoted, not without, (low, high), value.effective_n)


def _pools(
    day: Day, challenger: np.ndarray, shown: np.ndarray, acted: np.ndarray, rows: np.ndarray
) -> LoggedPools:
    """The reward model knows the incumbent's scores and the rate of actions, as in an update."""
    weight = np.exp(day.incumbent[rows])
    own = np.take_along_axis(weight, shown[rows], 1)
    scale = acted[rows].mean(0).sum() / (own * LOOK).sum(1).mean()
    return LoggedPools(
        users=day.users[rows],
        logged=day.incumbent[rows],
        target=challenger[rows],
        shown=shown[rows],
        reward=acted[rows].astype(float),
        expected=np.clip(weight * scale, 0, 1),
        look=LOOK,
    )


def run(options: Options) -> Report:
    """All kinds of challengers."""
    runs = 40 if options.quick else 200
    report = Report(
        "gate",
        {"runs": runs, "users": USERS, "slates_each": EACH, "pools_logged": LOGGED_SHARE},
    )
    reference = a_day(999_983, users=20_000 if options.quick else 40_000)
    bars: dict[str, tuple[float, Callable[[float], bool] | None, str]] = {
        "worse by 3 %": (WORSE, lambda rate: rate <= FALSE_ALARMS, f"<= {FALSE_ALARMS}"),
        "better by 5 %": (BETTER, lambda rate: rate >= POWER, f">= {POWER}"),
        "equal": (0.0, None, "reported"),
    }
    for kind, (share, meets, bar) in bars.items():
        step, truth = true_step(share, reference)
        first = 1_000 * (1 + round(share * 100) % 97)
        found = [one_update(step, first + n) for n in range(runs if meets else runs // 2)]
        live = float(np.mean([each.live for each in found]))
        covered = [each.interval[0] <= truth <= each.interval[1] for each in found]
        coverage = float(np.mean(covered))
        report.add(
            challenger=kind,
            updates=len(found),
            true_share=truth,
            live=live,
            live_without_pools=float(np.mean([each.live_without_pools for each in found])),
            coverage=coverage,
            interval_width=float(
                np.mean([high - low for low, high in (e.interval for e in found)])
            ),
            effective_slates=float(np.mean([each.effective_n for each in found])),
        )
        report.check(f"{kind}: share that goes live", live, bar, meets(live) if meets else None)
        report.check(f"{kind}: coverage", coverage, f">= {COVERAGE}", coverage >= COVERAGE)
    return report
