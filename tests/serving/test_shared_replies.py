"""Laws of replies in the store: a repeated request gets the same one through any process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.services import process
from deploy.services.process import ServiceUnavailable
from deploy.services.valkey import Valkey
from features.online.connection import Connection
from features.store import StoreDown
from serving.clients.shared_replies import TIMEOUT_S, SharedReplies, StoredReply
from serving.state.replies import RecentReplies, RequestConflict
from serving.surfaces.feed import FeedRequest

KEY = bytes(range(32))
DB = 11
USERS = map("user-{}".format, count())
Open = Callable[..., SharedReplies]


@pytest.fixture
def open_shared(valkey: str) -> Open:
    """The replies as one more process sees them."""

    def opened(**more: Any) -> SharedReplies:
        # Patient, as a busy test machine needs; TIMEOUT_S is a law of its own below.
        return SharedReplies(Connection(valkey, DB, 10.0), KEY, **more)

    return opened


def request(user_id: str, **fields: Any) -> FeedRequest:
    return FeedRequest.model_validate({"user_id": user_id, "request_id": "r"} | fields)


def test_two_gateways_give_one_reply_and_409_to_another_body(
    make_harness: Any, open_shared: Open
) -> None:
    one, other = (make_harness(streams=False, replies=open_shared()) for _ in range(2))
    user_id = next(USERS)
    first = one.feed(user_id, request_id="once", seed=None)
    assert other.feed(user_id, request_id="once", seed=None) == first
    body = {"user_id": user_id, "k": 3, "request_id": "once"}
    assert other.client.post("/v1/feed", json=body).status_code == 409
    assert other.feed(next(USERS), request_id="once")["slate_id"] != first["slate_id"]
    assert one.client.delete(f"/v1/users/{user_id}").status_code == 202
    after = [each.feed(user_id, request_id="once")["slate_id"] for each in (other, one)]
    assert after[0] == after[1] != first["slate_id"], "erased through any process"


def test_a_reply_that_two_processes_make_at_once_is_one_reply(open_shared: Open) -> None:
    together = threading.Barrier(2)

    def ask(number: int, asked: FeedRequest) -> bytes:
        def make() -> bytes:
            together.wait(30.0)  # both have found nothing
            return b"reply %d" % number

        return RecentReplies(open_shared()).reply(asked, make)

    with ThreadPoolExecutor(2) as threads:
        asked = request(next(USERS))
        first, second = threads.map(ask, range(2), [asked, asked])
        assert first == second
        user_id = next(USERS)
        pair = [threads.submit(ask, k, request(user_id, k=k)) for k in (1, 2)]
        assert sorted(type(each.exception()) is RequestConflict for each in pair) == [False, True]


def test_a_reply_that_was_begun_before_an_erasure_is_not_stored(open_shared: Open) -> None:
    shared, user_id = open_shared(), next(USERS)
    seen = shared.find(user_id, "r")
    assert seen is not None
    open_shared().forget(user_id)
    assert shared.keep(user_id, "r", seen, StoredReply(b"d" * 32, b"reply")) is None
    found = shared.find(user_id, "r")
    assert found is not None
    assert found.reply is None


def test_what_is_stored_is_bounded_in_time_and_bytes_and_names_no_user(
    open_shared: Open, valkey: str
) -> None:
    user_id = next(USERS)
    RecentReplies(open_shared(keep_s=600.0)).reply(request(user_id), lambda: b"reply")
    client = redis.Redis(port=int(valkey.rpartition(":")[2]), db=DB)
    keys = list(client.scan_iter())
    assert keys
    assert not [key for key in keys if user_id.encode() in key]
    assert all(0 < client.pttl(key) <= 1_200_000 for key in keys)
    now = [0.0]
    small = open_shared(max_bytes=100, monotonic=lambda: now[0])
    kept = []
    for number in range(4):
        now[0] = 600.0 * (number == 3)
        name = f"{user_id}-{number}"
        RecentReplies(small).reply(request(name), lambda: b"reply")
        found = open_shared().find(name, "r")
        kept.append(found is not None and found.reply is not None)
    assert kept == [True, True, False, True]


def test_a_request_without_an_id_asks_the_store_nothing(open_shared: Open, valkey: str) -> None:
    client = redis.Redis(port=int(valkey.rpartition(":")[2]), db=DB)
    before = client.info("commandstats").get("cmdstat_mget", {}).get("calls", 0)
    replies = RecentReplies(open_shared())
    for _ in range(3):
        replies.reply(FeedRequest(user_id="u"), lambda: b"reply")
    assert client.info("commandstats").get("cmdstat_mget", {}).get("calls", 0) == before
    replies.reply(request(next(USERS)), lambda: b"reply")
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == before + 1


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[tuple[Valkey, Callable[[], None]]]:
    """A Valkey, and what kills it."""
    part = Valkey(tmp_path, name="replies")
    try:
        child = process.start(part)
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))
    yield part, child.kill
    child.stop()


def test_without_the_store_each_process_knows_its_own_replies(
    own_valkey: tuple[Valkey, Callable[[], None]],
) -> None:
    valkey, kill = own_valkey
    processes = [
        RecentReplies(SharedReplies(Connection(valkey.address, 0, TIMEOUT_S), KEY))
        for _ in range(2)
    ]
    redis.Redis(port=valkey.port).config_set("maxmemory", 1)  # full: every write is refused
    for replies in processes:
        own = b"%d" % id(replies)
        for _ in range(2):
            assert replies.reply(request("full"), lambda own=own: own) == own
    kill()
    began = time.monotonic()
    for replies in processes:
        for number in range(50):
            asked, own = request(f"down-{number}"), b"%d" % id(replies)
            assert replies.reply(asked, lambda own=own: own) == own
            assert replies.reply(asked, lambda: b"another") == own
        with pytest.raises(RequestConflict):
            replies.reply(request("down-0", k=3), lambda: b"another")
    assert time.monotonic() - began < 30.0, "a store that is down is seldom asked"
    with pytest.raises(StoreDown):
        processes[0].forget("down-0")
