"""Messages of a schema registry's serializers are read; a frame that is cut off is a dead letter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.catalogue import parse_catalogue_event
from streams.codec.content_type import CONTENT_TYPE, decode_records
from streams.codec.decode import Decoded, Rejection
from streams.codec.framing import TornFrameError, without_indexes
from streams.codec.inputs import no_limit
from streams.codec.json import scan_events
from streams.contract.clock import ManualClock
from streams.contract.protobuf_schema import VERSIONS, encode_protobuf_event
from streams.contract.topics import BEHAVIOUR, CATALOGUE, topic_specs
from streams.ingest.dead_letters import scan_dead_letters
from streams.ingest.loop import IngestConfig
from streams.ingest.service import Batcher

T = 1_750_000_000_000
GOOD = {
    **{"event_id": "e", "user_id": "u", "kind": "play", "event_time_ms": T},
    **{"video_id": "v", "dwell_ms": 5},
}
# Written by confluent-kafka 2.16.1: JSONSerializer, and ProtobufSerializer with the two versions of
# event.proto and with version 2 as the second message of a file and as one nested in its third.
JSON = b"\0\0\0\0\1" + orjson.dumps(GOOD)
V1 = bytes.fromhex("0000000002000a016512017518032080b883a1f7324a01766805")
V2 = bytes.fromhex("0000000003000a01651201751a04706c61792080b883a1f7324a01766805")
SECOND = bytes.fromhex("000000000402020a01651201751a04706c61792080b883a1f7324a01766805")
NESTED = bytes.fromhex("00000000040404020a01651201751a04706c61792080b883a1f7324a01766805")
TYPE_OF_V2 = b"application/x-protobuf; v=2"


def _decode(values: Sequence[bytes | None], content_type: bytes | None = None) -> Decoded:
    headers = ((CONTENT_TYPE, content_type),) if content_type else ()
    return decode_records(
        [Record(BEHAVIOUR, 0, i, None, value, headers) for i, value in enumerate(values)]
    )


def test_what_the_serializers_write_is_the_event_that_they_were_given() -> None:
    bare = _decode([orjson.dumps(GOOD)] * 5).table
    assert _decode([JSON, V1, V2, SECOND, NESTED]).table.equals(bare)
    assert _decode([JSON], b"application/json").table.equals(bare[:1])
    assert _decode([V1], b"application/x-protobuf").table.equals(bare[:1])
    assert _decode([V2, SECOND, NESTED], TYPE_OF_V2).table.equals(bare[:3])


def test_framed_json_takes_the_compiled_scan_beside_messages_without_a_frame() -> None:
    values = [JSON, orjson.dumps(GOOD), b"", JSON[:5], JSON[:4], b"\0\0\0\0\0" + JSON, JSON]
    sizes = np.fromiter(map(len, values), np.int64)
    rows, columns = scan_events(values, sizes)
    assert rows.tolist() == [0, 1, 6]
    assert columns["event_id"].to_pylist() == ["e"] * 3
    assert sizes.tolist() == list(map(len, values))  # the caller's, unchanged


@pytest.mark.parametrize("version", VERSIONS.values(), ids=lambda version: version.file)
def test_no_valid_message_begins_as_a_frame_does(version: object) -> None:
    """A zero byte is the tag of field 0, which Protobuf has not; JSON has no such character."""
    message = encode_protobuf_event(GOOD)
    for bare in (b"\0" + message, b"\0\0\0\0\0" + message, b"\0"):
        with pytest.raises(Exception, match=r"[Ee]rror parsing"):
            version.message.FromString(bare)  # type: ignore[attr-defined]
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"\0" + orjson.dumps(GOOD))


@pytest.mark.parametrize(
    ("value", "content_type", "cause", "detail"),
    [
        (b"\0", None, "torn_frame", "this value has 1 bytes"),
        (JSON[:5], None, "torn_frame", "this value has 5 bytes"),
        (JSON[:-1], None, "not_json", "behind the Confluent frame of schema 1"),
        (b"\0\0\0\0\7[1]", None, "not_an_object", "of schema 7"),
        (V1[:5], b"application/x-protobuf", "torn_frame", "this value has 5 bytes"),
        (V1[:5] + b"\2", b"application/x-protobuf", "torn_frame", "indexes is cut off"),
        (V1[:5] + b"\1", b"application/x-protobuf", "torn_frame", "states -1 message indexes"),
        (V1[:5] + b"\xff" * 9, b"application/x-protobuf", "torn_frame", "indexes is cut off"),
        (V1[:-1], b"application/x-protobuf", "not_protobuf", "of schema 2"),
        (V1[:-1], None, "not_protobuf", "Avro is not read"),
        (V1, b"application/json", "undecodable", "of schema 2"),
        (JSON, b"application/x-protobuf", "torn_frame", "states -62 message indexes"),
        (b"\0\0\0\0\1" + b"x" * 65_532, None, "too_large", "65537 bytes"),
    ],
)
def test_a_torn_frame_and_a_bad_message_behind_one_are_named(
    value: bytes, content_type: bytes | None, cause: str, detail: str
) -> None:
    good = V1 if content_type == b"application/x-protobuf" else JSON
    decoded = _decode([good, value, good], content_type)
    assert decoded.rows.tolist() == [0, 2]
    (rejected,) = decoded.rejected
    assert (rejected.row, rejected.cause) == (1, cause)
    assert detail in rejected.detail
    assert len(rejected.detail) <= 300


def test_indexes_are_read_in_every_length() -> None:
    assert without_indexes(b"\0rest") == b"rest"
    assert without_indexes(b"\4\2\xac\2rest") == b"rest"  # [1, 150]
    with pytest.raises(TornFrameError):
        without_indexes(b"")


def test_a_torn_frame_is_a_dead_letter_that_keeps_its_bytes() -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    bus.producer().send([Outgoing(BEHAVIOUR, value) for value in (JSON, JSON[:3], V2)])
    batcher = Batcher(bus, ManualClock(T), IngestConfig())
    while not list(scan_dead_letters(bus)):
        batcher.run_once(0.1)
    batcher.close()
    (dead,) = scan_dead_letters(bus)
    assert (dead.cause.cause, dead.record.value) == ("torn_frame", JSON[:3])


def test_an_item_behind_a_frame_is_an_item() -> None:
    item = {"video_id": "v", "title": "t", "genres": ["drama"]}
    added = {"kind": "item_added", "event_id": "a", "event_time_ms": T, "item": item}
    message = orjson.dumps(added)

    def parsed(value: bytes) -> object:
        return parse_catalogue_event(Record(CATALOGUE, 0, 0, None, value), no_limit())

    assert parsed(b"\0\0\0\0\x09" + message) == parsed(message)
    assert not isinstance(parsed(message), Rejection)
    torn = parsed(b"\0\0\0")
    assert isinstance(torn, Rejection)
    assert torn.cause == "torn_frame"
    bad = parsed(b"\0\0\0\0\x09" + message[:-1])
    assert isinstance(bad, Rejection)
    assert "of schema 9" in bad.detail
