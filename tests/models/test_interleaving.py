"""Laws of team-draft interleaving: fair to equals, right about the better ranker."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.alignment.interleaving import Preference, credit, preference, team_draft

RANKING = st.lists(st.integers(0, 12), unique=True, max_size=10)


@given(RANKING, RANKING, st.integers(0, 8), st.integers(0, 2**32))
def test_a_draft_is_a_slate_of_both_without_repeats(
    a: list[int], b: list[int], k: int, seed: int
) -> None:
    draft = team_draft(a, b, k, seed=seed)
    assert len(set(draft.items)) == len(draft.items) == min(k, len({*a, *b}))
    assert set(draft.items) <= {*a, *b}
    assert draft == team_draft(a, b, k, seed=seed)


@given(RANKING, RANKING, st.integers(0, 8), st.integers(0, 2**32))
def test_each_ranker_keeps_its_own_order(a: list[int], b: list[int], k: int, seed: int) -> None:
    draft = team_draft(a, b, k, seed=seed)
    for team, ranking in (("a", a), ("b", b)):
        picks = [i for i, t in zip(draft.items, draft.teams, strict=True) if t == team]
        assert picks == sorted(picks, key=ranking.index)


def test_teams_pick_in_turns_and_the_first_is_drawn_by_a_coin() -> None:
    drafts = [team_draft(range(10), range(10, 20), 6, seed=seed) for seed in range(400)]
    for draft in drafts:
        assert all(set(draft.teams[n : n + 2]) == {"a", "b"} for n in (0, 2, 4))
    first = np.mean([draft.teams[0] == "a" for draft in drafts])
    assert first == pytest.approx(0.5, abs=4 * 0.5 / 20)


def test_a_click_counts_for_the_ranker_that_picked_the_item() -> None:
    draft = team_draft(["x", "y"], ["z", "w"], 4, seed=1)
    mine = {i for i, t in zip(draft.items, draft.teams, strict=True) if t == "b"}
    assert credit(draft, mine) == 2
    assert credit(draft, set(draft.items)) == 0
    assert credit(draft, {"never shown"}) == 0


def compared(better: str | None, seed: int) -> Preference:
    """Users who look at the top most often, and click by an item's worth."""
    rng = np.random.default_rng(seed)
    users, credits = [], []
    for slate in range(300):
        worth = rng.random(12)
        order = {
            team: np.argsort(-((team == better) * worth + rng.random(12))).tolist() for team in "ab"
        }
        draft = team_draft(order["a"], order["b"], 5, seed=seed * 1_000 + slate)
        looked = rng.random(5) < 1 / np.log2(np.arange(5) + 2)
        hits = looked & (rng.random(5) < worth[list(draft.items)])
        users.append(f"u{slate % 60}")
        clicked = {item for item, hit in zip(draft.items, hits, strict=True) if hit}
        credits.append(credit(draft, clicked))
    return preference(users, credits, seed=seed)


def test_equal_rankers_have_no_winner() -> None:
    winners = [compared(None, seed).winner for seed in range(20)]
    assert sum(winner is not None for winner in winners) <= 4  # 5 % each: more has p < 0.003


@pytest.mark.parametrize("better", ["a", "b"])
def test_the_better_ranker_is_named(better: str) -> None:
    assert [compared(better, seed).winner for seed in range(10)] == [better] * 10


def test_one_user_cannot_decide() -> None:
    lone = preference(["u"] * 50, [1] * 50)
    assert lone.difference[0] == 1
    assert lone.winner is None
