"""The loop with killed servers; runs last, on the stack of the other tests."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deploy.settings import Settings
from deploy.stack import Stack
from streams.event_log import EventLog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Loop = Any  # tests/e2e/conftest.py
Eventually = Callable[[Callable[[], object], float, str], None]


def test_without_the_store_requests_are_answered_and_it_is_rebuilt(
    loop: Loop, eventually: Eventually
) -> None:
    user = loop.users(8)[7]
    before = loop.features(user)["features"]
    loop.kill("store")
    answer = loop.http.post("/v1/feed", json={"user_id": user, "k": 5})
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 5
    eventually(lambda: loop.counts_are(user, before), 120, "the features rebuilt")


def test_without_the_model_server_requests_are_answered_until_it_restarts(
    loop: Loop, eventually: Eventually
) -> None:
    user = loop.users(9)[8]
    eventually(lambda: not loop.ask("feed", user_id=user, k=5)["fallbacks"], 30, "all answers")
    loop.kill("triton")
    answer = loop.ask("feed", user_id=user, k=5)
    assert len(answer["items"]) == 5
    assert answer["fallbacks"]
    for surface, extra in (("feed", {}), ("queries", {"video_id": "v1"}), ("reactivation", {})):
        eventually(
            lambda surface=surface, extra=extra: not loop.ask(surface, user_id=user, **extra)["fallbacks"],
            90, f"{surface} from the models again",
        )  # fmt: skip


# Apache Kafka, the default where it can be had, needs longer to return than the embedded broker:
# one of three runs needed a second attempt, whose cause is not known yet.
@pytest.mark.flaky(reruns=2)
def test_without_the_broker_requests_are_answered_and_no_logged_event_is_lost(
    loop: Loop, eventually: Eventually
) -> None:
    log = EventLog(loop.settings.log_dir)
    held = len(log.read())
    user = loop.users(10)[9]
    likes = loop.features(user)["features"]["like_count_all"]
    gone = loop.event(f"gone-{uuid.uuid4().hex}", "like", video_id="v1")
    assert loop.http.delete(f"/v1/users/{gone['user_id']}").status_code == 202
    kept = loop.settings.log_dir / "erasures.jsonl"
    eventually(lambda: str(gone["user_id"]) in kept.read_text(), 20, "the erasure on disk")
    loop.kill("broker")
    again = loop.event(user, "like", video_id="v1")

    def accepted() -> bool:
        """Meanwhile every feed is answered, and an event is refused quickly with a reason."""
        assert len(loop.ask("feed", user_id=user, k=5)["items"]) == 5
        answer = loop.http.post("/v1/events", json=again)
        assert answer.status_code in (202, 503), answer.text
        assert answer.elapsed.total_seconds() < 4
        return answer.status_code == 202

    def folded() -> bool:
        return bool(loop.features(user)["features"]["like_count_all"] == likes + 1)

    eventually(lambda: accepted() and _waited(folded, 5), 120, "an event after the broker's return")
    assert len(log.read()) == held + 1
    loop.send(gone)
    time.sleep(2.0)
    assert loop.features(str(gone["user_id"]))["features"]["like_count_all"] == 0
    assert len(log.read()) == held + 1


def _waited(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_a_restarted_stack_has_its_state_again(loop: Loop, eventually: Eventually) -> None:
    """Broker and store lose everything in a restart here: it is rebuilt from the log."""
    user = loop.users(11)[10]
    before = loop.features(user)["features"]
    loop.stack.stop()
    with (
        Stack(Settings(home=loop.settings.home)) as again,
        httpx.Client(base_url=again.page) as http,
    ):
        restarted = replace(loop, stack=again, http=http)
        eventually(lambda: restarted.counts_are(user, before), 180, "the features rebuilt")
        eventually(
            lambda: not restarted.ask("feed", user_id=user, k=5)["fallbacks"],
            180,
            "the models live",
        )
        assert len(restarted.ask("feed", user_id=user, k=5)["items"]) == 5
