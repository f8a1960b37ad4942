"""Messages fit their topic: a dead letter is truncated with its hash, a batch splits by bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from streams.bus.polled import Record
from streams.contract.schema import from_ipc
from streams.contract.trace_headers import TRACES_HEADER
from streams.ingest.dead_letters import dead_letter_message, parse_dead_letter
from streams.ingest.partitioning import SourcedRows, SourcePositions, to_messages


@pytest.mark.parametrize("size", [10, 262_144, 1_000_000])
def test_a_truncated_dead_letter_keeps_origin_and_hash(size: int) -> None:
    value, key = bytes(range(256)) * (size // 256 + 1), b"k" * 20_000
    refused = Record("behaviour", 3, 41, key, value[:size], (("h", b"1"),), 7)
    sent = dead_letter_message(refused, "too_large", "why", "epoch", 9)
    assert len(sent.value or b"") + len(sent.key or b"") < 300_000
    headers = tuple(sent.headers.items())
    read = parse_dead_letter(Record("behaviour.dead", 0, 0, sent.key, sent.value, headers, 0))
    cause = read.cause
    assert (cause.topic, cause.partition, cause.offset, cause.topic_id) == (
        "behaviour",
        3,
        41,
        "epoch",
    )
    assert (cause.value_bytes, cause.key_bytes) == (size, len(key))
    assert cause.key_sha256 == hashlib.sha256(key).hexdigest()
    whole = size <= 262_144
    assert cause.value_sha256 == (None if whole else hashlib.sha256(value[:size]).hexdigest())
    assert value[:size].startswith(read.record.value or b"")
    assert read.record.headers == (("h", b"1"),)


def test_an_erased_users_dead_letter_holds_no_content() -> None:
    secret = b'{"user_id": "gone", "video_id": "v9"}'
    refused = Record("behaviour", 3, 41, b"gone", secret, (("trace", b"gone"),), 7)
    sent = dead_letter_message(refused, "erased", "event_time_ms 1, admitted at 9", "epoch", 9)
    written = [sent.value or b"", sent.key or b"", *sent.headers.values()]
    assert not any(b"gone" in part or b"v9" in part for part in written)
    read = parse_dead_letter(
        Record("behaviour.dead", 0, 0, sent.key, sent.value, (*sent.headers.items(),), 0)
    )
    assert (read.cause.cause, read.cause.offset, read.cause.complete) == ("erased", 41, False)


def test_a_batch_splits_by_bytes_and_loses_neither_rows_nor_order_nor_traces(
    event_table: Callable[[list[dict[str, object]]], pa.Table],
) -> None:
    ids = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(500)]
    table = event_table([{"event_id": i, "event_time_ms": 10**12, "kind": "like"} for i in ids])
    source = SourcePositions("topic id", np.zeros(500, np.int64), np.arange(500))
    rows = SourcedRows(table, source, {0: "first", 499: "last"})
    sent = list(to_messages(rows, "events.by_user", 2, {}, max_bytes=9_000))
    assert len(sent) > 1
    assert all(len(message.value or b"") <= 9_000 for message in sent)
    assert {message.partition for message in sent} == {2}
    read = [i for m in sent for i in from_ipc(m.value or b"")["event_id"].to_pylist()]
    assert read == ids
    assert b"first" in sent[0].headers[TRACES_HEADER]
    assert b"last" in sent[-1].headers[TRACES_HEADER]
    assert all(TRACES_HEADER not in message.headers for message in sent[1:-1])
