"""The multi-task rows: no feature uses the future or the label."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.multitask.datasets import (
    CUTS,
    Dataset,
    DatasetMissing,
    _share_of_user,
    movielens,
    taobao,
)
from benchmarks.multitask.world_dataset import world


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    try:
        return movielens(quick=True)
    except DatasetMissing as reason:
        pytest.skip(str(reason))


def test_no_pair_is_in_two_parts(dataset: Dataset) -> None:
    pairs = [
        set(zip(rows.users[rows.labels[:, 0] > 0], rows.items[rows.labels[:, 0] > 0], strict=True))
        for rows in (dataset.train, dataset.valid, dataset.test)
    ]
    assert all(pairs)
    assert not pairs[0] & pairs[1]
    assert not (pairs[0] | pairs[1]) & pairs[2]


def test_a_negative_was_never_a_positive(dataset: Dataset) -> None:
    wide = dataset.item_count
    parts = (dataset.train, dataset.valid, dataset.test)
    keys = [rows.users * wide + rows.items for rows in parts]
    positive = np.concatenate([k[r.labels[:, 0] > 0] for k, r in zip(keys, parts, strict=True)])
    negative = np.concatenate([k[r.labels[:, 0] == 0] for k, r in zip(keys, parts, strict=True)])
    assert not np.isin(negative, positive).any()


def test_harder_tasks_are_parts_of_easier_ones(dataset: Dataset) -> None:
    labels = dataset.train.labels
    assert (labels[:, 2] <= labels[:, 1]).all()
    assert (labels[:, 1] <= labels[:, 0]).all()


def test_a_missing_data_set_names_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: str
) -> None:
    monkeypatch.setenv("TIDEMILL_DATA", str(tmp_path))
    with pytest.raises(DatasetMissing, match="TIDEMILL_DATA"):
        taobao()


def test_the_world_repeats_itself_and_its_tests_come_last() -> None:
    first, again = world(None, quick=True), world(None, quick=True)
    assert first.checksum == again.checksum
    assert first.tasks == ("play", "long_view", "like", "follow", "order")
    assert min(len(first.train), len(first.valid), len(first.test)) > 0
    assert np.isfinite(first.train.x).all()
    rates = first.train.labels.mean(0)
    assert rates[0] == pytest.approx(0.1762, abs=0.03), "the world's stated play rate"


def test_users_with_few_rows_are_in_each_part_by_its_share() -> None:
    """Otherwise users with 5 to 8 rows have no test rows, and validation has other users than test."""
    rng = np.random.default_rng(0)
    users = rng.permutation(np.repeat(np.arange(4_000), 5))
    place = _share_of_user(users)
    part = np.searchsorted(CUTS, place, side="right")
    shares = np.bincount(part, minlength=4) / len(part)
    assert shares == pytest.approx([0.40, 0.40, 0.08, 0.12], abs=0.01)
    for user in range(20):
        assert (np.diff(place[users == user]) > 0).all(), "rows keep their order"
    assert 0 <= place.min() < place.max() < 1
