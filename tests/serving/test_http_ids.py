"""Laws of ids over HTTP: every id that an event may have works, and others are 422."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streams.catalogue import item_id_of
from streams.contract.bounds import MAX_EVENT_TIME_MS, MAX_ID
from streams.contract.events import CATALOGUE_EVENT
from streams.contract.topics import CATALOGUE, ERASURES
from streams.erasure import Erasure

_TEXT = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
IDS = st.text(_TEXT, min_size=1, max_size=MAX_ID)
NAMED = [
    "10.5281/zenodo.408",
    "a/b",
    "/",
    "a/",
    "%2F",
    "a%2Fb",
    "lookup",
    "\n",
    "a\n",
    "?#&",
    "ü/é",
]
BAD = ["%00", "a%00b", "%FF", "a%ED%A0%80", "x" * (MAX_ID + 1)]
TIME_ROUTE = "/v1/catalogue/px"


@pytest.fixture
def quiet(make_harness: Any) -> Any:
    return make_harness(streams=False)


def _last(harness: Any, topic: str) -> bytes:
    ((_, end),) = harness.bus.ends(topic).values()
    (record,) = harness.bus.scan(topic, 0, end - 1, end)
    return bytes(record.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(IDS)
@example("10.5281/zenodo.408")
@example("a/b")
@example("%2F")
@example("\n")
@example("長" * MAX_ID)
def test_every_accepted_id_works_in_a_path_and_in_a_body(quiet: Any, user_id: str) -> None:
    path = quote(user_id, safe="") if user_id.strip(".") else user_id.replace(".", "%252E")
    wanted = user_id if user_id.strip(".") else user_id.replace(".", "%2E")
    found = quiet.client.get(f"/v1/users/{path}")
    assert (found.status_code, found.json()["user_id"]) == (200, wanted)
    found = quiet.client.post("/v1/users/lookup", json={"user_id": user_id})
    assert (found.status_code, found.json()["user_id"]) == (200, user_id)
    assert quiet.client.delete(f"/v1/users/{path}").json()["user_id"] == wanted
    assert Erasure.model_validate_json(_last(quiet, ERASURES)).user_id == wanted
    assert quiet.client.post("/v1/erasures", json={"user_id": user_id}).status_code == 202
    assert Erasure.model_validate_json(_last(quiet, ERASURES)).user_id == user_id
    put = quiet.client.put(f"/v1/catalogue/{path}", json={"title": "T", "author_id": user_id})
    assert (put.status_code, put.json()["video_id"]) == (202, wanted)
    assert quiet.client.get(f"/v1/catalogue/{path}").status_code in (200, 404)  # not read back yet
    assert quiet.client.delete(f"/v1/catalogue/{path}").json()["video_id"] == wanted
    put = quiet.client.post("/v1/catalogue", json={"video_id": user_id, "title": "T"})
    assert (put.status_code, put.json()) == (202, {"accepted": 1, "changed": 1})
    sent = CATALOGUE_EVENT.validate_json(_last(quiet, CATALOGUE))
    assert item_id_of(sent) == user_id
    stated = {"video_id": user_id}
    assert quiet.client.post("/v1/catalogue/lookup", json=stated).status_code in (200, 404)
    assert quiet.client.post("/v1/catalogue/takedowns", json=stated).json()["video_id"] == user_id


@pytest.mark.parametrize("user_id", NAMED)
def test_a_slash_works_encoded_and_plain(quiet: Any, user_id: str) -> None:
    for path in {quote(user_id, safe=""), quote(user_id, safe="/")}:
        assert quiet.client.get(f"/v1/users/{path}").json()["user_id"] == user_id


def test_the_routes_beside_ids_are_unambiguous(quiet: Any) -> None:
    assert "users" in quiet.client.get("/v1/users").json()
    assert quiet.client.get("/v1/users/lookup").json()["user_id"] == "lookup"
    paths = quiet.client.get("/openapi.json").json()["paths"]
    assert {"/v1/users/{user_id}", "/v1/users/lookup", "/v1/erasures"} <= set(paths)
    assert {"/v1/catalogue/{item_id}", "/v1/catalogue", "/v1/catalogue/lookup"} <= set(paths)


@pytest.mark.parametrize("item_id", [".", "..", "lookup", "takedowns"])
def test_an_item_that_fits_no_path_is_added_read_and_taken_down(quiet: Any, item_id: str) -> None:
    client, stated = quiet.client, {"video_id": item_id}
    assert client.post("/v1/catalogue/lookup", json=stated).status_code == 404
    assert client.post("/v1/catalogue", json=stated | {"title": "T"}).json()["changed"] == 1
    quiet.wait_until(lambda: quiet.gateway.catalogue.available(item_id))
    found = client.post("/v1/catalogue/lookup", json=stated).json()
    assert (found["video_id"], found["title"], found["available"]) == (item_id, "T", True)
    assert client.post("/v1/catalogue/takedowns", json=stated).json()["changed"] is True
    quiet.wait_until(lambda: not quiet.gateway.catalogue.available(item_id))
    assert client.post("/v1/catalogue/takedowns", json=stated).json()["changed"] is False


def test_a_list_of_items_is_accepted_whole_or_refused_whole(quiet: Any) -> None:
    many = [{"video_id": f"many-{n}", "title": "T"} for n in range(1_000)]
    assert quiet.client.post("/v1/catalogue", json=many).json() == {
        "accepted": 1_000,
        "changed": 1_000,
    }
    quiet.wait_until(lambda: quiet.gateway.catalogue.available("many-999"))
    before = sum(end for _, end in quiet.bus.ends(CATALOGUE).values())
    for body, index, field in (
        ([many[0], {"video_id": "x"}], 1, "title"),
        ([many[0], many[1] | {"created_ms": 10**19}], 1, "created_ms"),
        ([many[0], many[1] | {"created_ms": MAX_EVENT_TIME_MS}], 1, "created_ms"),
        ({"video_id": "", "title": "T"}, 0, "video_id"),
        ("x", 0, "body"),
        ([], None, "body"),
        ([*many, many[0]], None, "body"),
    ):
        reply = quiet.client.post("/v1/catalogue", json=body)
        assert reply.status_code == 422
        problem = reply.json()["detail"][0]
        assert (problem.get("index"), problem["field"]) == (index, field)
    assert sum(end for _, end in quiet.bus.ends(CATALOGUE).values()) == before


def test_an_item_that_is_put_again_changes_nothing_and_the_reply_says_so(quiet: Any) -> None:
    body = {"title": "T", "created_ms": 1_700_000_000_000}
    assert quiet.client.put("/v1/catalogue/again", json=body).json()["changed"] is True
    quiet.wait_until(lambda: quiet.gateway.catalogue.available("again"))
    assert quiet.client.put("/v1/catalogue/again", json=body).json()["changed"] is False


@pytest.mark.parametrize("path", BAD)
def test_an_id_that_no_event_may_have_is_422_naming_the_field(quiet: Any, path: str) -> None:
    for method, url, field in (
        ("GET", "/v1/users/", "user_id"),
        ("DELETE", "/v1/users/", "user_id"),
        ("GET", "/v1/catalogue/", "item_id"),
        ("PUT", "/v1/catalogue/", "item_id"),
        ("DELETE", "/v1/catalogue/", "item_id"),
    ):
        body = {"title": "T"} if method == "PUT" else None
        reply = quiet.client.request(method, url + path, json=body)
        assert reply.status_code == 422, (method, url)
        assert reply.json()["detail"][0]["field"] == field
    assert sum(end for _, end in quiet.bus.ends(ERASURES).values()) == 0
    assert sum(end for _, end in quiet.bus.ends(CATALOGUE).values()) == 0


@pytest.mark.parametrize("user_id", ["", "\0", "x" * (MAX_ID + 1), None, 7, "\ud800"])
def test_an_invalid_id_in_a_body_is_422_naming_the_field(quiet: Any, user_id: Any) -> None:
    body = json.dumps({"user_id": user_id}).encode()
    for path in ("/v1/users/lookup", "/v1/erasures", "/v1/feed", "/v1/reactivation"):
        reply = quiet.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 422, path
        assert reply.json()["detail"][0]["field"] == "user_id"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"author_id": ""}, "author_id"),
        ({"author_id": "a\0"}, "author_id"),
        ({"title": ""}, "title"),
        ({"title": "a\0"}, "title"),
        ({"genres": [""]}, "genres.0"),
        ({"genres": ["g"] * 33}, "genres"),
        ({"duration_ms": 10**19}, "duration_ms"),
        ({"duration_ms": -1}, "duration_ms"),
        ({"price_cents": 10**19}, "price_cents"),
        ({"created_ms": 10**19}, "created_ms"),
        ({"created_ms": MAX_EVENT_TIME_MS + 1}, "created_ms"),
        ({"created_ms": 1}, "created_ms"),
        ({"created_ms": MAX_EVENT_TIME_MS}, "created_ms"),  # the topic would refuse it as future
        ({"provenance": "alien"}, "provenance"),
    ],
)
def test_an_invalid_item_is_422_naming_the_field(
    quiet: Any, fields: dict[str, Any], field: str
) -> None:
    reply = quiet.client.put(TIME_ROUTE, json={"title": "T"} | fields)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["field"] == field


@pytest.mark.parametrize(
    ("stated", "fix"),
    [
        (1_790_000_000, "seconds: multiply by 1000"),
        (1_790_000_000_000_000, "microseconds: divide by 1000"),
        (1_790_000_000_000_000_000, "nanoseconds"),
        ("2026-11-30", "not a string"),
        (10**19, "milliseconds since 1970"),
    ],
)
def test_a_time_in_another_unit_is_422_with_the_fix(quiet: Any, stated: Any, fix: str) -> None:
    reply = quiet.client.put(TIME_ROUTE, json={"title": "T", "created_ms": stated})
    assert reply.status_code == 422
    assert fix in reply.json()["detail"][0]["msg"]


@pytest.fixture
def cors(make_harness: Any) -> Any:
    return lambda *origins: make_harness(streams=False, cors_origins=origins).client


def test_cors_is_off_unless_origins_are_configured(cors: Any) -> None:
    origin = {"Origin": "https://shop.example"}
    name = "access-control-allow-origin"
    assert name not in cors().get("/healthz", headers=origin).headers
    client = cors("https://shop.example")
    assert client.get("/healthz", headers=origin).headers[name] == "https://shop.example"
    assert name not in client.get("/healthz", headers={"Origin": "https://other"}).headers
    preflight = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key",
    }
    assert client.options("/v1/feed", headers=preflight).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/page/app.js", "/healthz", "/metrics", "/v1/models", "/v1/users", "/v1/users/u"]
)
def test_head_has_the_status_and_headers_of_get(quiet: Any, path: str) -> None:
    head, get = quiet.client.head(path), quiet.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_head_of_a_stream_ends_and_of_other_routes_is_405(quiet: Any) -> None:
    assert quiet.client.head("/v1/stream").headers["content-type"].startswith("text/event-stream")
    assert not quiet.gateway.hub.has_subscribers()
    assert quiet.client.head("/v1/feed").status_code == 405
