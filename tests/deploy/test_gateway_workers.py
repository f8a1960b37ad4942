"""Two gateway workers on one port, on a real stack: one answer whichever is asked, and a killed one
takes down only what it was answering."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy import state
from deploy.services.process import wait_until
from deploy.settings import Settings
from deploy.stack import Stack

WITHIN_S = 90.0


class Gateway:
    """The stack's gateway, asked over connections of which the worker is known."""

    def __init__(self, stack: Stack) -> None:
        self._home, self.port = stack.settings.home, stack.settings.gateway.port

    def pid(self) -> int:
        return next(r.pid or 0 for r in state.read_services(self._home) if r.name == "gateway")

    def workers(self) -> list[int]:
        return sorted(child.pid for child in psutil.Process(self.pid()).children())

    def connect(self) -> Worker:
        """A connection, and which worker has it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        ask(connection, "GET", "/v1/surfaces")
        own = connection.sock.getsockname()[1]
        for pid in self.workers():
            for each in psutil.Process(pid).net_connections("tcp"):
                if each.raddr and each.raddr.port == own:
                    return Worker(self, pid, connection)
        raise AssertionError("no worker has the connection")

    def both(self) -> list[Worker]:
        """The two workers, each with an open connection."""
        found: dict[int, Worker] = {}
        while len(found) < 2:
            worker = self.connect()
            found.setdefault(worker.pid, worker)
        return list(found.values())


@dataclass
class Worker:
    """A worker, asked over a connection to it."""

    gateway: Gateway
    pid: int
    connection: http.client.HTTPConnection

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            return ask(self.connection, method, path, body)
        except (OSError, http.client.HTTPException):  # closed: it was idle for 5 s
            self.connection = next(
                each.connection for each in iter(self.gateway.connect, None) if each.pid == self.pid
            )
            return ask(self.connection, method, path, body)

    def feeds(self) -> float:
        """Feeds that all workers have answered, by this one's metrics."""
        self.connection.request("GET", "/metrics")
        text = self.connection.getresponse().read().decode()
        return sum(
            sample.value
            for metric in text_string_to_metric_families(text)
            for sample in metric.samples
            if sample.name == "tidemill_requests_total" and sample.labels["surface"] == "feed"
        )


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    reply = connection.getresponse()
    found = reply.read()
    assert reply.status < 300, (path, reply.status, found)
    return dict(json.loads(found))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        broker={"kind": "embedded"},
        triton={"kind": "in_process"},
        gateway={"workers": 2},
    )
    with Stack(settings) as stack:
        found = Gateway(stack)
        assert wait_until(lambda: (stack.settings.home / "services.json").exists(), WITHIN_S)
        items = [_item(number) for number in range(40)]
        found.both()[0].ask("POST", "/v1/catalogue", items)
        yield found


def _item(number: int) -> dict[str, Any]:
    return {
        "item_id": f"i{number}",
        "title": f"Item {number}",
        "categories": ["Drama"],
        "created_ms": 1_700_000_000_000,
    }


def _like(user_id: str, item_id: str) -> dict[str, Any]:
    at_ms = time.time_ns() // 1_000_000
    return {
        "event_id": f"{user_id}-{item_id}",
        "kind": "like",
        "user_id": user_id,
        "item_id": item_id,
        "event_time_ms": at_ms,
    }


def test_an_event_that_one_worker_took_is_in_the_feed_of_the_other(gateway: Gateway) -> None:
    first, second = gateway.both()
    for each in (first, second):
        _until_feed(each, lambda feed: len(feed["items"]) == 10, user_id="new")
    taken = second.ask("POST", "/v1/feed", {"user_id": "u1"})["items"][0]["item_id"]
    first.ask("POST", "/v1/events", _like("u1", taken))
    for each in (second, first):
        feed = _until_feed(each, lambda feed: taken not in _ids(feed), user_id="u1", k=39)
        assert taken in json.dumps(feed["removed"])


def test_a_request_repeated_at_the_other_worker_gets_the_same_reply(gateway: Gateway) -> None:
    body = {"user_id": "u2", "request_id": "r-1"}
    first, second = (each.ask("POST", "/v1/feed", body) for each in gateway.both())
    assert first == second


def test_an_erasure_reaches_the_memory_of_both_workers(gateway: Gateway) -> None:
    first, second = gateway.both()
    first.ask("POST", "/v1/events", _like("gone", "i1"))
    for each in (first, second):
        assert wait_until(lambda each=each: "gone" in _users(each), WITHIN_S)
    first.ask("DELETE", "/v1/users/gone")
    for each in (first, second):
        assert wait_until(lambda each=each: "gone" not in _users(each), WITHIN_S)


def test_a_killed_worker_takes_down_only_what_it_was_answering(gateway: Gateway) -> None:
    victims = gateway.workers()
    connections = {worker.pid: worker.connection for worker in gateway.both()}
    killed, left = victims
    failed: dict[int, int] = dict.fromkeys(victims, 0)
    answered: dict[int, int] = dict.fromkeys(victims, 0)
    stop = threading.Event()

    def call(pid: int) -> None:
        while not stop.is_set():
            try:
                ask(connections[pid], "POST", "/v1/feed", {"user_id": "u3"})
                answered[pid] += 1
            except (OSError, http.client.HTTPException):
                failed[pid] += 1
                return  # its connection is gone

    threads = [threading.Thread(target=call, args=(pid,)) for pid in victims]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: min(answered.values()) >= 3, WITHIN_S)
    counted = {worker.pid: worker for worker in gateway.both()}[left].feeds()
    os.kill(killed, signal.SIGKILL)
    before = answered[left]
    assert wait_until(lambda: answered[left] >= before + 20, WITHIN_S)
    stop.set()
    for thread in threads:
        thread.join(WITHIN_S)
    assert (failed[killed], failed[left]) == (1, 0)
    assert wait_until(lambda: len(gateway.workers()) == 2 and killed not in gateway.workers(), 30)
    new, old = gateway.both()  # the new worker answers
    old.ask("POST", "/v1/events", _like("back", "i2"))
    for each in (new, old):
        assert wait_until(lambda each=each: "back" in _users(each), WITHIN_S)
    assert _users(new) == _users(old), "it read on, and nothing twice"
    more = answered[left] - before
    assert wait_until(
        lambda: gateway.connect().feeds() >= counted + more,
        WITHIN_S,
    ), "the counts of the killed worker are still there"


def test_no_process_is_left_after_a_killed_parent(gateway: Gateway) -> None:
    parent, workers = gateway.pid(), gateway.workers()
    os.kill(parent, signal.SIGKILL)
    assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers), WITHIN_S)
    assert wait_until(lambda: gateway.pid() not in (parent, 0), WITHIN_S)
    assert wait_until(lambda: len(gateway.workers()) == 2, WITHIN_S)
    assert wait_until(lambda: _answers(gateway), WITHIN_S)


def _answers(gateway: Gateway) -> bool:
    try:
        return len(gateway.both()) == 2
    except OSError:
        return False


def _ids(feed: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in feed["items"]]


def _users(worker: Worker) -> str:
    return json.dumps(worker.ask("GET", "/v1/users")["users"])


def _until_feed(
    worker: Worker,
    condition: Callable[[dict[str, Any]], bool],
    **body: Any,
) -> dict[str, Any]:
    """The first feed that meets the condition."""
    until = time.monotonic() + WITHIN_S
    while not condition(feed := worker.ask("POST", "/v1/feed", body)):
        assert time.monotonic() < until, feed
        time.sleep(0.05)
    return feed
