"""Declared signals join impressions as tasks do, and feedback may cross from item to item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.declaration import Contract, declared
from streams.contract.events import KIND_CODE
from streams.contract.impression import Impression, sign
from streams.contract.schema import event_schema
from streams.contract.signals import Signal, Signals
from streams.contract.topics import EVENTS_BY_USER
from streams.feedback.join import FeedbackJoin, TokenRejection
from streams.feedback.outcomes import FEEDBACK_SCHEMA, task_columns
from streams.feedback.store import FeedbackStore, read_feedback, read_matured
from streams.storage.compaction import compact

KEY, T0 = b"k" * 32, 1_700_000_000_000
HOUR = 3_600_000
WINDOWS = {"play": 10, "order": 100}
RATING = Signal("rating", 64, "engagement", ("value", "dwell"), 20)
VIEW = Signal("view", 70, "exposure", (), 500)
RETURNED = Signal("goods_returned", 90, "dislike", ("amount",), 400)
ALL = Signals((RATING, VIEW, RETURNED))


@pytest.fixture
def signals() -> Iterator[None]:
    with declared(Contract(signals=ALL)):
        yield


def _impression(number: int, **own: Any) -> Impression:
    stated = {
        "request_id": f"r{number}", "surface": "feed", "user_id": "u", "video_id": f"v{number}",
        "slot": 0, "propensity": 0.5, "release": "r1", "served_at_ms": T0,
    }  # fmt: skip
    return Impression(**(stated | own))


def _events(*events: tuple[Impression, str, int, dict[str, Any]]) -> pa.Table:
    """Events on impressions, at T0 and so many ms, with fields of their own."""
    numbers = {**KIND_CODE, **ALL.number}
    rows = []
    for place, (impression, kind, after_ms, own) in enumerate(events):
        rows.append(
            dict.fromkeys(event_schema().names)
            | {
                "event_id": f"e{place}", "kind": numbers[kind], "user_id": impression.user_id,
                "video_id": impression.video_id, "query": impression.query,
                "impression": sign(impression, KEY), "event_time_ms": T0 + after_ms,
                "ingested_at_ms": T0, "surface": "feed", "origin": "live", "late": False,
                "duplicate": False, "source_partition": 0, "source_offset": place,
            }
            | own
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=event_schema())


def _join(folder: Path, *batches: pa.Table, first: int = 0) -> pl.DataFrame:
    store = FeedbackStore(folder, key=KEY, windows_ms=WINDOWS)
    for offset, batch in enumerate(batches, first):
        store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), batch))
    return read_feedback(folder)


@pytest.mark.usefixtures("signals")
def test_declared_signals_are_outcomes_within_their_windows(tmp_path: Path) -> None:
    one, two = _impression(1), _impression(2)
    rows = _join(
        tmp_path,
        _events((one, "shown", 0, {}), (two, "view", 3, {}), (one, "rating", 20, {"dwell_ms": 9})),
        _events((two, "rating", 24, {}), (one, "goods_returned", 300, {}), (one, "play", 5, {})),
    )
    assert rows["shown_at_ms"].to_list() == [T0, T0 + 3]
    assert rows["rating"].to_list() == [True, False]
    assert rows["rating_at_ms"].to_list() == [T0 + 20, T0 + 24]
    assert rows["goods_returned"].to_list() == [True, False]
    assert rows["play"].to_list() == [True, False]
    assert rows["dwell_ms"].to_list() == [9, 0]
    assert "view" not in rows.columns
    # The longest window is that of the goods returned.
    assert rows["matured_at_ms"].to_list() == [T0 + 400, T0 + 403]


@pytest.mark.usefixtures("signals")
def test_a_restart_and_repeats_change_nothing(tmp_path: Path) -> None:
    one = _impression(1)
    batches = [_events((one, kind, 5, {})) for kind in ("view", "rating", "play", "rating")]
    rows = _join(tmp_path, *batches)
    assert _join(tmp_path, *batches).equals(rows)
    later = _join(tmp_path, _events((one, "rating", 2, {})), first=9)
    assert later["rating_at_ms"].to_list() == [T0 + 2]
    assert later["revision"].to_list() == [4]


def test_rows_of_before_and_after_a_declaration_are_read_and_joined(tmp_path: Path) -> None:
    one, two = _impression(1), _impression(2)
    before = _join(tmp_path, _events((one, "shown", 0, {}), (one, "play", 1, {})))
    assert before.columns == FEEDBACK_SCHEMA.names
    with declared(Contract(signals=ALL)):
        assert read_feedback(tmp_path)["rating"].to_list() == [False]
        mixed = _join(tmp_path, _events((one, "rating", 3, {}), (two, "rating", 3, {})), first=1)
        assert mixed["rating"].to_list() == [True, False]
        assert mixed["play"].to_list() == [True, False]
        store = FeedbackStore(tmp_path, key=KEY, windows_ms=WINDOWS)
        compact(store.segments, T0 + 48 * HOUR)
        assert read_feedback(tmp_path).equals(mixed)
        assert read_matured(tmp_path, T0, T0 + 400).height == 1
    removed = Signals((VIEW,), (RATING, RETURNED))
    with declared(Contract(signals=removed)):  # its rows stay, and new ones cannot be
        kept = _join(tmp_path, _events((one, "play", 2, {})), first=2)
        assert kept["rating_at_ms"].to_list() == [T0 + 3, T0 + 3]
        compact(FeedbackStore(tmp_path, key=KEY, windows_ms=WINDOWS).segments, T0 + 96 * HOUR)
        assert read_feedback(tmp_path)["rating_at_ms"].to_list() == [T0 + 3, T0 + 3]


def test_without_declarations_states_have_the_layout_of_before() -> None:
    assert task_columns().schema is FEEDBACK_SCHEMA
    assert len(task_columns().empty) == 8 * (1 + 7 + 3)


def _claimed(join: FeedbackJoin, *events: Any) -> tuple[int, dict[TokenRejection, int]]:
    found = join.join_batch(_events(*events))
    return len(found.actions.row), dict(found.rejected)


def test_feedback_crosses_items_only_where_it_is_declared_and_within_the_window() -> None:
    query = _impression(1, surface="queries", query="shoes")
    other = {"video_id": "elsewhere", "query": None}
    order, late = (query, "order", 100, other), (query, "order", 101, other)
    play = (query, "play", 1, other)
    assert _claimed(FeedbackJoin(KEY), order, play) == (0, {TokenRejection.OTHER_ITEM: 2})
    across = FeedbackJoin(KEY, across_items_ms={"order": 100})
    assert _claimed(across, order) == (1, {})
    assert _claimed(across, order, late, play) == (1, {TokenRejection.OTHER_ITEM: 2})
    foreign = (query, "order", 5, {**other, "user_id": "another"})
    assert _claimed(across, foreign) == (0, {TokenRejection.OTHER_USER: 1})


def test_the_impression_that_led_there_gets_the_order(tmp_path: Path) -> None:
    query = _impression(1, surface="queries", query="shoes")
    with declared(Contract(across_items=("order",))):
        rows = _join(
            tmp_path,
            _events(
                (query, "query_shown", 0, {}),
                (query, "query_click", 2, {}),
                (query, "order", 90, {"video_id": "shoe", "query": None, "amount_cents": 4_900}),
            ),
        )
    row = rows.row(0, named=True)
    assert (row["video_id"], row["query"]) == ("v1", "shoes")
    assert (row["query_click"], row["order"], row["order_amount_cents"]) == (True, True, 4_900)
