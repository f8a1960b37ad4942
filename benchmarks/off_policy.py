"""Off-policy evaluation and interleaving in worlds whose true values are known exactly.

Claims and bars, set before any measurement:

- Each estimator's 95 % interval holds the target policy's true value in at least 90 % of
  200 independent logs (300 persons, 6 slates each), in every world where its assumption
  holds. IPS, SNIPS and DR are tested on single choices, DR with a deliberately wrong reward
  model; slate estimators on slates of 3.
- Its bias is at most 3 % of the true value there.
- Where an assumption is violated (slots affect each other), coverage is reported without a
  bar.
- Team-draft interleaving: of 200 comparisons, equal rankers are called different in at most
  10 %; the better ranker is found in at least 90 %, the worse one never preferred.

`--quick` uses 40 logs and the same bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import Report
from benchmarks.worlds.slates import Draws, SlateWorld, Visits, slot_chances, small_world, visits
from models.alignment.interleaving import Preference, credit, preference, team_draft
from models.alignment.off_policy import Decisions, Estimate, doubly_robust, ips, snips
from models.alignment.slate_values import (
    LoggedSlates,
    cascade,
    item_position,
    pseudoinverse,
    slate_ips,
)

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

PERSONS, EACH = 300, 6
COVERAGE, BIAS, FALSE_ALARMS, POWER = 0.90, 0.03, 0.10, 0.90


@dataclass(frozen=True)
class Case:
    """One estimator in one world. `holds`: its assumption holds there, so it has a bar."""

    world: str
    name: str
    draws: Draws
    slots: int
    clash: float
    estimate: Callable[[SlateWorld, Visits, np.ndarray, np.ndarray, Draws], Estimate]
    holds: bool = True


def run(options: Options) -> Report:
    """All cases on 200 logs (40 if quick), then interleaving."""
    runs = 40 if options.quick else 200
    report = Report("off_policy", {"runs": runs, "persons": PERSONS, "slates_each": EACH})
    for case in cases():
        _check_case(report, case, runs)
    for name, strength in (("equal rankers", 0.0), ("a better b", 1.0), ("a better a", -1.0)):
        _check_interleaving(report, name, strength, runs)
    return report


def cases() -> Iterator[Case]:
    """Every estimator in a world where its assumption holds, and two where it does not."""
    for name, single in (("IPS", ips), ("SNIPS", snips), ("DR", doubly_robust)):
        yield Case("choices", name, "independent", 1, 1.0, _single(single))
    for normalised in (False, True):
        word = " (self-normalised)" if normalised else ""
        for name, estimator in (("item-position", item_position), ("pseudoinverse", pseudoinverse)):
            whole = _whole(estimator, normalised)
            yield Case("additive", name + word, "independent", 3, 1.0, whole)
        for name, estimator in (("cascade", cascade), ("slate IPS", slate_ips)):
            whole = _whole(estimator, normalised)
            yield Case("disturbed", name + word, "plackett_luce", 3, 0.5, whole)
    for name, estimator in (("item-position", item_position), ("pseudoinverse", pseudoinverse)):
        whole = _whole(estimator, False)
        yield Case("broken", name, "independent", 3, 0.0, whole, holds=False)


def measure(case: Case, runs: int) -> tuple[np.ndarray, float, list[Estimate]]:
    """(whether each interval covers the truth: bool [runs], the truth, the estimates)."""
    world, logging, target = setting(case.slots, case.clash)
    truth = world.value(target, case.draws)
    found = []
    for seed in range(runs):
        seen = visits(world, logging, case.draws, persons=PERSONS, each=EACH, seed=seed)
        found.append(case.estimate(world, seen, logging, target, case.draws))
    covered_runs = np.array([each.interval[0] <= truth <= each.interval[1] for each in found])
    return covered_runs, truth, found


def setting(slots: int, clash: float) -> tuple[SlateWorld, np.ndarray, np.ndarray]:
    """The world, the logging policy and a target policy that prefers attractive items more."""
    world = replace(small_world(1, slots=slots), clash=clash)
    noise = np.random.default_rng(2).normal(size=world.attraction.shape)
    return world, world.attraction + 0.4 * noise, 2.5 * world.attraction + 0.2 * noise


def _single(
    estimator: Callable[[Decisions], Estimate],
) -> Callable[[SlateWorld, Visits, np.ndarray, np.ndarray, Draws], Estimate]:
    def estimate(
        world: SlateWorld, seen: Visits, logging: np.ndarray, target: np.ndarray, draws: Draws
    ) -> Estimate:
        predicted = 0.6 * world.attraction + 0.15  # deliberately wrong
        chances = np.exp(target) / np.exp(target).sum(1, keepdims=True)
        decisions = Decisions(
            users=seen.persons,
            reward=seen.clicks[:, 0],
            logged=slot_chances(logging[seen.kind], seen.items, draws)[:, 0],
            target=slot_chances(target[seen.kind], seen.items, draws)[:, 0],
            expected=predicted[seen.kind, seen.items[:, 0]],
            expected_target=(predicted * chances).sum(1)[seen.kind],
        )
        return estimator(decisions)

    return estimate


def _whole(
    estimator: Callable[..., Estimate], normalised: bool
) -> Callable[[SlateWorld, Visits, np.ndarray, np.ndarray, Draws], Estimate]:
    def estimate(
        world: SlateWorld, seen: Visits, logging: np.ndarray, target: np.ndarray, draws: Draws
    ) -> Estimate:
        del world
        slates = LoggedSlates(
            users=seen.persons,
            reward=seen.clicks,
            logged=slot_chances(logging[seen.kind], seen.items, draws),
            target=slot_chances(target[seen.kind], seen.items, draws),
        )
        return estimator(slates, normalised=normalised)

    return estimate


def compare_rankers(strength: float, seed: int) -> Preference:
    """500 slates of 6 of 20 for 100 persons; `strength` > 0 makes b the better, < 0 a."""
    rng = np.random.default_rng([seed, 17])
    users, credits = [], []
    for slate in range(500):
        relevance = rng.uniform(0, 1, 20)
        informed = {"a": max(-strength, 0.0), "b": max(strength, 0.0)}
        orders = {
            team: np.argsort(-(share * relevance + rng.uniform(0, 1, 20))).tolist()
            for team, share in informed.items()
        }
        draft = team_draft(orders["a"], orders["b"], 6, seed=seed * 1_000 + slate)
        look = 1 / np.log2(np.arange(6) + 2)
        clicked = rng.random(6) < look * 0.5 * relevance[list(draft.items)]
        users.append(f"u{slate % 100}")
        shown = zip(draft.items, clicked, strict=True)
        credits.append(credit(draft, {item for item, hit in shown if hit}))
    return preference(users, credits, seed=seed)


def _check_case(report: Report, case: Case, runs: int) -> None:
    covered_runs, truth, found = measure(case, runs)
    values = np.array([each.value for each in found])
    bias = float(values.mean() - truth) / truth
    width = float(np.mean([each.interval[1] - each.interval[0] for each in found]))
    report.add(
        world=case.world,
        estimator=case.name,
        truth=truth,
        mean=float(values.mean()),
        bias_share=bias,
        rmse=float(np.sqrt(((values - truth) ** 2).mean())),
        width=width,
        effective_n=float(np.mean([each.effective_n for each in found])),
        coverage=float(covered_runs.mean()),
    )
    name = f"{case.world} {case.name}"
    covered, unbiased = float(covered_runs.mean()) >= COVERAGE, abs(bias) <= BIAS
    gate = ("", covered, unbiased) if case.holds else (" reported", None, None)
    report.check(f"{name} coverage", float(covered_runs.mean()), f">= {COVERAGE}{gate[0]}", gate[1])
    report.check(f"{name} bias share", bias, f"within {BIAS}{gate[0]}", gate[2])


def _check_interleaving(report: Report, name: str, strength: float, runs: int) -> None:
    found = [compare_rankers(strength, seed) for seed in range(runs)]
    named = {team: float(np.mean([p.winner == team for p in found])) for team in ("a", "b")}
    mean = float(np.mean([p.difference[0] for p in found]))
    report.notes.append(f"interleaving, {name}: mean difference {mean:+.3f}, named {named}")
    if strength == 0:
        alarms = named["a"] + named["b"]
        report.check(
            f"{name} called different", alarms, f"<= {FALSE_ALARMS}", alarms <= FALSE_ALARMS
        )
        return
    right, wrong = (named["b"], named["a"]) if strength > 0 else (named["a"], named["b"])
    report.check(f"{name}: right named", right, f">= {POWER}", right >= POWER)
    report.check(f"{name}: wrong named", wrong, "0", wrong == 0)
