"""Laws of every surface: one suite over the registry.

A surface that is added to `serving.registry` is tested here without a line of its own.
"""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from typer.testing import CliRunner

from deploy import wiring
from deploy.cli import ask
from deploy.settings import Settings
from serving.fakes import fake_surfaces
from serving.kafka_requests import answer
from serving.monitoring.surface_monitor import SurfaceMonitor
from serving.pipeline.query import Slate
from serving.pipeline.requests import Request
from serving.registry import EVENT_SURFACES, SURFACES
from serving.state.replies import RecentReplies
from serving.surfaces import Surfaces, load_surfaces
from streams.codec.decode import validate_json_event
from streams.contract.bounds import NAME_PATTERN
from streams.contract.declaration import contract, declared
from streams.contract.events import CatalogueItem
from streams.contract.impression import verify

KEY = bytes(range(32))
ITEMS = [
    CatalogueItem(video_id=f"v{n}", title=f"Film {n}", genres=(("War", "Drama", "Comedy")[n % 3],))
    for n in range(12)
]
EVENT = {
    "event_id": "e",
    "user_id": "u",
    "kind": "play",
    "video_id": "v1",
    "event_time_ms": 1_750_000_000_000,
}


@pytest.fixture(scope="module")
def surfaces() -> Iterator[Surfaces]:
    made = fake_surfaces(ITEMS)
    yield made
    made.close()


@pytest.fixture(params=SURFACES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def canary_body(surfaces: Surfaces, name: str) -> dict[str, Any]:
    body = surfaces.specs[name].canary("v3").model_dump(mode="json", exclude_none=True)
    return body | {"request_id": f"canary-{name}"}


def test_its_name_is_one_that_every_reader_accepts(name: str) -> None:
    spec = load_surfaces()[name]
    assert len(name) <= 32
    assert re.fullmatch(NAME_PATTERN, name)
    assert get_args(spec.request.model_fields["surface"].annotation) == (name,)
    assert spec.about.endswith(".")


def test_its_reply_is_what_its_model_says_and_its_impressions_name_it(
    surfaces: Surfaces, name: str
) -> None:
    spec = surfaces.specs[name]
    slate = surfaces.answer(surfaces.read_request(canary_body(surfaces, name)))
    reply = surfaces.reply(slate, KEY)
    spec.reply.model_validate_json(orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY))
    assert reply["items"]
    assert {verify(item["impression"], KEY).surface for item in reply["items"]} == {name}


def test_the_example_of_its_reply_fits_the_model(name: str) -> None:
    reply = load_surfaces()[name].reply
    extra = reply.model_config.get("json_schema_extra", {})
    assert isinstance(extra, dict)
    for example in extra.get("examples", []):
        reply.model_validate(example)


def test_it_is_answered_over_http_and_kafka_alike(
    make_harness: Any, surfaces: Surfaces, name: str
) -> None:
    body = canary_body(surfaces, name)
    harness = make_harness(streams=False)
    over_http = harness.client.post(f"/v1/{name}", json=body)
    assert over_http.status_code == 200, over_http.text
    assert (
        harness.gateway.metrics.registry.get_sample_value(
            "tidemill_requests_total", {"surface": name}
        )
        == 1.0
    )
    over_kafka = orjson.loads(answer(orjson.dumps(body), surfaces, KEY, RecentReplies()))
    assert over_kafka.keys() == over_http.json().keys()
    assert (over_kafka["surface"], over_kafka["request_id"]) == (name, body["request_id"])
    listed = harness.client.get("/v1/surfaces").json()["surfaces"]
    assert [each["surface"] for each in listed] == list(SURFACES)
    documented = harness.client.get("/openapi.json").json()["paths"][f"/v1/{name}"]["post"]
    assert documented["description"] == surfaces.specs[name].about
    assert "$ref" in orjson.dumps(documented["responses"]["200"]).decode()


def test_the_command_sends_what_the_surface_takes(
    name: str, surfaces: Surfaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = surfaces.read_request(body | {"surface": path.removeprefix("/v1/")})
        sent["surface"] = request.surface
        return surfaces.reply(surfaces.answer(request), KEY)

    monkeypatch.setattr(ask, "_post", post)
    body = canary_body(surfaces, name)
    own = [f"--with={field}={body[field]}" for field in body if field not in Request.model_fields]
    done = CliRunner().invoke(ask.app, ["u1", "--surface", name, "--k", "2", *own])
    assert done.exit_code == 0, done.output
    assert sent == {"surface": name}


def test_an_event_may_name_it_and_no_other(name: str, tmp_path: Path) -> None:
    with declared(contract()):
        wiring.declare(Settings(home=tmp_path))
        assert not isinstance(validate_json_event(orjson.dumps(EVENT | {"surface": name})), tuple)
        refused = validate_json_event(orjson.dumps(EVENT | {"surface": "elsewhere"}))
        assert isinstance(refused, tuple)
        assert refused[0] == "unknown_value"
        assert contract().surfaces == EVENT_SURFACES


def test_the_monitor_names_a_surface_that_does_not_answer(surfaces: Surfaces, name: str) -> None:
    broken = threading.Event()

    def answered(request: Request) -> Slate:
        if broken.is_set() and request.surface == name:
            raise RuntimeError("broken")
        return surfaces.answer(request, explore=False)

    canaries = {each: spec.canary for each, spec in surfaces.specs.items()}
    monitor = SurfaceMonitor(answered, canaries, lambda: ["v3"])
    monitor.check()
    assert monitor.problems == {}
    broken.set()
    monitor.check()
    assert monitor.problems == {}, "once may be a moment's load"
    monitor.check()
    assert monitor.problems == {name: "fails its canary: RuntimeError"}
    broken.clear()
    monitor.check()
    assert monitor.problems == {}


def test_an_unknown_surface_is_refused_with_those_that_there_are(surfaces: Surfaces) -> None:
    reply = orjson.loads(answer(b'{"surface": "sports"}', surfaces, KEY, RecentReplies()))
    (problem,) = reply["error"]["detail"]
    assert problem["field"] == "surface"
    assert all(each in problem["msg"] for each in SURFACES)
    done = CliRunner().invoke(ask.app, ["u1", "--surface", "sports"])
    assert done.exit_code == 2


def test_streams_states_no_surface_but_those_of_protobuf_version_1() -> None:
    """Which surfaces there are is declared by each process."""
    stating = {
        path.name
        for path in (Path(__file__).parents[2] / "streams").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in SURFACES
    }
    assert stating <= {"protobuf_schema.py"}
