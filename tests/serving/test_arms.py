"""Laws of the feed's experiment: stable arms, the stated share, one arm from token to feedback."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.experiments.definition import popularity_experiment
from serving.surfaces.feed import FeedRequest
from streams.contract.impression import POPULARITY_ARM, RANKER_ARM, verify

KEY = bytes(range(32))
HALF = popularity_experiment(0.5)
USERS = [f"user-{number}" for number in range(4_000)]


def _user_of(arm: str) -> str:
    return next(user for user in USERS if _arm(0.5, user) == arm)


def _arm(share: float, user: str, name: str = "popularity") -> str:
    experiment = popularity_experiment(share, name)
    assert experiment is not None
    arm = experiment.arm_of(user)
    assert arm is not None
    return arm.name


@pytest.fixture
def experiment(make_harness: Any) -> Any:
    return make_harness(streams=False, experiment=HALF)


def _feed(harness: Any, user_id: str, **more: Any) -> dict[str, Any]:
    answer = harness.client.post("/v1/feed", json={"user_id": user_id, "k": 5, "seed": 3} | more)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_no_experiment_is_no_arm() -> None:
    assert popularity_experiment(0.0) is None


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_stated_share_of_users_sees_popularity(share: float) -> None:
    arms = [_arm(share, user) for user in USERS]
    assert arms.count(POPULARITY_ARM) / len(USERS) == pytest.approx(share, abs=0.03)


def test_another_name_draws_the_arms_independently() -> None:
    first, second = ([_arm(0.5, user, name) for user in USERS] for name in "ab")
    same = sum(one == other for one, other in zip(first, second, strict=True))
    assert same / len(USERS) == pytest.approx(0.5, abs=0.04)


def test_another_process_gives_the_same_arms() -> None:
    code = (
        "from models.experiments.definition import popularity_experiment\n"
        "half = popularity_experiment(0.5)\n"
        "print(*[half.arm_of(f'user-{n}').name for n in range(50)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [_arm(0.5, user) for user in USERS[:50]]


@pytest.mark.parametrize("arm", [POPULARITY_ARM, RANKER_ARM])
def test_the_reply_and_every_token_carry_the_arm(experiment: Any, arm: str) -> None:
    reply = _feed(experiment, _user_of(arm))
    assert reply["arm"] == arm
    assert {verify(item["impression"], KEY).arm for item in reply["items"]} == {arm}
    assert bool(reply["weights"]) == (arm == RANKER_ARM)


def test_the_popularity_arm_shows_the_most_popular_items_in_order(experiment: Any) -> None:
    cache = experiment.gateway.popularity
    ids = np.array(cache.current.ids)
    score = np.random.default_rng(0).permutation(len(ids)).astype(np.float32)
    cache.current = replace(cache.current, score=score)  # read again only after 60 s
    reply = _feed(experiment, _user_of(POPULARITY_ARM), k=20)
    shown = [item["video_id"] for item in reply["items"]]
    assert shown == ids[np.argsort(-score)][:20].tolist()
    assert not any(item["explored"] for item in reply["items"])
    assert reply["fallbacks"] == []


def test_candidates_of_the_caller_and_unlearned_replies_belong_to_no_arm(experiment: Any) -> None:
    user = _user_of(POPULARITY_ARM)
    assert _feed(experiment, user, candidates=["v1", "v2"])["arm"] is None
    surfaces = experiment.gateway.surfaces
    assert surfaces.answer(FeedRequest(user_id=user), explore=False).weights
