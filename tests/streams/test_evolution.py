"""Stored messages of older and newer versions decode to the same rows forever.

Never regenerate `golden/`. events.json holds messages of version 1 and of later versions
(Protobuf by protoc's code from schemas that grew or shrank), each with its row or cause;
batches.json holds internal batches; event_v1.desc is protoc's output for event_v1.proto.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2

from streams.bus.polled import Record
from streams.codec import protobuf
from streams.codec.content_type import CONTENT_TYPE, decode_records
from streams.codec.decode import validate_json_event
from streams.contract.declaration import Contract, declared
from streams.contract.events import KIND_CODE
from streams.contract.protobuf_schema import FIELDS, FILE_DESCRIPTOR
from streams.contract.schema import (
    DECODED_SCHEMA,
    EVENT_SCHEMA,
    BatchReader,
    conform,
    event_columns,
    from_ipc,
)

GOLDEN = Path(__file__).parent / "golden"
Case = dict[str, Any]


def _golden(name: str) -> list[Case]:
    cases: list[Case] = orjson.loads((GOLDEN / name).read_bytes())
    return cases


def _by_name(case: Case) -> str:
    return str(case["case"])


@pytest.fixture(autouse=True)
def _surfaces() -> Iterator[None]:
    """Those that the messages of version 1 name."""
    with declared(Contract(surfaces=("feed", "queries", "reactivation", "search"))):
        yield


# Bytes that were written as of a version that did not exist then. It reads them now, and they state
# no kind by name, so that they are dead letters still.
_OF_VERSION_2 = "protobuf v2: a version that is not read here"
EVENTS, BATCHES = _golden("events.json"), _golden("batches.json")
for _case in EVENTS:
    if _case["case"] == _OF_VERSION_2:
        _case["cause"] = "missing_field"


def _value(case: Case) -> bytes:
    return base64.b64decode(case["base64"]) if "base64" in case else case["text"].encode()


def _record(case: Case, offset: int = 0) -> Record:
    named = case["content_type"]
    headers = ((CONTENT_TYPE, named.encode()),) if named else ()
    return Record("behaviour", 0, offset, None, _value(case), headers)


@pytest.mark.parametrize("case", EVENTS, ids=_by_name)
def test_a_golden_event_decodes_to_the_same_row_or_cause(case: Case) -> None:
    got = decode_records([_record(case)])
    assert got.table.equals(pa.Table.from_pylist(_rows(case), schema=DECODED_SCHEMA))
    assert [r.cause for r in got.rejected] == [case[k] for k in case if k == "cause"]


@pytest.mark.parametrize(
    "case",
    [c for c in EVENTS if c.get("cause") != "unknown_format" and c["case"] != _OF_VERSION_2],
    ids=_by_name,
)
def test_validation_alone_gives_the_same_row_or_cause(case: Case) -> None:
    verdict = (protobuf.validate_protobuf_event if "base64" in case else validate_json_event)(
        _value(case)
    )
    if isinstance(verdict, tuple):
        assert verdict[0] == case["cause"]
        return
    stated = verdict.model_dump() | {"kind": KIND_CODE[verdict.kind]}
    assert {name: stated.get(name) for name in DECODED_SCHEMA.names} == case["row"]


def test_one_poll_may_mix_all_versions_and_formats() -> None:
    got = decode_records([_record(case, offset) for offset, case in enumerate(EVENTS)])
    good = [i for i, case in enumerate(EVENTS) if "row" in case]
    assert got.rows.tolist() == good
    assert got.table.to_pylist() == [EVENTS[i]["row"] for i in good]
    causes = {each.row: each.cause for each in got.rejected}
    assert causes == {i: case["cause"] for i, case in enumerate(EVENTS) if "cause" in case}


def _rows(case: Case) -> list[dict[str, Any]]:
    return [case["row"]] if "row" in case else []


@pytest.mark.parametrize("case", BATCHES, ids=_by_name)
def test_a_golden_batch_decodes_to_the_same_table(case: Case) -> None:
    table = from_ipc(base64.b64decode(case["base64"]))
    assert table.equals(pa.Table.from_pylist(case["rows"], schema=EVENT_SCHEMA))


@pytest.mark.parametrize("names", [["duplicate", "user_id"], ["query"], EVENT_SCHEMA.names])
@pytest.mark.parametrize("case", BATCHES, ids=_by_name)
def test_a_batch_reader_reads_only_the_named_columns(case: Case, names: list[str]) -> None:
    payload = base64.b64decode(case["base64"])
    read = BatchReader(event_columns(*names))
    for _ in range(2):  # the second read uses the cached schema
        assert read(payload).equals(from_ipc(payload).select(read.schema.names))


def test_a_batch_without_a_required_column_is_rejected() -> None:
    table = pa.Table.from_pylist(BATCHES[0]["rows"], schema=EVENT_SCHEMA)
    with pytest.raises(ValueError, match="user_id"):
        conform(table.drop_columns(["user_id"]))


def test_the_protobuf_schema_matches_the_contract_and_protoc() -> None:
    assert {field.name for field in FIELDS} == set(DECODED_SCHEMA.names)
    raw = (GOLDEN / "event_v1.desc").read_bytes()
    made = descriptor_pb2.FileDescriptorSet.FromString(raw).file[0]
    for field in made.message_type[0].field:
        field.ClearField("json_name")  # protoc adds the default name
    assert made == FILE_DESCRIPTOR
