"""How a simulated user reacts to a slate: pure draws from the planted truth.

Knows the truth and one reply. Does not know HTTP, clocks or the bus
(`deploy.simulation.crowd`): times are offsets from the arrival of the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.simulation import queries
from deploy.simulation.truth import WORLD_TASKS, Truth, sigmoid, unit_rates

_ACTION_GAP_MS = 100  # between the actions on one film
_GLANCE_MS = 300  # on screen but not attended


@dataclass(frozen=True)
class Action:
    """One event of a user. `offset_ms` counts from the slate's arrival."""

    slot: int
    kind: str
    offset_ms: int
    dwell_ms: int | None = None
    amount_cents: int | None = None


@dataclass(frozen=True)
class Visit:
    """A user's reaction to one slate.

    utility: gain per slot, in units in which an average random slate gives about one per
        attended play. lasted_ms: time until the user has left the slate.
    """

    actions: tuple[Action, ...]
    utility: float
    lasted_ms: int

    def slots(self, kind: str) -> list[int]:
        return [action.slot for action in self.actions if action.kind == kind]


def watch_slate(
    truth: Truth,
    user: int,
    films: Sequence[int],
    durations_ms: Sequence[int],
    prices_cents: Sequence[int],
    rng: np.random.Generator,
    seen: np.ndarray | None = None,
    hour: int | None = None,
) -> Visit:
    """Goes through a slate from the top: each film is glanced at, skipped or played."""
    chosen = np.asarray(films, dtype=np.int64)
    odds = truth.odds(user, chosen, seen, hour)
    attended = rng.random(len(chosen)) < truth.attention(np.arange(len(chosen)))
    acts = rng.random(odds.shape) < odds
    acts &= attended[:, None]
    acts[:, 1:] &= acts[:, :1]
    actions: list[Action] = []
    at_ms = 0
    for slot in range(len(chosen)):
        actions.append(Action(slot, "shown", at_ms))
        dwell_ms = _dwell(truth, bool(attended[slot]), acts[slot], durations_ms[slot], rng)
        at_ms += dwell_ms
        if attended[slot]:
            actions += _acted(slot, acts[slot], at_ms, dwell_ms, prices_cents[slot])
        at_ms += _ACTION_GAP_MS * len(WORLD_TASKS)
    gained = acts @ (truth.utilities[user] / unit_rates(truth.world))
    return Visit(tuple(actions), float(gained.mean()) if len(chosen) else 0.0, at_ms)


def _dwell(
    truth: Truth, attended: bool, acts: np.ndarray, duration_ms: int, rng: np.random.Generator
) -> int:
    if not attended:
        return _GLANCE_MS
    if not acts[0]:
        return int(truth.world.position.skip_ms * rng.uniform(0.5, 1.5))
    low, high = (0.6, 1.0) if acts[1] else (0.1, 0.6)
    return int(duration_ms * rng.uniform(low, high))


def _acted(
    slot: int, acts: np.ndarray, at_ms: int, dwell_ms: int, price_cents: int
) -> list[Action]:
    """The events of one attended film, at the end of its dwell, in the order they happen."""
    if not acts[0]:
        return [Action(slot, "skip", at_ms, dwell_ms=dwell_ms)]
    done = []
    for place, task in enumerate(WORLD_TASKS):
        if acts[place]:
            done.append(
                Action(
                    slot,
                    task,
                    at_ms + place * _ACTION_GAP_MS,
                    dwell_ms=dwell_ms if task in ("play", "long_view") else None,
                    amount_cents=price_cents if task == "order" else None,
                )
            )
    return done


def goes_on(truth: Truth, visit: Visit, rng: np.random.Generator) -> bool:
    """Whether the user asks for another slate; more likely after a better one."""
    rules = truth.world.session
    lift = visit.utility - _average(truth)
    return bool(rng.random() < _chance(rules.continue_base + rules.continue_gain * lift))


def becomes_dormant(truth: Truth, utility: float, rng: np.random.Generator) -> bool:
    """Whether the user stays away after a session with `utility` per slot."""
    rules = truth.world.session
    lift = utility - _average(truth)
    return bool(rng.random() < _chance(rules.dormant_base - rules.dormant_gain * lift))


def comes_back(truth: Truth, user: int, films: Sequence[int], rng: np.random.Generator) -> bool:
    """Whether a dormant user returns; more likely the more they like the first film."""
    if not films:
        return False
    rules = truth.world.session
    first = np.asarray(films[:1], dtype=np.int64)
    own = truth.world.taste.heterogeneity * truth.taste.personal(user, first)
    liking = float((truth.taste.main[first] + own)[0])
    return bool(rng.random() < _chance(rules.return_base + rules.return_gain * liking))


def asks_under(truth: Truth, user: int, visit: Visit, rng: np.random.Generator) -> int | None:
    """The slot, one of the played ones, whose query bar the user looks at, or None."""
    played = visit.slots("play")
    curious = min(1.0, truth.world.session.ask_rate * float(truth.people.curiosity[user]))
    if not played or rng.random() >= curious:
        return None
    return int(rng.choice(played))


def clicks_query(
    truth: Truth, user: int, film: int, offered: Sequence[str], rng: np.random.Generator
) -> int | None:
    """The slot of the offered query that the user clicks, or None.

    The user wants one query. If it is offered and attended, it is clicked. If it is not
    offered, another one may be clicked, in proportion to its likelihood under `wanted`.
    """
    rules = truth.world
    speaker, shown = truth.people.speakers[user], truth.data.films[film]
    want = queries.ask(speaker, shown, rules.queries, rng)
    attended = rng.random(len(offered)) < truth.attention(np.arange(len(offered)))
    if want in offered:
        slot = list(offered).index(want)
        return slot if attended[slot] else None
    near = queries.wanted(speaker, shown, rules.queries)
    likeliest = max(near.values())
    for slot, query in enumerate(offered):
        fits = rules.session.ask_near * near.get(query, 0.0) / likeliest
        if attended[slot] and rng.random() < fits:
            return slot
    return None


def _average(truth: Truth) -> float:
    """The mean utility per slot of random slates."""
    attended = truth.attention(np.arange(truth.world.position.slots)).mean()
    return float(attended * truth.utilities.sum(axis=1).mean())


def _chance(log_odds: float) -> float:
    return float(sigmoid(np.asarray(log_odds)))
