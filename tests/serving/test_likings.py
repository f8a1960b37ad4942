"""Liking factors in serving: a source and the pre-rank read those of the request's release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.retrieval.factorisation.factors import FILE, LikingFactors
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Release
from serving.stages.prerank import TasteDotProduct
from serving.stages.sources import Liked
from serving.state.likings import Likings
from serving.surfaces import StageDependencies
from streams.contract.clock import DAY_MS

ITEMS, FIRST, SECOND = 60, Release("r0001", {"ranker": 1}), Release("r0002", {"ranker": 2})


def factors(sign: float) -> LikingFactors:
    """User u1 likes v0, v1, ... in this order, or in the reverse one."""
    slope = np.linspace(1.0, -1.0, ITEMS)
    none = np.zeros(ITEMS)
    users, items = np.array([[sign]]), slope[:, None]
    ids = tuple(f"v{n}" for n in range(ITEMS))
    return LikingFactors(("u1",), ids, none, none, users, items, none, 3.0, 1.0)


@pytest.fixture
def likings(tmp_path: Path) -> Likings:
    """Version 1 in order, version 2 reversed, version 3 without factors, version 4 broken."""
    for version, sign in ((1, 1.0), (2, -1.0)):
        (tmp_path / str(version)).mkdir()
        factors(sign).save(tmp_path / str(version))
    (tmp_path / "3").mkdir()
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / FILE).write_bytes(b"no factors")
    return Likings(lambda _, version: tmp_path / str(version))


def query(release: Release, user_id: str = "u1") -> Query:
    return Query("r", "feed", user_id, 10, 20 * DAY_MS, 0, release=release)


def test_the_source_offers_what_the_release_says_the_user_likes(
    likings: Likings, stage_deps: StageDependencies
) -> None:
    source = Liked(likings, stage_deps.activity, stage_deps.catalogue, limit=3)
    for release, wanted in ((FIRST, ["v0", "v1", "v2"]), (SECOND, ["v59", "v58", "v57"])):
        found = source.fetch(query(release))
        assert [candidate.item_id for candidate in found] == wanted
        assert found[0].score > found[2].score


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_release_without_readable_factors_gives_no_candidates(
    likings: Likings, stage_deps: StageDependencies, version: int
) -> None:
    release, of = Release("r0003", {"ranker": version}), (stage_deps.activity, stage_deps.catalogue)
    assert list(Liked(likings, *of).fetch(query(release))) == []
    assert list(Liked(Likings(), *of).fetch(query(FIRST))) == []
    assert list(Liked(likings, *of).fetch(query(Release()))) == []


def test_the_pre_rank_keeps_what_the_user_likes_and_never_cuts_fresh_items(
    likings: Likings, stage_deps: StageDependencies
) -> None:
    usual = TasteDotProduct(stage_deps.catalogue, stage_deps.popularity, stage_deps.activity)
    learned = replace(usual, likings=likings)
    ids = ["v40", "v2", "unknown", "v1"]
    candidates = tuple(Candidate(item_id, "popular") for item_id in ids)
    pool = Pool.of((*candidates, Candidate("v59", "fresh")))
    scores = learned.prerank_scores(query(FIRST), pool)
    assert scores[3] > scores[1] > scores[0]
    assert np.isfinite(scores[2])
    assert scores[4] == np.inf
    without = learned.prerank_scores(query(Release()), pool)
    assert np.array_equal(without, usual.prerank_scores(query(Release()), pool))


def test_a_stranger_without_a_history_has_no_personal_part(likings: Likings) -> None:
    liking = likings.of(query(FIRST, "stranger"))
    assert liking is not None
    assert not liking.scores_of(["v1", "v2"]).any()
    assert np.isnan(liking.scores_of(["unknown"])[0])
    assert len(liking.best(500, {"v3"})) == ITEMS - 1
