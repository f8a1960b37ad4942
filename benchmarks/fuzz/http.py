"""Requests to a gateway: what its OpenAPI page describes, what it does not, and raw bytes.

Knows HTTP and the page. Does not know how a gateway is started. The laws: no status from 500 up
but a declared 503 with Retry-After, and no status that the page does not declare.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation

from benchmarks.fuzz.cases import Tally
from benchmarks.fuzz.messages import VALID, mutated, odd_json
from streams.contract.topics import BEHAVIOUR

Operation = APIOperation[Any, Any, Any, Any]
STREAMED = "/v1/stream"  # a GET never ends: HEAD has the same status
_RAW_SHARE = 0.25
_NOT_ROUTED = frozenset({404, 405})  # a drawn path may name no route
_NOT_CARRIED = (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError)


@dataclass(frozen=True)
class RawRequest:
    """A request that no page describes."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def fuzz_http(client: httpx.Client, cases: int, seed: int) -> Tally:
    """Tries so many requests in all, each operation of the page as often."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tally = Tally("HTTP")
    page = client.get("/openapi.json").json()
    described: list[Any] = list(schemathesis.openapi.from_dict(page).get_all_operations())
    operations: list[Operation] = [each.ok() for each in described]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    share = round(cases * (1 - _RAW_SHARE)) // (len(operations) * len(modes))
    for operation in operations:
        for mode in modes:
            if mode is GenerationMode.POSITIVE or _can_be_wrong(operation):
                name = f"{operation.method.upper()} {operation.path}, {mode.value}"
                strategy = operation.as_strategy(generation_mode=mode)
                tally.try_cases(name, strategy, _law(client, operation), share, seed)
    tally.try_cases(
        "raw",
        raw_requests(operations),
        lambda raw: _check_raw(client, raw),
        cases - tally.cases,
        seed,
    )
    return tally


def _can_be_wrong(operation: Operation) -> bool:
    """Whether it takes a query or a body: any text fits a path."""
    raw = operation.definition.raw
    queries = [each for each in raw.get("parameters", ()) if each["in"] == "query"]
    return bool(queries or raw.get("requestBody"))


def _law(client: httpx.Client, operation: Operation) -> Callable[[Any], None]:
    def law(case: Any) -> None:
        _check(_sent(client, case), operation)

    return law


def _sent(client: httpx.Client, case: Any) -> httpx.Response | None:
    kwargs = case.as_transport_kwargs(base_url=str(client.base_url).rstrip("/"))
    if case.operation.path == STREAMED:
        kwargs["method"] = "HEAD"
    if isinstance(data := kwargs.pop("data", None), bytes | str):
        kwargs["content"] = data
    kwargs.pop("cookies", None)
    return _answer(client, **kwargs)


def _answer(client: httpx.Client, **kwargs: Any) -> httpx.Response | None:
    """None for a request that the client itself cannot write."""
    try:
        return client.request(**kwargs)
    except (*_NOT_CARRIED, ValueError, TypeError):
        return None


def _check(answer: httpx.Response | None, operation: Operation) -> None:
    if answer is None:
        return
    declared = {int(code) for code in operation.definition.raw["responses"] if code.isdigit()}
    _check_not_failed(answer, declared)
    if answer.status_code not in declared | _NOT_ROUTED:
        raise AssertionError(f"{answer.status_code} is not declared: {answer.text[:300]}")


def _check_not_failed(answer: httpx.Response, declared: set[int]) -> None:
    if answer.status_code < 500:
        return
    if answer.status_code == 503 and 503 in declared and "Retry-After" in answer.headers:
        return
    raise AssertionError(f"{answer.status_code}: {answer.text[:300]}")


def _check_raw(client: httpx.Client, raw: RawRequest) -> None:
    answer = _answer(client, method=raw.method, url=raw.path, content=raw.body, headers=raw.headers)
    if answer is not None:
        _check_not_failed(answer, {503})


def raw_requests(
    operations: list[Operation],
) -> st.SearchStrategy[RawRequest]:
    """Odd paths, headers and bodies; almost valid events among them."""
    routes = [(op.method.upper(), op.path) for op in operations if op.path != STREAMED]
    route = st.sampled_from([*routes, ("POST", "/v1/events")])
    odd_path = st.sampled_from(
        ["/v1/users/%00", "/v1/users/%FF", "/v1/catalogue/..%2f..", "/v1/catalogue/%ED%A0%80",
         "//", "/page/../../etc/passwd", "/v1/events?admit=%00", "/v1/users?limit=1e999",
         "/v1/events?admit=async", "/v1/events?all_or_nothing=true", "/v1/events?mapping=segment",
         "/v1/events?mapping=snowplow", "/v1/events?mapping=%00"]
    ) | st.text(max_size=40).map(lambda text: f"/v1/{text}")  # fmt: skip
    routed = st.tuples(route, odd_path | st.none()).map(
        lambda drawn: (drawn[0][0], drawn[1] or drawn[0][1])
    )
    return st.builds(
        lambda target, sent: RawRequest(*target, *sent),
        routed,
        st.builds(_encoded, _bodies(), _headers()),
    )


def _bodies() -> st.SearchStrategy[bytes]:
    event = mutated(VALID[BEHAVIOUR])
    several = st.lists(event | st.binary(max_size=9), max_size=4).map(
        lambda parts: b"[" + b",".join(parts) + b"]"
    )
    plain = st.sampled_from(
        [b"", b"null", b"[", b"[[[[", b"{}", b"[]", b"[,]", b'["', b"\xef\xbb\xbf{}", b"[" * 40_000,
         b'{"a":' * 9_000, b"x" * 300_000, b'{"user_id":"\\ud800"}', b'{"user_id":"u","k":1e999}']
    )  # fmt: skip
    odd = odd_json.map(lambda value: json.dumps(value).encode())
    return event | several | plain | odd | st.binary(max_size=64)


def _headers() -> st.SearchStrategy[dict[str, str]]:
    values = {
        "Content-Type": ["application/json", "text/plain", "application/json; charset=utf-16", ""],
        "Content-Encoding": ["gzip", "identity", "br", "gzip, gzip", "\t"],
        "X-API-Key": ["", "x", "ü"],
        "Authorization": ["Bearer", "Bearer ", "Basic eDp5", "Bearer a b"],
        "traceparent": ["", "00-0-0-00", "ff-" + "f" * 32 + "-" + "f" * 16 + "-ff"],
        "Origin": ["null", "https://x", "ü"],
        "Accept": ["", "text/event-stream", "*/*;q=9"],
    }
    one = st.sampled_from([(name, value) for name, found in values.items() for value in found])
    return st.lists(one, max_size=4).map(dict)


def _encoded(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """Half of the bodies that say so are gzip."""
    if headers.get("Content-Encoding") == "gzip" and len(body) % 2:
        body = gzip.compress(body, 1)
    with contextlib.suppress(UnicodeError):
        return body, {name: value.encode().decode("latin-1") for name, value in headers.items()}
    return body, headers
