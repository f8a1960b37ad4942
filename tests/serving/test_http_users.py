"""Attributes of users: stated over HTTP or Kafka, read by stages, shown, and erased everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from serving.pipeline.pool import Pool
from serving.pipeline.query import Query
from serving.pipeline.runner import Deadlines
from serving.state.activity import Activity
from serving.surfaces import Surfaces
from serving.surfaces.feed import SURFACE, feed
from streams.bus.contract import Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.codec.batches import read_batch
from streams.contract.attributes import AttributeDeclaration, AttributeDeclarations
from streams.contract.declaration import Contract, declared
from streams.contract.events import KIND_CODE
from streams.contract.schema import event_schema
from streams.contract.signals import PROFILE, Signals
from streams.contract.topics import BEHAVIOUR, ERASURES, EVENTS_BY_USER
from streams.erasure import Erasures
from streams.event_log import EventLog

DECLARED = {
    "plan": AttributeDeclaration(type="label"),
    "age": AttributeDeclaration(type="number"),
    "taste": AttributeDeclaration(type="vector", length=3),
}
STATED = {"plan": "gold", "taste": [1, 0.5, 0], "season": "winter"}
READ = {"plan": "gold", "taste": [1.0, 0.5, 0.0], "season": "winter"}


def _contract(undeclared: Any = "mark") -> Contract:
    users = AttributeDeclarations(DECLARED, undeclared)
    return Contract(users=users, signals=Signals((PROFILE,)))


@pytest.fixture(autouse=True)
def _users() -> Iterator[None]:
    with declared(_contract()):
        yield


@pytest.fixture
def harness(make_harness: Any) -> Any:
    made = make_harness(deadlines=Deadlines(*[60_000.0] * 4))
    made.wait_until = partial(made.wait_until, seconds=60.0)
    return made


@pytest.fixture
def quiet(make_harness: Any) -> Any:
    """A gateway whose topics no other process reads."""
    return make_harness(streams=False)


def _sent(harness: Any, topic: str) -> list[dict[str, Any]]:
    return [
        orjson.loads(record.value)
        for partition, (start, end) in harness.bus.ends(topic).items()
        for record in harness.bus.scan(topic, partition, start, end)
    ]


def _attributes(harness: Any, user_id: str = "u1") -> dict[str, Any]:
    found: dict[str, Any] = harness.client.get(f"/v1/users/{user_id}").json()["attributes"]
    return found


def test_put_replaces_what_was_stated_and_get_shows_it(harness: Any) -> None:
    assert _attributes(harness) == {}
    put = harness.client.put("/v1/users/u1", json={"attributes": STATED})
    assert (put.status_code, put.json()) == (202, {"accepted": 1, "user_id": "u1"})
    harness.wait_until(lambda: _attributes(harness) == READ)
    assert harness.client.get("/v1/users/u1").json()["undeclared"] == ["season"]
    harness.client.put("/v1/users/u1", json={"attributes": {"age": 41}})
    harness.wait_until(lambda: _attributes(harness) == {"age": 41.0})
    assert harness.client.get("/v1/users/u1").json()["undeclared"] == []
    harness.client.put("/v1/users/u1", json={"attributes": {}})
    harness.wait_until(lambda: _attributes(harness) == {})


def test_one_or_many_with_the_id_in_the_body_and_over_kafka(harness: Any) -> None:
    odd = "a/b ?#"
    one = harness.client.post("/v1/users", json={"user_id": odd, "attributes": {"age": 1}})
    assert (one.status_code, one.json()) == (202, {"accepted": 1})
    many = [{"user_id": user, "attributes": {"age": n}} for n, user in enumerate(("x", "y", "x"))]
    assert harness.client.post("/v1/users", json=many).json() == {"accepted": 3}
    event = {"event_id": "k", "user_id": "kafka", "kind": "profile", "attributes": {"age": 9}}
    event["event_time_ms"] = harness.gateway.clock.now_ms()
    harness.bus.producer().send([Outgoing(BEHAVIOUR, orjson.dumps(event))])
    for user, age in ((odd, 1.0), ("x", 2.0), ("y", 1.0), ("kafka", 9.0)):
        found = lambda user=user: harness.client.post("/v1/users/lookup", json={"user_id": user})  # noqa: E731
        harness.wait_until(lambda f=found, a=age: f().json()["attributes"] == {"age": a})
    assert len([e for e in _sent(harness, BEHAVIOUR) if e["user_id"] == "x"]) == 1


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"plan": 7}, "'plan' does not fit: it is declared label, not a number"),
        ({"age": "old"}, "'age' does not fit"),
        ({"taste": [1, 2]}, "3 numbers and has 2"),
        ({f"a{n}": n for n in range(10_000)}, "10000 attributes"),
        ({f"note{n}": "x" * 8_000 for n in range(5)}, "bytes of attributes as JSON"),
        ({"plan": "\ud800"}, "a text has up to"),
        ({"plan": {"a": 1}}, "attributes.plan"),
        ("gold", "attributes"),
        (None, "attributes"),
    ],
)
def test_what_does_not_fit_is_422_by_name_and_not_sent(
    quiet: Any, attributes: Any, named: str
) -> None:
    body = {"attributes": attributes}
    headers = {"content-type": "application/json"}
    for send, path, stated in (
        (quiet.client.put, "/v1/users/u1", body),
        (
            quiet.client.post,
            "/v1/users",
            [{"user_id": "ok", "attributes": {}}, body | {"user_id": "u"}],
        ),
    ):
        # json.dumps escapes half a surrogate pair; httpx would not.
        reply = send(path, content=json.dumps(stated).encode(), headers=headers)
        assert reply.status_code == 422, reply.text
        assert named in reply.text
    assert reply.json()["detail"][0]["index"] == 1
    assert _sent(quiet, BEHAVIOUR) == []


def test_nan_in_a_vector_is_refused(quiet: Any) -> None:
    body, headers = b'{"attributes": {"taste": [1, NaN, 2]}}', {"content-type": "application/json"}
    reply = quiet.client.put("/v1/users/u1", content=body, headers=headers)
    assert reply.status_code == 422
    assert "attributes.taste" in reply.text


def test_an_undeclared_attribute_is_refused_where_that_is_declared(quiet: Any) -> None:
    with declared(_contract("reject")):
        reply = quiet.client.put("/v1/users/u1", json={"attributes": STATED})
        assert (reply.status_code, "'season' is not declared" in reply.text) == (422, True)
        event = {"event_id": "e", "user_id": "u", "kind": "profile", "attributes": STATED}
        event |= {"event_time_ms": quiet.gateway.clock.now_ms()}
        (refused,) = quiet.client.post("/v1/events", json=event).json()["refused"]
        assert (refused["cause"], refused["field"]) == ("undeclared_attribute", "attributes")


def test_an_attribute_named_as_a_kind_keeps_its_name_in_the_problem(quiet: Any) -> None:
    event = {"event_id": "e", "user_id": "u", "kind": "profile", "attributes": {"like": {}}}
    event |= {"event_time_ms": quiet.gateway.clock.now_ms()}
    (refused,) = quiet.client.post("/v1/events", json=event).json()["refused"]
    assert refused["field"] == "attributes.like"


def test_a_key_for_events_states_no_attributes(make_harness: Any) -> None:
    keys = {"browser": ["events"], "owner": ["events", "admin"]}
    made = make_harness(streams=False, api_keys=keys)
    event = {"event_id": "e", "user_id": "u", "kind": "profile", "attributes": {"plan": "gold"}}
    event |= {"event_time_ms": made.gateway.clock.now_ms()}
    play = event | {"kind": "play", "item_id": "v1"}
    bodies = [json.dumps(event), json.dumps(event).replace("profile", "pro\\u0066ile")]
    bodies += [f'{{"x": NaN, {json.dumps(event)[1:]}', f"[{json.dumps(event)}]"]
    for body in bodies:
        for query in ("", "?admit=async"):
            headers = {"content-type": "application/json", "x-api-key": "browser"}
            reply = made.client.post(f"/v1/events{query}", content=body, headers=headers)
            (refused,) = reply.json()["refused"]
            assert (reply.status_code, refused["cause"]) == (422, "forbidden"), body
    assert _sent(made, BEHAVIOUR) == []
    for path, put in (("/v1/users/u", made.client.put), ("/v1/users", made.client.post)):
        stated = {"attributes": {}}
        assert put(path, json=stated, headers={"x-api-key": "browser"}).status_code == 403
    mixed = {"json": [event, play], "headers": {"x-api-key": "browser"}}
    assert made.client.post("/v1/events?admit=async", **mixed).json()["accepted"] == 1
    mixed["headers"] = {"x-api-key": "owner"}
    assert made.client.post("/v1/events", **mixed).json()["accepted"] == 2


def test_without_a_declaration_they_are_refused_with_the_fix(quiet: Any) -> None:
    with declared(Contract()):
        for reply in (
            quiet.client.put("/v1/users/u1", json={"attributes": {}}),
            quiet.client.post("/v1/users", json={"user_id": "u1", "attributes": {}}),
        ):
            assert reply.status_code == 422
            assert "[users.attributes]" in reply.json()["detail"][0]["msg"]
        assert _attributes(quiet) == {}


def test_stages_read_what_was_stated(harness: Any) -> None:
    """A filter of an owner's that removes items by the user's plan, behind the real store."""
    harness.client.put("/v1/users/u1", json={"attributes": STATED})
    harness.wait_until(lambda: _attributes(harness) == READ)

    class ForGold:
        name, soft = "for_gold", False

        def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
            gold = query.user_attributes.get("plan") == "gold"
            return [None if gold else "gold only"] * len(pool)

    surfaces: Surfaces = harness.gateway.surfaces
    pipeline = replace(feed(surfaces.deps), filters=[ForGold()])
    surfaces._pipelines["feed", ""] = pipeline
    for user, count in (("u1", 3), ("u2", 0)):
        slate = surfaces.answer(SURFACE.request(user_id=user, k=3))  # type: ignore[call-arg]
        assert len(slate.items) == count
    assert slate.query.user_attributes == {}


def test_erasure_removes_them_from_log_store_replies_and_this_process(
    harness: Any, tmp_path: Path
) -> None:
    harness.client.put("/v1/users/u1", json={"attributes": STATED})
    harness.client.put("/v1/users/u2", json={"attributes": {"age": 5}})
    harness.wait_until(lambda: _attributes(harness) == READ and _attributes(harness, "u2") != {})
    log = EventLog(tmp_path)
    for record in _records(harness, EVENTS_BY_USER):
        if (table := read_batch(record)) is not None:
            stamp = Stamp(harness.bus.topic_id(EVENTS_BY_USER), record.partition, record.offset)
            log.append(Delivery(EVENTS_BY_USER, stamp, table))
    assert "gold" in str(log.read()["text"].to_list())

    assert harness.client.delete("/v1/users/u1").status_code == 202
    assert harness.client.get("/v1/users/u1").json()["attributes"] == {}
    assert "gold" not in str(harness.gateway.surfaces.deps.last_users.get("u1"))
    (tombstone,) = _sent(harness, ERASURES)
    log.erase(tombstone["user_id"], tombstone["at_ms"])
    assert log.read()["user_id"].to_list() == ["u2"]
    erasures = Erasures(harness.bus)
    erasures.close()
    assert erasures.until_ms == {"u1": tombstone["at_ms"]}
    # What is stated after the erasure counts again.
    harness.client.put("/v1/users/u1", json={"attributes": {"age": 6}})
    harness.wait_until(lambda: _attributes(harness) == {"age": 6.0})


def _records(harness: Any, topic: str) -> Iterator[Any]:
    for partition, (start, end) in harness.bus.ends(topic).items():
        yield from harness.bus.scan(topic, partition, start, end)


def test_a_profile_is_no_activity_of_the_user() -> None:
    row = dict.fromkeys(event_schema().names) | {
        "event_id": "e", "user_id": "ann", "event_time_ms": 1, "ingested_at_ms": 1,
        "surface": "external", "origin": "live", "late": False, "duplicate": False,
        "source_partition": 0, "source_offset": 0,
    }  # fmt: skip
    search = row | {"user_id": "bob", "kind": KIND_CODE["search"], "query": "q"}
    stated = row | {"kind": PROFILE.number, "text": "{}"}
    activity = Activity()
    activity.fold(pa.Table.from_pylist([stated, search], schema=event_schema()))
    assert [user.user_id for user in activity.latest(5)] == ["bob"]
