"""A request's context, and the names of both versions in requests and replies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer.testing import CliRunner

from deploy.cli import ask
from serving.kafka_requests import answer
from serving.pipeline.pool import Pool
from serving.pipeline.query import Query
from serving.pipeline.requests import RequestContext
from serving.pipeline.runner import Deadlines
from serving.registry import SURFACES
from serving.state.replies import RecentReplies
from serving.surfaces import Surfaces
from serving.surfaces.feed import feed

KEY = bytes(32)
CONTEXT = {"device": "tv", "page": "product", "locale": "pt-BR", "item_id": "v7"}
BODIES: dict[str, dict[str, Any]] = {
    name: {"user_id": "u1", "k": 2, **({"item_id": "v3"} if name == "queries" else {})}
    for name in SURFACES
}


@pytest.fixture
def quiet(make_harness: Any) -> Any:
    return make_harness(streams=False, deadlines=Deadlines(*[60_000.0] * 4))


def _read(surfaces: Surfaces, name: str, **own: Any) -> Query:
    return surfaces.query(surfaces.read_request({"surface": name, **BODIES[name], **own}))


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_takes_a_context_and_repeats_none_of_it(quiet: Any, name: str) -> None:
    surfaces: Surfaces = quiet.gateway.surfaces
    assert _read(surfaces, name).context == RequestContext()
    assert _read(surfaces, name, context=None).context == RequestContext()
    assert _read(surfaces, name, context=CONTEXT).context == RequestContext(**CONTEXT)
    body = BODIES[name] | {"seed": 1, "context": CONTEXT | {"item_id": "secret"}}
    over_http = quiet.client.post(f"/v1/{name}", json=body)
    assert over_http.status_code == 200, over_http.text
    over_kafka = answer(orjson.dumps(body | {"surface": name}), surfaces, KEY, RecentReplies())
    plain = quiet.client.post(f"/v1/{name}", json=BODIES[name] | {"seed": 1}).json()
    assert over_http.json().keys() == plain.keys() == orjson.loads(over_kafka).keys()
    for reply in (over_http.text, over_kafka.decode()):
        assert "secret" not in reply
        assert "pt-BR" not in reply


@pytest.mark.parametrize(
    ("context", "field"),
    [
        ({"device": "My TV"}, "context.device"),
        ({"device": "x" * 33}, "context.device"),
        ({"page": "/shoes/1"}, "context.page"),
        ({"page": 7}, "context.page"),
        ({"locale": "portuguese (Brazil)"}, "context.locale"),
        ({"item_id": ""}, "context.item_id"),
        ({"item_id": "x" * 129}, "context.item_id"),
        ({"ip": "127.0.0.1"}, "context.ip"),
        ([], "context"),
        ("tv", "context"),
    ],
)
def test_a_context_out_of_bounds_is_refused_by_name(quiet: Any, context: Any, field: str) -> None:
    body = {"user_id": "u1", "context": context}
    reply = quiet.client.post("/v1/feed", json=body)
    assert reply.status_code == 422
    assert [problem["field"] for problem in reply.json()["detail"]] == [field]
    value = orjson.dumps(body | {"surface": "feed"})
    over_kafka = orjson.loads(answer(value, quiet.gateway.surfaces, KEY, RecentReplies()))
    assert over_kafka["error"]["detail"][0]["field"] == field


def test_filters_read_the_context(quiet: Any) -> None:
    class NotOnTv:
        name, soft = "not_on_tv", False

        def removal_reasons(self, query: Query, pool: Pool) -> list[str | None]:
            return ["not on tv" if query.context.device == "tv" else None] * len(pool)

    surfaces: Surfaces = quiet.gateway.surfaces
    surfaces._pipelines["feed", ""] = replace(feed(surfaces.deps), filters=[NotOnTv()])
    assert len(quiet.feed()["items"]) == 8
    assert quiet.feed(context={"device": "tv"})["items"] == []


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def test_the_trace_holds_the_context_without_ids(quiet: Any, spans: InMemorySpanExporter) -> None:
    quiet.feed(context=CONTEXT | {"item_id": "secret"})
    (span,) = [each for each in spans.get_finished_spans() if each.name == "POST /v1/feed"]
    stated = {n: v for n, v in (span.attributes or {}).items() if "context" in n}
    assert stated == {
        "tidemill.context.device": "tv",
        "tidemill.context.page": "product",
        "tidemill.context.locale": "pt-BR",
    }
    assert not any("secret" in each.to_json() for each in spans.get_finished_spans())


def test_the_command_sends_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    def post(_: str, body: dict[str, Any]) -> dict[str, Any]:
        sent.append(body)
        raise SystemExit

    monkeypatch.setattr(ask, "_post", post)
    for stated in (["context.device=tv", "context.item_id=v7"], ['context={"device": "tv"}']):
        CliRunner().invoke(ask.app, ["u1", *(f"--with={each}" for each in stated)])
    assert [body["context"] for body in sent] == [
        {"device": "tv", "item_id": "v7"},
        {"device": "tv"},
    ]
    twice = CliRunner().invoke(ask.app, ["u1", "--with=context=tv", "--with=context.page=home"])
    assert twice.exit_code == 2


def test_an_item_is_named_as_in_either_version(quiet: Any) -> None:
    def post(**own: Any) -> Any:
        return quiet.client.post("/v1/queries", json={"user_id": "u1", "k": 2, "seed": 1} | own)

    new, old, both = post(item_id="v3"), post(video_id="v3"), post(item_id="v3", video_id="v3")
    replies = [reply.json() for reply in (new, old, both)]
    assert [(reply["item_id"], reply["video_id"]) for reply in replies] == [("v3", "v3")] * 3
    assert len({tuple(item["query"] for item in reply["items"]) for reply in replies}) == 1
    differing = post(item_id="v3", video_id="v4")
    assert differing.status_code == 422
    assert "two names of one field" in differing.text
    assert post().json()["detail"][0]["field"] == "item_id"
    # Either name is the same request, so a repetition gets the same reply.
    repeated = [post(request_id="r", **{name: "v3"}).json() for name in ("item_id", "video_id")]
    assert repeated[0] == repeated[1]


def test_both_names_of_an_items_field_may_be_stated_alike(quiet: Any) -> None:
    item = {"title": "Film", "categories": ["War"], "genres": ["War"]}
    assert quiet.client.put("/v1/catalogue/f1", json=item).status_code == 202
    lookup = quiet.client.post("/v1/catalogue/lookup", json={"item_id": "v3", "video_id": "v3"})
    assert lookup.status_code == 200
    differing = quiet.client.put("/v1/catalogue/f1", json=item | {"genres": ["Drama"]})
    assert (differing.status_code, "two names" in differing.text) == (422, True)


@pytest.mark.parametrize("name", SURFACES)
def test_replies_name_items_by_both_versions(quiet: Any, name: str) -> None:
    reply = quiet.client.post(f"/v1/{name}", json=BODIES[name] | {"k": 8}).json()
    assert reply["items"]
    for item in [*reply["items"], *reply["removed"], *filter(None, [reply.get("goal")])]:
        assert item["item_id"] == item["video_id"]
    for item in reply["items"]:
        assert item["categories"] == item["genres"] != []
    listed = quiet.client.get("/v1/surfaces").json()["surfaces"]
    (schema,) = [each["request"] for each in listed if each["surface"] == name]
    assert "context" in schema["properties"]
    assert "video_id" not in schema["properties"]
