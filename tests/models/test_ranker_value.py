"""Laws of the off-policy value of a ranker that is not live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from models.alignment.ranker import RankerUpdate
from models.alignment.ranker_value import off_policy_value
from models.recipe import NotEnoughData, TrainingLog
from models.release.bundle import Bundle, ReleaseError
from models.release.store import ReleaseStore
from streams.progress import no_progress

Reseal = Callable[[ReleaseStore, Path], Bundle]


@pytest.fixture
def served_log(small_log: TrainingLog, store: ReleaseStore) -> TrainingLog:
    """The slates, served by the live release of ranker 1."""
    release = store.propose({"ranker": 1}, created_ms=0)
    store.set_current(release.release_id, at_ms=0)
    feedback = small_log.feedback.with_columns(release=pl.lit(release.release_id))
    return replace(small_log, feedback=feedback)


def test_the_same_ranker_has_the_same_value(
    served_log: TrainingLog, store: ReleaseStore, trained: Path, reseal: Reseal
) -> None:
    reseal(store, trained)
    found = off_policy_value(store, served_log, progress=no_progress)
    assert (found.live, found.version) == (1, 2)
    ips, snips, _ = found.estimates
    for each in (ips, snips):
        assert each.difference == pytest.approx((0, 0, 0), abs=1e-6)
        assert each.interval[0] < each.value < each.interval[1]


def test_an_aligned_ranker_has_a_higher_value(
    served_log: TrainingLog, store: ReleaseStore, trained: Path, tmp_path: Path, reseal: Reseal
) -> None:
    aligned = tmp_path / "aligned"
    aligned.mkdir()
    RankerUpdate().challenge(trained, served_log, aligned, seed=0, progress=no_progress)
    reseal(store, aligned)
    found = off_policy_value(store, served_log, progress=no_progress)
    assert all(each.difference[0] > 0 for each in found.estimates)


def test_slates_of_another_ranker_do_not_count(
    served_log: TrainingLog, store: ReleaseStore, trained: Path, reseal: Reseal
) -> None:
    reseal(store, trained)
    foreign = served_log.feedback.with_columns(release=pl.lit("r0999"))
    with pytest.raises(NotEnoughData, match="0 slates of ranker 1"):
        off_policy_value(store, replace(served_log, feedback=foreign), progress=no_progress)


def test_a_single_ranker_is_an_error_that_names_the_command(
    served_log: TrainingLog, store: ReleaseStore
) -> None:
    with pytest.raises(ReleaseError, match="models train ranker"):
        off_policy_value(store, served_log, progress=no_progress)
    with pytest.raises(ReleaseError, match="these can: none"):
        off_policy_value(store, served_log, version=7, progress=no_progress)
