"""Laws of the metrics: they equal their definitions, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.evaluation import (
    auc_per_user,
    compare,
    gauc,
    mean_per_user,
    mrr,
    paired_bootstrap,
    recall_at_k,
)

rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None)
@given(rows)
def test_auc_is_the_share_of_pairs_in_the_right_order(
    cases: list[tuple[int, int, bool]],
) -> None:
    users, scores, labels = (np.array(column) for column in zip(*cases, strict=True))
    found = auc_per_user(users, scores.astype(float), labels)
    for user, value in zip(found.users, found.value, strict=True):
        above = scores[(users == user) & labels][:, None]
        below = scores[(users == user) & ~labels][None, :]
        assert value == pytest.approx(((above > below) + 0.5 * (above == below)).mean())


def test_a_user_without_both_outcomes_is_left_out() -> None:
    users, labels = np.array(["a", "a", "b", "b"]), np.array([True, False, True, True])
    assert auc_per_user(users, np.arange(4.0), labels).users.tolist() == ["a"]


def test_nan_ranks_below_finite_scores() -> None:
    assert gauc(np.zeros(2), np.array([np.nan, -5.0]), np.array([False, True])) == 1.0


def test_reciprocal_ranks_by_hand() -> None:
    assert mrr([["x", "y"], ["x", "y"], ["x"]], ["x", "y", "z"]).tolist() == [1, 0.5, 0]


def test_recall_by_hand_and_not_without_relevant_items() -> None:
    assert recall_at_k([["x", "y", "z"]], [{"y", "q"}], 2).tolist() == [0.5]
    with pytest.raises(ValueError, match="at least one relevant"):
        recall_at_k([["x"]], [set()], 1)


def test_the_interval_covers_the_truth_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for run in range(200):
        _, low, high = paired_bootstrap(rng.normal(0.3, 1, 60), seed=run, rounds=400)
        hits += low <= 0.3 <= high
    assert 180 <= hits <= 199


def test_one_user_gives_no_interval() -> None:
    assert paired_bootstrap(np.array([0.4]))[1] == -np.inf


def test_models_are_compared_over_the_same_users_only() -> None:
    one = mean_per_user(np.array(["a", "b"]), np.ones(2))
    other = mean_per_user(np.array(["a", "c"]), np.ones(2))
    with pytest.raises(ValueError, match="same users"):
        compare("MRR", one, "nothing", other)
