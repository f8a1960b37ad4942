"""A poll in columns equals its records, whichever client's messages it holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from streams.bus.kafka import consumer as kafka_consumer
from streams.bus.polled import Polled, Record, next_offsets
from streams.ingest.admission import AdmissionLimits, admit

HEADERS = st.lists(st.tuples(st.sampled_from(["a", "tidemill-replay"]), st.just(b"1")), max_size=2)
RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from(["behaviour", "other"]),
        st.integers(0, 3),
        st.integers(0, 2**40),
        st.none() | st.binary(max_size=3),
        st.none() | st.sampled_from([b"", b"{}", b"\xff"]),
        HEADERS.map(tuple),
        st.integers(0, 2**40),
    ),
    max_size=12,
)


def _from_kafka(records: list[Record]) -> Polled:
    messages = [
        Message(
            topic=r.topic, partition=r.partition, offset=r.offset, key=r.key, value=r.value,
            headers=list(r.headers) or None, timestamp=(1, r.timestamp_ms),
        )
        for r in records
    ]  # fmt: skip
    return Polled(messages, kafka_consumer._GETTERS)


CLIENTS = pytest.mark.parametrize("polled", [Polled, _from_kafka])


@CLIENTS
@given(records=RECORDS)
def test_columns_equal_the_records(
    polled: Callable[[list[Record]], Polled], records: list[Record]
) -> None:
    poll = polled(records)
    assert poll == records
    assert (list(poll), len(poll)) == (records, len(records))
    assert [poll[index] for index in range(-len(records), len(records))] == records * 2
    assert poll.topics == [r.topic for r in records]
    assert poll.partitions.tolist() == [r.partition for r in records]
    assert poll.offsets.tolist() == [r.offset for r in records]
    assert poll.values == [r.value for r in records]
    assert poll.any_headers == any(r.headers for r in records)
    assert next_offsets(poll) == next_offsets(records) == _next_offsets(records)


def _next_offsets(records: list[Record]) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for r in records:
        found[r.topic, r.partition] = max(found.get((r.topic, r.partition), 0), r.offset + 1)
    return found


@CLIENTS
@given(records=RECORDS, more=RECORDS, part=st.slices(5))
def test_polls_concatenate_and_slice_like_lists(
    polled: Callable[[list[Record]], Polled], records: list[Record], more: list[Record], part: slice
) -> None:
    for other in (more, Polled(more), _from_kafka(more)):
        assert (polled(records) + other).values == [r.value for r in records + more]
        assert polled(records) + other == records + more
    assert polled(records)[part] == records[part]


def test_admission_builds_no_record_without_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    event = (
        b'{"event_id":"e","user_id":"u","kind":"like","event_time_ms":1750000000000,"video_id":"v"}'
    )
    poll = _from_kafka([Record("behaviour", 2, at, None, event) for at in range(5)])
    monkeypatch.setattr(Polled, "__iter__", None)
    monkeypatch.setattr(Polled, "__getitem__", None)
    admitted = admit(poll, 1_750_000_000_000, AdmissionLimits())
    assert admitted.table["source_offset"].to_pylist() == list(range(5))
    assert admitted.table["source_partition"].to_pylist() == [2] * 5


ASCENDING = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 1, 2, 7])), min_size=1, max_size=40
)


@CLIENTS
@given(steps=ASCENDING)
def test_offsets_of_an_ordered_poll_equal_the_records(
    polled: Callable[[list[Record]], Polled], steps: list[tuple[int, int]]
) -> None:
    """`steps`: each record's partition, and its offset's distance from the one before."""
    at, records = [10, 0, 2**40], []
    for partition, step in steps:
        at[partition] += step
        records.append(Record("behaviour", partition, at[partition], None, b"{}"))
    poll = polled(records)
    ordered = Polled(poll._messages, poll._getters, "behaviour")
    assert ordered == records
    assert ordered.topics == poll.topics
    assert ordered.partitions.tolist() == poll.partitions.tolist()
    assert ordered.offsets.tolist() == [r.offset for r in records]
    assert next_offsets(ordered) == _next_offsets(records)
