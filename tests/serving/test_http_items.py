"""Items over HTTP: any kind, declared attributes, and the field names of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from streams.contract.attributes import AttributeDeclaration, AttributeDeclarations
from streams.contract.declaration import Contract, declared
from streams.contract.items import CATALOGUE_EVENT
from streams.contract.signals import Signal, Signals
from streams.contract.topics import BEHAVIOUR, CATALOGUE

SHOE = {
    "title": "Shoe", "kind": "product", "categories": ["Shoes"], "brand": "Acme",
    "price_cents": 8_900, "currency": "EUR", "attributes": {"colour": "red", "season": "winter"},
}  # fmt: skip
DECLARED = AttributeDeclarations({"colour": AttributeDeclaration(type="label")}, "mark")
RATING = Signal("rating", 64, "engagement", ("value",), 1_000)


@pytest.fixture
def harness(make_harness: Any) -> Iterator[Any]:
    with declared(Contract(items=DECLARED, signals=Signals((RATING,)))):
        yield make_harness(streams=False)


def _sent(harness: Any, topic: str) -> list[bytes]:
    ends = harness.bus.ends(topic).items()
    return [
        bytes(record.value)
        for partition, (start, end) in ends
        for record in harness.bus.scan(topic, partition, start, end)
    ]


def test_an_item_is_published_with_its_attributes_and_read_under_both_names(harness: Any) -> None:
    put = harness.client.put("/v1/catalogue/shoe-1", json=SHOE)
    assert (put.status_code, put.json()["item_id"]) == (202, "shoe-1")
    (message,) = _sent(harness, CATALOGUE)
    event = CATALOGUE_EVENT.validate_json(message)
    assert orjson.loads(message)["item"]["item_id"] == "shoe-1"
    harness.gateway.catalogue.apply(event)
    found = harness.client.get("/v1/catalogue/shoe-1").json()
    assert {name: found[name] for name in SHOE} == SHOE
    assert (found["item_id"], found["video_id"]) == ("shoe-1", "shoe-1")
    assert found["categories"] == found["genres"]
    assert (found["undeclared"], found["available"]) == (["season"], True)


def test_the_old_names_are_accepted(harness: Any) -> None:
    put = harness.client.put("/v1/catalogue/film", json={"title": "Film", "genres": ["Drama"]})
    assert put.status_code == 202
    (message,) = _sent(harness, CATALOGUE)
    assert orjson.loads(message)["item"]["categories"] == ["Drama"]


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"attributes": {"colour": 7}}, "'colour' does not fit: it is declared label"),
        ({"attributes": {f"a{n}": n for n in range(10_000)}}, "10000 attributes"),
        ({"currency": "euro"}, "currency"),
        ({"kind": "Product"}, "kind"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_item_that_does_not_fit_is_422_and_not_published(
    harness: Any, own: dict[str, Any], named: str
) -> None:
    reply = harness.client.put("/v1/catalogue/shoe-1", json=SHOE | own)
    assert reply.status_code == 422
    assert named in reply.text
    assert _sent(harness, CATALOGUE) == []


def test_a_declared_signal_is_accepted_and_others_are_named(harness: Any) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "shoe-1", "event_time_ms": 1}
    event |= {"event_time_ms": harness.gateway.clock.now_ms(), "kind": "rating", "value": 4.5}
    reply = harness.client.post("/v1/events", json=[event, event | {"kind": "bookmark"}])
    assert reply.status_code == 202
    (refused,) = reply.json()["refused"]
    assert (reply.json()["accepted"], refused["cause"]) == (1, "unknown_kind")
    (message,) = _sent(harness, BEHAVIOUR)
    assert orjson.loads(message)["value"] == 4.5
