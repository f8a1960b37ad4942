"""Experiments: do their tests hold at every look, and what do they find how soon?

Simulated users come back: visits are Poisson with a rate of each user's own (gamma), and a slate
gets a reward with a chance of each user's own (beta). A look follows every fiftieth part of the
experiment, and the first one that calls the arms different ends it.

Claims and bars, set before any measurement:

- A/A: of 2,000 experiments with equal arms, read 50 times each, at most 1 % are ever called
  different at level 0.01; so with shares of 50:50 and 95:5, and for a frequent (0.30) and a rare
  (0.03) reward. A t-test at the same level, read as often, is reported beside it.
- Sample ratio: of 2,000 correct assignments, read at 50 sizes, at most 0.1 % are called
  mismatched at level 0.001. How soon shares that are off are found is reported.
- Power is reported against the effect, as are the slates until the test stops.
- Guard: a canary with 5 % of the users that loses half of its reward is stopped within 2,000 of
  its slates in at least 95 % of the runs; one that loses nothing, in at most 1 %.
- Interleaving: reported, the slates after which each way finds the better of two rankers in at
  least 80 % of the runs.

`--quick` makes a tenth of the runs (200), with the same bars: a bar of 1 % is then met with two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import Report
from models.alignment.interleaving import credit, team_draft
from models.experiments.sequential import ArmSums, difference, mean, sample_ratio

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

LOOKS = 50
LEVEL, RATIO_LEVEL = 0.01, 0.001
GUARD_TIGHT_AT = 2_000  # as `models.experiments.results` reads a guard
Z_TWO_SIDED = 2.5758  # of the t-test at `LEVEL`


@dataclass(frozen=True)
class Traffic:
    """One experiment. share: of the treated arm. lift: relative, of the treated arm's rate."""

    users: int = 2_000
    visits: float = 10.0  # per user, over the whole experiment
    rate: float = 0.3  # rewarded slates
    share: float = 0.5
    lift: float = 0.0


@dataclass(frozen=True)
class Looks:
    """An experiment at each look: cumulative slates and rewards, float64 [LOOKS, U]."""

    slates: np.ndarray
    reward: np.ndarray
    treated: np.ndarray  # bool [U]

    def sums(self, look: int, treated: bool) -> ArmSums:
        own = (self.treated == treated) & (self.slates[look] > 0)
        reward = self.reward[look][own]
        return ArmSums(self.slates[look][own], reward, float(reward.sum()))


