"""Messages that may be anything, or almost valid, for every topic of a stack.

Knows the topics' contracts. Does not know who reads them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from streams.bus.contract import Outgoing
from streams.codec.content_type import CONTENT_TYPE, PROTOBUF
from streams.contract.topics import BEHAVIOUR, CATALOGUE, ERASURES, MODELS_PUBLISHED, REQUESTS
from streams.contract.trace_headers import TRACEPARENT_HEADER, TRACES_HEADER
from streams.ingest.admission import REPLAY_HEADER
from streams.ingest.dead_letters import DEAD_LETTER_HEADER
from streams.ingest.deduplication import SEQUENCED_HEADER
from streams.ingest.partitioning import SOURCE_MARK_HEADER

NOW = 1_750_000_000_000
ITEM = {"video_id": "x", "title": "T", "genres": ["g"], "author_id": "a", "created_ms": NOW}
ADDED = {"kind": "item_added", "event_id": "c1", "event_time_ms": NOW, "item": ITEM}
VALID: dict[str, dict[str, Any]] = {
    CATALOGUE: ADDED,
    ERASURES: {"user_id": "x", "at_ms": NOW},
    REQUESTS: {"surface": "feed", "user_id": "u", "k": 3, "seed": 1, "request_id": "r"},
    MODELS_PUBLISHED: {"release_id": "r1", "models": {"ranker": 1}, "created_ms": NOW},
    BEHAVIOUR: {
        "kind": "cart", "event_id": "e", "user_id": "u", "video_id": "v", "event_time_ms": NOW,
        "amount_cents": 1,
    },
}  # fmt: skip
HUGE = [10**19, -(10**19), 2**63, 2**63 - 1, -1, 0, NOW // 1_000, NOW * 1_000, NOW + 10**10]
ODD: list[Any] = [
    *HUGE,
    10**400,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "\0",
    " ",
    [],
    {},
]
HEADERS = [
    CONTENT_TYPE, REPLAY_HEADER, TRACEPARENT_HEADER, TRACES_HEADER, SOURCE_MARK_HEADER,
    SEQUENCED_HEADER, DEAD_LETTER_HEADER, "tenant",
]  # fmt: skip
PLAIN = [
    None, b"", b"\0", b"\xff\xfe", b"null", b"{", b"[]", b'"x"', b"1", b"NaN", b'{"a": NaN}',
    b'{"kind": "item_added", "event_id": "\\ud800"}', b'{"user_id": "\\ud800", "at_ms": 1}',
    b"[" * 50_000, b'{"a":' * 20_000, b"x" * 900_000, b'{"video_id": "x2", "title": "T"}',
    json.dumps({"user_id": "x", "at_ms": 10**19}).encode(),
    json.dumps({**ADDED, "item": {**ITEM, "created_ms": 10**19}}).encode(),
]  # fmt: skip
MOST_MESSAGES = 12

_bytes = st.sampled_from([None, b"", b"1", b"\xff", b"null", b"[1]", b"{}", b"[[0, 1]]", PROTOBUF])
_headers = st.dictionaries(st.sampled_from(HEADERS), _bytes | st.binary(max_size=9), max_size=3)
odd_json = st.recursive(
    st.sampled_from(ODD) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


def paths(body: dict[str, Any]) -> list[tuple[str, ...]]:
    """The path of every field, nested ones included."""
    nested = [(k, *rest) for k, v in body.items() if isinstance(v, dict) for rest in paths(v)]
    return [(key,) for key in body] + nested


def with_value(body: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The body with another value at `path`."""
    first, *rest = path
    return body | {first: with_value(body[first], rest, value) if rest else value}


def mutated(body: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """The body as JSON, with an odd value in one field."""
    return st.builds(
        lambda path, value: json.dumps(with_value(body, path, value)).encode(),
        st.sampled_from(paths(body)),
        odd_json,
    )


def bad_messages(topic: str) -> st.SearchStrategy[list[Outgoing]]:
    """Up to `MOST_MESSAGES` messages that may be anything, or almost valid."""
    value = st.sampled_from(PLAIN) | st.binary(max_size=30)
    value |= mutated(VALID.get(topic, VALID[BEHAVIOUR]))
    value |= odd_json.map(lambda drawn: json.dumps(drawn).encode())
    message = st.builds(
        lambda content, key, headers: Outgoing(topic, content, key, 0, headers),
        value, _bytes, _headers,
    )  # fmt: skip
    return st.lists(message, max_size=MOST_MESSAGES)


def plain_messages(topic: str) -> list[Outgoing]:
    """The messages that once stopped a consumer."""
    headers: list[dict[str, Any]] = [{}, dict.fromkeys(HEADERS), {"tenant": b"\xff"}]
    return [
        Outgoing(topic, value, key, 0, headers[number % len(headers)])
        for number, value in enumerate(PLAIN)
        for key in (None, b"\xff")
    ]
