"""Laws of streamed replies: they add up to the whole reply, an item is sent as soon as it is decided,
a broken stream says so, and a caller that leaves ends the work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import orjson
import pytest

from serving.fakes import FakeModelClient
from serving.http.capacity import Capacity
from serving.pipeline.runner import Deadlines
from serving.pipeline.streamed import decides_in_order
from serving.state.replies import CallerLeft, RecentReplies
from serving.surfaces import Surfaces
from serving.surfaces.queries import QueriesRequest, best_queries, queries
from streams.contract.impression import verify

KEY = bytes(range(32))
EVENTS = {"accept": "text/event-stream"}
BODY = {"user_id": "u1", "item_id": "v3", "k": 6, "seed": 5, "explore": False}
PATIENT = Deadlines(60_000.0, 60_000.0, 60_000.0, 60_000.0)
OF_ITS_OWN = {"impression"}  # holds the slate's id and its time


class GatedModels(FakeModelClient):
    """Its streams wait before their second part until the gate is opened, and say when closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.closed = threading.Event(), threading.Event()

    def infer_stream(
        self, model: str, inputs: Mapping[str, np.ndarray], **how: Any
    ) -> Generator[dict[str, np.ndarray], None, None]:
        try:
            for n, part in enumerate(super().infer_stream(model, inputs, **how)):
                if n:
                    assert self.gate.wait(60.0)
                yield part
        finally:
            self.closed.set()


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