def run(options: Options) -> Report:
    """Every check on 2,000 runs (200 if quick)."""
    runs = 200 if options.quick else 2_000
    report = Report("experiments", {"runs": runs, "looks": LOOKS, "level": LEVEL})
    for rate in (0.3, 0.03):
        for share in (0.5, 0.05):
            _check_equal(report, Traffic(rate=rate, share=share, users=4_000), runs)
    for lift in (0.02, 0.05, 0.1, 0.2):
        _report_power(report, Traffic(lift=lift), max(runs // 10, 20))
    _check_ratio(report, runs)
    _check_guard(report, runs)
    _report_interleaving(report, max(runs // 20, 20))
    return report


def simulate(traffic: Traffic, seed: int) -> Looks:
    """One experiment, look by look."""
    rng = np.random.default_rng([seed, 29])
    users = traffic.users
    treated = rng.random(users) < traffic.share
    often = rng.gamma(1.5, traffic.visits / 1.5, users) / LOOKS
    chance = rng.beta(2 * traffic.rate, 2 * (1 - traffic.rate), users)
    chance = np.where(treated, np.minimum(1.0, chance * (1 + traffic.lift)), chance)
    visits = rng.poisson(often, (LOOKS, users))
    reward = rng.binomial(visits, chance)
    return Looks(visits.cumsum(0).astype(float), reward.cumsum(0).astype(float), treated)


def first_stop(looks: Looks, stops: Callable[[ArmSums, ArmSums], bool]) -> int | None:
    """The first look at which `stops(control, treated)`."""
    for look in range(LOOKS):
        if stops(looks.sums(look, False), looks.sums(look, True)):
            return look
    return None


def called_different(control: ArmSums, treated: ArmSums) -> bool:
    found = difference(control, treated, level=LEVEL, tight_at=20_000)
    return found.above or found.below


def t_test_differs(control: ArmSums, treated: ArmSums) -> bool:
    """The usual test for one look, with users as units."""
    if not (control.enough and treated.enough):
        return False
    error = math.sqrt(control.variances()[0] + treated.variances()[0])
    return abs(treated.rate - control.rate) > Z_TWO_SIDED * error


def harmed(control: ArmSums, treated: ArmSums) -> bool:
    """As a guard without a margin reads it."""
    return difference(control, treated, level=LEVEL, tight_at=GUARD_TIGHT_AT).below


def equal_stops(traffic: Traffic, runs: int, stops: Callable[[ArmSums, ArmSums], bool]) -> float:
    """Share of the runs that `stops` ever stopped."""
    stopped = [first_stop(simulate(traffic, seed), stops) is not None for seed in range(runs)]
    return float(np.mean(stopped))


def _check_equal(report: Report, traffic: Traffic, runs: int) -> None:
    found = equal_stops(traffic, runs, called_different)
    read_often = equal_stops(traffic, max(runs // 4, 50), t_test_differs)
    name = f"A/A, reward {traffic.rate:g}, treated {traffic.share:.0%}"
    report.add(case=name, runs=runs, stopped=found, t_test=read_often, slates=math.nan)
    report.check(f"{name}: stopped", found, f"<= {LEVEL}", found <= LEVEL)


def _report_power(report: Report, traffic: Traffic, runs: int) -> None:
    ended = []
    for seed in range(runs):
        looks = simulate(traffic, seed)
        at = first_stop(looks, called_different)
        ended.append(math.inf if at is None else float(looks.slates[at].sum()))
    found = float(np.isfinite(ended).mean())
    median = float(np.median(ended))
    name = f"lift {traffic.lift:.0%}, reward {traffic.rate:g}"
    report.add(case=name, runs=runs, stopped=found, t_test=math.nan, slates=median)
    whole = int(traffic.users * traffic.visits)
    report.check(f"{name}: found within {whole} slates", found, "reported", None)


def ratio_alarm(true_share: float, seed: int, sizes: np.ndarray) -> int | None:
    """The first number of users at which shares of 50:50 are called wrong."""
    draws = np.random.default_rng([seed, 31]).random(int(sizes[-1])) < true_share
    for size in sizes:
        first = int(draws[:size].sum())
        if sample_ratio([first, int(size) - first], [0.5, 0.5]).p_value < RATIO_LEVEL:
            return int(size)
    return None


def _check_ratio(report: Report, runs: int) -> None:
    sizes = np.geomspace(100, 50_000, LOOKS).astype(int)
    alarms = float(np.mean([ratio_alarm(0.5, seed, sizes) is not None for seed in range(runs)]))
    report.add(case="sample ratio 50:50", runs=runs, stopped=alarms, t_test=math.nan, slates=0.0)
    name = "sample ratio: false alarms"
    report.check(name, alarms, f"<= {RATIO_LEVEL}", alarms <= RATIO_LEVEL)
    few = max(runs // 20, 20)
    for share in (0.49, 0.48, 0.45):
        found = [ratio_alarm(share, seed, sizes) for seed in range(few)]
        users = float(np.median([math.inf if each is None else each for each in found]))
        seen = float(np.mean([each is not None for each in found]))
        name = f"sample ratio {share:.0%}:{1 - share:.0%}"
        report.add(case=f"{name}, users", runs=few, stopped=seen, t_test=math.nan, slates=users)


def _check_guard(report: Report, runs: int) -> None:
    equal = Traffic(users=20_000, visits=5.0, share=0.05)
    few = max(runs // 10, 20)
    for lost in (0.2, 0.3, 0.5, 0.8, 1.0):
        ended = [_guarded(Traffic(20_000, 5.0, share=0.05, lift=-lost), s) for s in range(few)]
        within = float(np.quantile(ended, 0.95, method="higher"))
        name = f"guard, canary 5 %, loses {lost:.0%}"
        stopped = float(np.isfinite(ended).mean())
        report.add(case=name, runs=few, stopped=stopped, t_test=math.nan, slates=within)
        if lost == 0.5:
            report.check(
                f"{name}: its slates until it is stopped (95th percentile)",
                within,
                "<= 2000",
                within <= 2_000,
            )
    few = max(runs // 4, 50)
    alarms = float(np.mean([math.isfinite(_guarded(equal, seed)) for seed in range(few)]))
    report.check("guard: stops a canary that loses nothing", alarms, f"<= {LEVEL}", alarms <= LEVEL)


def _guarded(traffic: Traffic, seed: int) -> float:
    """The canary's slates when the guard stopped it; infinite if it never did."""
    looks = simulate(traffic, seed)
    at = first_stop(looks, harmed)
    return math.inf if at is None else float(looks.slates[at][looks.treated].sum())


SIZES = (500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)  # slates at which rankers are compared


def compare_ways(strength: float, slates: int, seed: int) -> dict[str, np.ndarray]:
    """Whether each way has named the better ranker at each of `SIZES` up to `slates`.

    Slates of 6 of 20 for users with 10 visits; ranker b knows `strength` more of the relevance.
    """
    rng = np.random.default_rng([seed, 37])
    relevance = rng.uniform(0, 1, (slates, 20))
    noise = rng.uniform(0, 1, (2, slates, 20))
    knows = np.array([1.0, 1.0 + strength])
    orders = np.argsort(-(knows[:, None, None] * relevance[None] + noise), axis=2)
    users = np.arange(slates) % max(slates // 10, 1)
    taste = rng.beta(2, 6, users.max() + 1)[users]  # some users click often
    look = taste[:, None] / np.log2(np.arange(6) + 2)
    treated = users % 2 == 1
    shown = np.where(treated[:, None], orders[1][:, :6], orders[0][:, :6])
    own = np.take_along_axis(relevance, shown, 1)
    clicks = (rng.random((slates, 6)) < look * own).sum(1)
    credits = np.array([_credit(orders, relevance, look, n, rng) for n in range(slates)])
    found: dict[str, list[bool]] = {"A/B": [], "interleaving": []}
    for size in (n for n in SIZES if n <= slates):
        arms = [
            _sums(users[:size][side], clicks[:size][side])
            for side in (~treated[:size], treated[:size])
        ]
        found["A/B"].append(difference(*arms, level=LEVEL, tight_at=20_000).above)
        won = _sums(users[:size], np.sign(credits[:size]))
        found["interleaving"].append(mean(won, level=LEVEL, tight_at=20_000).above)
    return {way: np.array(each) for way, each in found.items()}


def _credit(
    orders: np.ndarray, relevance: np.ndarray, look: np.ndarray, n: int, rng: np.random.Generator
) -> int:
    a, b = orders[0][n].tolist(), orders[1][n].tolist()
    draft = team_draft(a, b, 6, seed=int(rng.integers(2**32)))
    hit = rng.random(6) < look[n] * relevance[n][list(draft.items)]
    return credit(draft, {item for item, h in zip(draft.items, hit, strict=True) if h})


def _sums(users: np.ndarray, reward: np.ndarray) -> ArmSums:
    codes = np.unique(users, return_inverse=True)[1]
    return ArmSums(
        np.bincount(codes).astype(float),
        np.bincount(codes, reward).astype(float),
        float((reward.astype(float) ** 2).sum()),
    )


def _report_interleaving(report: Report, runs: int) -> None:
    strength = 0.5
    all_found = [compare_ways(strength, SIZES[-1] // 2, seed) for seed in range(runs)]
    for way in ("A/B", "interleaving"):
        power = np.mean([each[way] for each in all_found], axis=0)
        enough = [size for size, share in zip(SIZES, power, strict=False) if share >= 0.8]
        slates = float(enough[0]) if enough else math.inf
        report.add(
            case=f"better ranker by {way}",
            runs=runs,
            stopped=float(power[-1]),
            t_test=math.nan,
            slates=slates,
        )
        report.check(f"{way}: slates that find it in 80 % of the runs", slates, "reported", None)
