"""The loop with killed servers; runs last, on the stack of the other tests."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import polars as pl
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


def test_without_the_broker_requests_are_answered_and_no_logged_event_is_lost(
    loop: Loop, eventually: Eventually
) -> None:
    user = loop.users(10)[9]
    likes = loop.features(user)["features"]["like_count_all"]
    gone = loop.event(f"gone-{uuid.uuid4().hex}", "like", video_id="v1")
    assert loop.http.delete(f"/v1/users/{gone['user_id']}").status_code == 202
    kept = loop.settings.log_dir / "erasures.jsonl"
    eventually(lambda: str(gone["user_id"]) in kept.read_text(), 60, "the erasure on disk")
    before = _logged(loop)
    loop.kill("broker")
    again = loop.event(user, "like", video_id="v1")

    def accepted() -> bool:
        """Meanwhile every feed is answered, and an event is refused with a reason, within the client's 30 s."""
        assert len(loop.ask("feed", user_id=user, k=5)["items"]) == 5
        answer = loop.http.post("/v1/events", json=again)
        assert answer.status_code in (202, 503), answer.text
        return answer.status_code == 202

    def folded() -> bool:
        return bool(loop.features(user)["features"]["like_count_all"] == likes + 1)

    eventually(lambda: accepted() and _waited(folded, 5), 240, "an event after the broker's return")
    # The log is written by another process than the features: its last file may still be open.
    eventually(lambda: str(again["event_id"]) in _logged(loop), 60, "the event in the log")
    loop.send(gone)
    last = loop.event(user, "play", video_id="v1", dwell_ms=9_000)
    loop.send(last)
    eventually(lambda: str(last["event_id"]) in _logged(loop), 60, "a later event in the log")
    after = _logged(loop)
    assert not [event for event in before if event not in after]
    assert set(after.values()) == {1}
    assert str(gone["event_id"]) not in after
    assert loop.features(str(gone["user_id"]))["features"]["like_count_all"] == 0


def _logged(loop: Loop) -> Counter[str]:
    """How many rows of the log each event has."""
    return Counter(EventLog(loop.settings.log_dir).read()["event_id"].to_list())


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
    before = _counts(loop, user)
    loop.stack.stop()
    with (
        Stack(Settings(home=loop.settings.home)) as again,
        httpx.Client(base_url=again.page, timeout=30) as http,
    ):
        restarted = replace(loop, stack=again, http=http)
        eventually(lambda: restarted.counts_are(user, before), 180, "the features rebuilt")
        eventually(
            lambda: not restarted.ask("feed", user_id=user, k=5)["fallbacks"],
            180,
            "the models live",
        )
        assert len(restarted.ask("feed", user_id=user, k=5)["items"]) == 5


def _counts(loop: Loop, user: str) -> dict[str, int]:
    """The user's counts over the log: what any rebuilt feature has to say, also in a second try."""
    mine = EventLog(loop.settings.log_dir).read().filter(pl.col("user_id") == user)
    return {
        f"{kind}_count_all": mine.filter(pl.col("kind") == kind).height
        for kind in ("play", "long_view", "like", "order", "query_click")
    }
