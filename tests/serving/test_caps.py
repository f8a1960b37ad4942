"""Laws of the caps: never exceeded, off by default, reported with a reason, at a known cost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Scored
from serving.stages.caps import AuthorCap, Cap, ProvenanceCap, caps_of
from serving.stages.selectors import PlackettLuce
from streams.contract.events import CatalogueItem


def pool(count: int = 40, *, authors: int = 5, scored: bool = True) -> Pool:
    """A pool in which every other item is generated; generated items score higher."""
    candidates = tuple(
        Candidate(
            f"v{n}",
            "popular",
            item=CatalogueItem(
                video_id=f"v{n}",
                title=f"{n}",
                genres=(),
                author_id=f"a{n % authors}",
                provenance="aigc" if n % 2 else "human",
            ),
        )
        for n in range(count)
    )
    score = np.random.default_rng(0).normal(size=count) + np.arange(count) % 2
    columns = Scored(score.astype(np.float32), np.zeros((count, 0), np.float32))
    return Pool.of(candidates, scored=columns if scored else None)


def query(seed: int = 0, k: int = 10) -> Query:
    return Query("r", "feed", "u", k, 1, seed)


def slate(
    *caps: Cap, seed: int = 0, of: Pool | None = None, temperature: float = 0.3
) -> list[Candidate]:
    rule = PlackettLuce(temperature=temperature, explore=0.0, diversity=0.0, caps=caps)
    return list(rule.select(query(seed), of or pool()))


def generated(items: list[Candidate]) -> int:
    return sum(c.item is not None and c.item.provenance == "aigc" for c in items)


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("at_most", [1, 2, 3])
def test_no_author_has_more_than_the_cap(at_most: int, scored: bool) -> None:
    for seed in range(20):
        items = slate(AuthorCap(at_most), seed=seed, of=pool(scored=scored))
        count = Counter(c.item.author_id for c in items if c.item)
        assert max(count.values()) <= at_most
        assert len(items) == min(10, 5 * at_most)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 1.0])
def test_a_provenance_never_has_more_than_its_share(share: float) -> None:
    found = [generated(slate(ProvenanceCap("aigc", share), seed=seed)) for seed in range(20)]
    assert max(found) <= int(share * 10 + 1e-9)
    assert len(slate(ProvenanceCap("aigc", share))) == 10


def test_held_back_candidates_are_reported_with_a_reason() -> None:
    rule = PlackettLuce(temperature=1e-3, explore=0.0, diversity=0.0, caps=(AuthorCap(1),))
    shared = pool()
    items = rule.select(query(), shared)
    removed = rule.held_back(query(), shared, items)
    assert {r.stage for r in removed} == {"author_cap"}
    assert all("already has 1" in r.reason for r in removed)
    assert not {r.item_id for r in removed} & {c.item_id for c in items}


def test_by_default_there_are_no_caps_and_nothing_is_held_back() -> None:
    assert caps_of(None, {}) == ()
    assert PlackettLuce().held_back(query(), pool(), tuple(slate())) == []
    assert caps_of(2, {"aigc": 0.2}) == (AuthorCap(2), ProvenanceCap("aigc", 0.2))


def test_propensities_under_caps_are_the_frequencies_of_the_draw() -> None:
    small, runs = pool(4, authors=2), 4_000
    rule = PlackettLuce(temperature=1.0, explore=0.0, diversity=0.0, caps=(AuthorCap(1),))
    drawn: Counter[tuple[str, ...]] = Counter()
    logged: dict[tuple[str, ...], float] = {}
    for seed in range(runs):
        items = rule.select(query(seed, k=2), small)
        names = tuple(c.item_id for c in items)
        drawn[names] += 1
        logged[names] = float(np.prod([c.propensity for c in items]))
    assert len(drawn) == 8
    assert sum(logged.values()) == pytest.approx(1, abs=1e-6)
    for names, p in logged.items():
        assert abs(drawn[names] / runs - p) < 4 * (p * (1 - p) / runs) ** 0.5


def test_a_tighter_share_never_increases_utility() -> None:
    """`pytest -s` prints the share-utility curve."""
    curve = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        items = slate(ProvenanceCap("aigc", share), temperature=1e-3)
        curve.append(sum(c.score for c in items))
        print(f"aigc at most {share:.0%}: utility {curve[-1]:.2f}, {generated(items)} of 10")
    assert all(low <= high + 1e-6 for low, high in pairwise(curve))
    assert curve[0] < curve[-1]