def streamed(harness: Any, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    reply = harness.client.post("/v1/queries", json=BODY | more, headers=EVENTS)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events_of(reply.text)


def items_in(events: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [data for event, data in events if event == "item"]


@pytest.mark.parametrize("explore", [False, True])
def test_its_items_and_its_end_are_the_whole_reply(make_harness: Any, explore: bool) -> None:
    harness = make_harness(streams=False, deadlines=PATIENT)
    *items, (last, rest) = streamed(harness, request_id="r1", explore=explore)
    assert [event for event, _ in items] == ["item"] * BODY["k"]
    assert last == "done"
    again = harness.client.post("/v1/queries", json=BODY | {"request_id": "r1", "explore": explore})
    assert again.json() == rest | {"items": [item for _, item in items]}
    for slot, (_, item) in enumerate(items):
        token = verify(item["impression"], KEY)
        assert (token.slot, token.query, token.surface) == (slot, item["query"], "queries")
    assert streamed(harness, request_id="r1", explore=explore) == [*items, (last, rest)]
    whole = harness.client.post("/v1/queries", json=BODY | {"explore": explore}).json()
    assert [
        {name: value for name, value in item.items() if name not in OF_ITS_OWN}
        for item in whole["items"]
    ] == [{n: v for n, v in item.items() if n not in OF_ITS_OWN} for _, item in items]
    varying = {"request_id", "slate_id", "served_at_ms", "stage_ms"}
    assert {n: whole[n] for n in rest.keys() - varying} == {
        n: rest[n] for n in rest.keys() - varying
    }


def test_every_slate_of_a_stream_begins_with_the_items_of_the_one_before(stage_deps: Any) -> None:
    surfaces = Surfaces(stage_deps)
    request = QueriesRequest(**BODY)
    *parts, last = surfaces.stream(request)
    assert len(parts) == BODY["k"]
    for fewer, more in zip(parts, [*parts[1:], last], strict=True):
        assert more.items[: len(fewer.items)] == fewer.items
    assert last.items == surfaces.answer(request).items
    surfaces.close()


def test_an_item_is_sent_before_the_model_has_decided_the_next(make_harness: Any) -> None:
    models = GatedModels()
    harness = make_harness(streams=False, models=models, deadlines=PATIENT)
    with Caller(harness) as caller:
        assert caller.next_event()[0] == "item"
        assert not models.closed.is_set()
        models.gate.set()
        left = [event for event, _ in iter(caller.next_event, None)]
    assert left == ["item"] * (BODY["k"] - 1) + ["done"]


def test_a_caller_that_leaves_ends_the_work_and_its_next_try_is_answered(make_harness: Any) -> None:
    models = GatedModels()
    harness = make_harness(streams=False, models=models, deadlines=PATIENT)
    with Caller(harness, request_id="r1") as caller:
        assert caller.next_event()[0] == "item"
    models.gate.set()
    assert models.closed.wait(60.0)
    harness.wait_until(lambda: harness.client.app.state.capacity.waiting == 0)
    metric = harness.gateway.metrics.registry.get_sample_value
    assert metric("tidemill_requests_total", {"surface": "queries"}) in (None, 0.0)
    assert streamed(harness, request_id="r1")[-1][0] == "done"


@pytest.mark.parametrize("after", [0, 2])
def test_a_model_that_fails_midway_ends_in_an_error_with_the_fallbacks_items(
    make_harness: Any, after: int
) -> None:
    harness = make_harness(streams=False, deadlines=PATIENT)
    harness.models.breaks_after = after
    *items, (last, rest) = streamed(harness)
    assert last == "error"
    assert "the fake's stream breaks" in rest["detail"]
    sources = [item["source"] for _, item in items]
    assert sources[:after] == ["generated"] * after
    assert sources[after:]
    assert set(sources[after:]) == {"genre_words"}
    assert {each["stage"] for each in rest["fallbacks"]} == {"generated", "sources"}
    assert len({item["query"] for _, item in items}) == len(items)
    assert [item["slot"] for _, item in items] == list(range(len(items)))
    harness.models.down = True
    whole = harness.client.post("/v1/queries", json=BODY).json()["items"]
    assert after or [i["query"] for i in whole] == [item["query"] for _, item in items]


def test_a_model_that_hangs_midway_is_not_waited_for(stage_deps: Any) -> None:
    models = GatedModels()
    surfaces = Surfaces(replace(stage_deps, models=models, deadlines=Deadlines(sources=1_000.0)))
    *_, last = surfaces.stream(QueriesRequest(**BODY))
    assert last.broken == "no answer within 1000 ms"
    assert [each.source for each in last.items[:2]] == ["generated", "genre_words"]
    assert not models.closed.is_set(), "the model is still busy"
    models.gate.set()
    assert models.closed.wait(60.0)
    surfaces.close()


def test_failing_streams_do_not_close_the_way_to_whole_replies(make_harness: Any) -> None:
    harness = make_harness(streams=False, deadlines=PATIENT)
    harness.models.breaks_after = 1
    for _ in range(3):
        assert streamed(harness)[-1][0] == "error"
    assert "failed recently" in streamed(harness)[-1][1]["detail"]
    whole = harness.client.post("/v1/queries", json=BODY).json()
    assert {item["source"] for item in whole["items"]} == {"generated"}


def test_a_surface_that_does_not_stream_says_what_to_ask_for(make_harness: Any) -> None:
    harness = make_harness(streams=False, deadlines=PATIENT)
    for name, spec in harness.gateway.surfaces.specs.items():
        post = harness.client.get("/openapi.json").json()["paths"][f"/v1/{name}"]["post"]
        documented = set(post["responses"]["200"]["content"])
        assert documented == {"application/json", *(EVENTS.values() if spec.streams else ())}
        body = spec.canary("v3").model_dump(mode="json", exclude_none=True)
        refused = harness.client.post(f"/v1/{name}", json=body, headers=EVENTS)
        assert refused.status_code == (200 if spec.streams else 406)
        if not spec.streams:
            assert "application/json" in refused.json()["detail"]
            assert "queries" in refused.json()["detail"]
        html = {"accept": "text/html, */*"}
        assert harness.client.post(f"/v1/{name}", json=body, headers=html).json()["items"]


def test_refusals_have_their_status_codes(make_harness: Any) -> None:
    harness = make_harness(streams=False, deadlines=PATIENT)
    streamed(harness, request_id="r1")

    def ask(**more: Any) -> Any:
        return harness.client.post("/v1/queries", json=BODY | more, headers=EVENTS)

    conflict = ask(request_id="r1", k=3)
    assert conflict.status_code == 409
    assert conflict.json()["detail"][0]["field"] == "request_id"
    assert ask(k=1_000).status_code == 422
    capacity: Capacity = harness.client.app.state.capacity
    capacity._between_s, capacity.waiting = 5.0, 1_000
    busy = ask()
    assert busy.status_code == 429
    assert int(busy.headers["retry-after"]) >= 1


def test_only_an_order_that_is_kept_is_decided_early(stage_deps: Any) -> None:
    assert decides_in_order(best_queries(stage_deps))
    assert not decides_in_order(queries(stage_deps))


def test_a_repetition_of_an_abandoned_request_is_answered() -> None:
    replies, begun, leave = RecentReplies(), threading.Event(), threading.Event()
    request = QueriesRequest(user_id="u1", item_id="v3", request_id="r1")

    def abandoned() -> bytes:
        begun.set()
        assert leave.wait(60.0)
        raise CallerLeft

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(replies.reply, request, abandoned)
        assert begun.wait(60.0)
        second = threads.submit(replies.reply, request, lambda: b"answer")
        leave.set()
        assert second.result(60.0) == b"answer"
        with pytest.raises(CallerLeft):
            first.result(60.0)


class Caller:
    """One streamed request, of which each event is read as it is sent. Leaving it disconnects."""

    def __init__(self, harness: Any, **more: Any) -> None:
        self._client, self._body = harness.client, orjson.dumps(BODY | more)
        self._sent: SimpleQueue[bytes] = SimpleQueue()
        self._gone: asyncio.Event | None = None

    def __enter__(self) -> Caller:
        self._running = self._client.portal.start_task_soon(self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._gone is not None
        self._client.portal.call(self._gone.set)
        self._running.result(60.0)

    def next_event(self) -> tuple[str, dict[str, Any]] | None:
        """None: the reply has ended."""
        text = self._sent.get(timeout=60.0).decode()
        return events_of(text)[0] if text else None

    async def _ask(self) -> None:
        self._gone = asyncio.Event()
        whole = iter([{"type": "http.request", "body": self._body}])

        async def receive() -> dict[str, Any]:
            for message in whole:
                return message
            assert self._gone is not None
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                self._sent.put(message["body"])

        headers = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/queries", "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "raw_path": b"/v1/queries"}
        scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}, "scheme": "http"}
        await self._client.app(scope, receive, send)
