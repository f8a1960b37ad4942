"""Laws of the draw: a logged propensity is the frequency of its draw."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Scored
from serving.stages.selectors import PlackettLuce
from streams.contract.events import CatalogueItem

RULE = PlackettLuce(temperature=0.8, diversity=0.5, explore=0.3)


def pool(scores: list[float], fresh: set[int] = frozenset(), genres: str = "") -> Pool:  # type: ignore[assignment]
    names = genres or "x" * len(scores)
    candidates = tuple(
        Candidate(
            f"v{n}",
            "fresh" if n in fresh else "popular",
            item=CatalogueItem(video_id=f"v{n}", title=f"{n}", genres=(names[n],)),
        )
        for n in range(len(scores))
    )
    p = np.zeros((len(scores), 0), np.float32)
    return Pool.of(candidates, scored=Scored(np.array(scores, np.float32), p))


def query(seed: int, k: int = 2) -> Query:
    return Query("r", "feed", "u", k, 1, seed)


def test_logged_propensities_are_the_frequencies_of_the_draw() -> None:
    """Slot by slot: the slate's probability is the product of its conditional propensities."""
    drawn: Counter[tuple[str, ...]] = Counter()
    logged: dict[tuple[str, ...], float] = {}
    runs = 6_000
    shared = pool([1.0, 0.4, 0.2, -0.5], fresh={2, 3}, genres="aabb")
    for seed in range(runs):
        slate = RULE.select(query(seed), shared)
        names = tuple(c.item_id for c in slate)
        drawn[names] += 1
        logged[names] = float(np.prod([c.propensity for c in slate]))
    assert len(drawn) == len(list(permutations(range(4), 2)))
    assert sum(logged.values()) == pytest.approx(1.0, abs=1e-6)
    for names, p in logged.items():
        error = 4 * (p * (1 - p) / runs) ** 0.5
        assert abs(drawn[names] / runs - p) < error, names


def test_fresh_items_get_their_share_of_slots() -> None:
    many = pool([3.0] * 20 + [-3.0] * 5, fresh=set(range(20, 25)))
    rule = PlackettLuce(temperature=0.05, explore=0.2, diversity=0.0)
    explored = [c.explored for seed in range(800) for c in rule.select(query(seed, k=5), many)]
    assert np.mean(explored) == pytest.approx(0.2, abs=0.03)


def test_without_exploration_the_best_is_first_with_propensity_one() -> None:
    rule = PlackettLuce(temperature=1e-3, explore=0.0, diversity=0.0)
    slate = rule.select(query(3, k=4), pool([0.1, 0.9, 0.5, 0.7]))
    assert [c.item_id for c in slate] == ["v1", "v3", "v2", "v0"]
    assert [c.propensity for c in slate] == pytest.approx([1.0] * 4)


def test_diversity_prefers_another_genre_among_equal_scores() -> None:
    rule = PlackettLuce(temperature=1e-3, explore=0.0, diversity=1.0)
    slate = rule.select(query(1), pool([1.0, 0.99, 0.98, 0.0], genres="aabb"))
    assert [c.item_id for c in slate] == ["v0", "v2"]
    plain = PlackettLuce(temperature=1e-3, explore=0.0, diversity=0.0)
    assert [c.item_id for c in plain.select(query(1), pool([1.0, 0.99, 0.98, 0.0]))][1] == "v1"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_slate_is_never_longer_than_its_pool(count: int) -> None:
    slate: Any = RULE.select(query(1, k=10), pool([0.5] * count))
    assert len(slate) == count
    assert len({c.item_id for c in slate}) == count


def test_an_additional_candidate_does_not_reshuffle_the_others() -> None:
    rule = PlackettLuce(temperature=0.4, explore=0.0, diversity=0.0)
    scores = [1.0, 0.6, 0.4, 0.1, -0.2, -0.4]
    orders = set()
    for seed in range(60):
        few = [c.item_id for c in rule.select(query(seed, 3), pool(scores))]
        more = rule.select(query(seed, 3), pool([*scores, float("nan")]))
        assert few == [c.item_id for c in more]
        orders.add(tuple(few))
    assert len(orders) > 3
