"""The feedback join gives the same rows for any order, batches and restarts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.bus.contract import Outgoing, Stamp
from streams.bus.delivery import Delivery, combine
from streams.contract.impression import Impression, sign
from streams.contract.topics import EVENTS_BY_USER, FEEDBACK
from streams.feedback.join import TOKEN_LIFE_MS, FeedbackJoin, TokenRejection
from streams.feedback.outcomes import FEEDBACK_SCHEMA, FEEDBACK_TASKS, AttributionWindows
from streams.feedback.store import (
    IDLE_S,
    FeedbackStore,
    count_matured,
    read_feedback,
    read_matured,
)
from streams.storage.segments import Segments

Build = Callable[[list[dict[str, object]]], pa.Table]

KEY, FOREIGN_KEY = b"k" * 32, b"x" * 32
WINDOWS = {"play": 10, "long_view": 30, "like": 60, "follow": 60, "order": 100, "query_click": 10}
T0 = 1_700_000_000_000


class _Topic:
    """Records what is published; fails the next `failures` sends."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.failures = 0

    def send(self, messages: Sequence[Outgoing], **_: object) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("broker down")
        assert {message.topic for message in messages} == {FEEDBACK}
        self.rows += [orjson.loads(message.value or b"") for message in messages]

    def close(self) -> None: ...


def _impression(number: int) -> Impression:
    query = f"q{number}" if number % 3 == 2 else None
    drawn = {"weights": (0.5, 0.3, 0.2), "log_density": 1.25} if number % 2 and not query else {}
    return Impression(
        request_id=f"r{number // 2}", surface="queries" if query else "feed",
        user_id=f"u{number % 2}", video_id=f"v{number}", query=query, slot=number % 2,
        propensity=0.1 * (number + 1), explored=number % 2 == 0, release="rel-1",
        served_at_ms=T0 + number, arm="ranker" if number % 2 else None, **drawn,
    )  # fmt: skip


def _event(number: int, kind: str, after_ms: int, **own: object) -> dict[str, object]:
    """An event on impression `number`, `after_ms` after T0, with a valid token."""
    impression = _impression(number)
    return {
        "kind": kind, "user_id": impression.user_id, "video_id": impression.video_id,
        "query": impression.query, "impression": sign(impression, KEY),
        "event_time_ms": T0 + after_ms, **own,
    }  # fmt: skip


def _store(directory: Path, **own: Any) -> FeedbackStore:
    return FeedbackStore(directory, key=KEY, windows_ms=WINDOWS, **own)


@pytest.fixture
def joined(event_table: Build, tmp_path: Path) -> Callable[..., pl.DataFrame]:
    """Joins batches of events, one offset each, and returns the feedback."""

    def join(*batches: list[dict[str, object]]) -> pl.DataFrame:
        store = _store(tmp_path)
        for offset, batch in enumerate(batches):
            store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), event_table(batch)))
        return read_feedback(tmp_path)

    return join


def test_an_action_that_precedes_its_shown_counts_once_shown_arrives(
    joined: Callable[..., pl.DataFrame],
) -> None:
    row = joined([_event(0, "like", 20)], [_event(0, "shown", 5)]).row(0, named=True)
    assert (row["like"], row["like_at_ms"], row["shown_at_ms"]) == (True, T0 + 20, T0 + 5)
    assert row["revision"] == 2
    assert row["matured_at_ms"] == T0 + 5 + 100


def test_nothing_is_attributed_without_shown(
    joined: Callable[..., pl.DataFrame], tmp_path: Path
) -> None:
    row = joined([_event(0, "play", 3)]).row(0, named=True)
    assert not row["play"]
    assert row["shown_at_ms"] is None
    assert row["matured_at_ms"] is None
    assert read_matured(tmp_path, 0, T0 + 10**9).height == 0


@pytest.mark.parametrize(("task", "window"), WINDOWS.items())
def test_each_task_has_its_own_window_and_its_end_is_inside(
    joined: Callable[..., pl.DataFrame], task: str, window: int
) -> None:
    shown = [_event(0, "shown", 0), _event(1, "shown", 1)]
    query = {"query": "any"}
    rows = joined([*shown, _event(0, task, window, **query), _event(1, task, window + 2, **query)])
    assert rows[task].to_list() == [True, False]
    assert rows[f"{task}_at_ms"].to_list() == [T0 + window, T0 + window + 2]


def test_a_row_states_what_its_token_states(joined: Callable[..., pl.DataFrame]) -> None:
    rows = joined([_event(n, "query_shown" if n == 2 else "shown", 5) for n in range(3)])
    for number, row in enumerate(rows.iter_rows(named=True)):
        impression = _impression(number)
        assert row["impression_id"] == impression.impression_id
        stated = impression.model_dump(mode="json", exclude={"origin_item_id"})
        assert stated == {name: row[name] for name in stated}
    assert [row is None for row in rows["weights"]] == [True, False, True]


@pytest.mark.parametrize("sealed", [False, True], ids=["write-ahead", "Parquet"])
def test_files_from_before_weights_and_arms_existed_are_read_and_joined(
    tmp_path: Path, event_table: Build, sealed: bool
) -> None:
    """An older version wrote no columns for weights, arms and placed items."""
    added = ["weights", "log_density", "arm", "placed", "experiment", "team"]
    joined = FeedbackJoin(KEY).join_batch(event_table([_event(1, "shown", 5)]))
    table = joined.to_columns().feedback_rows(AttributionWindows(WINDOWS))
    old = Segments(
        tmp_path, pa.schema(list(FEEDBACK_SCHEMA)[: -len(added)]), times=("served_at_ms",)
    )
    assert set(FEEDBACK_SCHEMA.names) - set(old.schema.names) == set(added)
    old.append(Stamp("e", 0, 0), table.select(old.schema.names))
    if sealed:
        old.flush()
    assert read_feedback(tmp_path).select(added).row(0) == (None,) * len(added)
    like = event_table([_event(1, "like", 9)])
    _store(tmp_path).join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 1), like))
    (row,) = read_feedback(tmp_path).iter_rows(named=True)
    assert (row["revision"], row["like"], row["shown_at_ms"]) == (2, True, T0 + 5)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"impression": sign(_impression(0), FOREIGN_KEY)}, TokenRejection.FORGED),
        ({"impression": sign(_impression(0), KEY)[:-2]}, TokenRejection.FORGED),
        ({"impression": "no.token"}, TokenRejection.FORGED),
        ({"impression": "äöü"}, TokenRejection.FORGED),
        ({"user_id": "other"}, TokenRejection.OTHER_USER),
        ({"video_id": "v7"}, TokenRejection.OTHER_ITEM),
        ({"event_time_ms": T0 + TOKEN_LIFE_MS + 1_000}, TokenRejection.EXPIRED),
        ({"impression": None}, None),
        ({"duplicate": True}, None),
    ],
)
def test_an_invalid_token_gives_no_feedback_and_harms_no_other_event(
    tmp_path: Path, event_table: Build, change: dict[str, object], cause: TokenRejection | None
) -> None:
    rejected: Counter[TokenRejection] = Counter()
    store = _store(tmp_path, on_rejected=rejected.update)
    batch = event_table([{**_event(0, "like", 3), **change}, _event(1, "shown", 2)])
    store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), batch))
    assert read_feedback(tmp_path)["impression_id"].to_list() == [_impression(1).impression_id]
    assert rejected == (Counter([cause]) if cause else Counter())


def test_a_click_on_a_query_that_was_not_served_is_rejected(
    joined: Callable[..., pl.DataFrame],
) -> None:
    assert joined([_event(2, "query_click", 3, query="another")]).height == 0
    assert joined([_event(2, "query_click", 3)]).height == 1


def test_feedback_on_ids_too_long_for_a_token_is_joined_with_their_full_texts(
    event_table: Build, tmp_path: Path
) -> None:
    long = {"user_id": "使" * 128, "video_id": "動" * 128, "query": "詞" * 256}
    token = sign(_impression(2).model_copy(update=long), KEY)
    own = {**long, "impression": token, "event_time_ms": T0 + 5}
    events = [_event(2, "query_shown", 5, **own), _event(2, "query_click", 6, **own)]
    other = [events[1] | {"user_id": "u9"}, events[1] | {"query": "q9"}]
    store = _store(tmp_path)
    store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), event_table(events + other)))
    (row,) = read_feedback(tmp_path).rows(named=True)
    assert {name: row[name] for name in long} == long
    assert row["query_click"]
    unstated = [events[1] | {"kind": "play", "query": None}]
    found = FeedbackJoin(KEY).join_batch(event_table(other[1:] + unstated))
    assert found.impressions == {}
    assert found.rejected == {TokenRejection.OTHER_ITEM: 2}


def test_each_of_two_tokens_of_one_impression_is_checked_on_its_own(
    joined: Callable[..., pl.DataFrame],
) -> None:
    """A request that was answered twice: the same slot, another item."""
    again = _impression(0).model_copy(update={"video_id": "other", "served_at_ms": T0 + 50})
    other = {"impression": sign(again, KEY), "video_id": "other"}
    row = joined([_event(0, "shown", 5), _event(0, "like", 9, **other)]).row(0, named=True)
    assert (row["video_id"], row["shown_at_ms"], row["like_at_ms"]) == ("v0", T0 + 5, T0 + 50)
    assert row["revision"] == 1


def test_the_alphabetically_last_origin_wins_and_is_a_revision(
    joined: Callable[..., pl.DataFrame],
) -> None:
    shown = [_event(0, "shown", 5, origin=origin) for origin in ("replayed", "simulated", "live")]
    row = joined(*([each] for each in shown)).row(0, named=True)
    assert (row["origin"], row["revision"]) == ("simulated", 2)


def test_the_first_order_counts_and_the_smaller_of_two_at_once(
    joined: Callable[..., pl.DataFrame],
) -> None:
    orders = [(9, 5), (7, 8), (7, 6), (8, 1)]
    batch = [_event(0, "order", at, amount_cents=amount) for at, amount in orders]
    row = joined(batch).row(0, named=True)
    assert (row["order_at_ms"], row["order_amount_cents"]) == (T0 + 7, 6)


def test_each_matured_impression_is_read_once_by_a_moving_watermark(
    joined: Callable[..., pl.DataFrame], tmp_path: Path
) -> None:
    joined([_event(n, "shown", 10 * n + 5) for n in (0, 1, 3, 4)])
    first = read_matured(tmp_path, 0, T0 + 115)
    second = read_matured(tmp_path, T0 + 115, T0 + 200)
    assert first["video_id"].to_list() == ["v0", "v1"]
    assert second["video_id"].to_list() == ["v3", "v4"]
    assert count_matured(tmp_path, 0, T0 + 115) == first.height
    assert count_matured(tmp_path, T0 + 115, T0 + 200) == second.height


def test_an_impression_with_many_revisions_counts_once(
    joined: Callable[..., pl.DataFrame], tmp_path: Path
) -> None:
    assert count_matured(tmp_path, 0, T0) == 0
    joined([_event(0, "shown", 5)], [_event(0, "play", 6)])
    assert count_matured(tmp_path, 0, T0 + 200) == 1


def test_a_failed_publication_changes_nothing_and_the_retry_publishes(
    tmp_path: Path, event_table: Build
) -> None:
    topic = _Topic()
    store = _store(tmp_path, producer=topic)
    delivery = Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), event_table([_event(0, "shown", 1)]))
    topic.failures = 1
    with pytest.raises(RuntimeError):
        store.join(delivery)
    assert read_feedback(tmp_path).height == 0
    store.join(delivery)
    store.join(delivery)
    assert [row["revision"] for row in topic.rows] == [1]
    assert set(topic.rows[0]) == set(FEEDBACK_SCHEMA.names)


def test_a_store_notices_what_another_process_has_written(
    tmp_path: Path, event_table: Build
) -> None:
    here, there = _store(tmp_path), _store(tmp_path)

    def join(store: FeedbackStore, offset: int, *events: dict[str, object]) -> None:
        store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), event_table(list(events))))

    join(here, 0, _event(0, "shown", 1))
    join(there, 1, _event(0, "like", 2))
    join(here, 2, _event(0, "play", 3))
    row = read_feedback(tmp_path).row(0, named=True)
    assert (row["revision"], row["like"], row["play"]) == (3, True, True)


def test_an_erased_user_stays_erased_after_a_late_action(
    tmp_path: Path, event_table: Build
) -> None:
    topic = _Topic()
    store = _store(tmp_path, producer=topic)
    events = [_event(0, "shown", 1), _event(1, "shown", 1)]
    store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), event_table(events)))
    assert store.erase("u0", T0 + 50) == 1
    late = event_table([_event(0, "like", 9)])
    store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 1), late))
    _store(tmp_path).join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 2), late))
    assert read_feedback(tmp_path)["user_id"].to_list() == ["u1"]
    assert len(topic.rows) == 2


_KINDS = ["shown", "query_shown", *FEEDBACK_TASKS, "share"]
_EVENTS = st.lists(
    st.builds(
        lambda number, kind, after, dwell, amount, valid: {
            **_event(number, kind, after),
            "dwell_ms": dwell if kind in ("skip", "play", "long_view") else None,
            "amount_cents": amount if kind == "order" else None,
            **({} if valid else {"user_id": "other"}),
        },
        st.integers(0, 5),
        st.sampled_from(_KINDS),
        st.integers(-5, 150),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=25,
)


def _batch_join(events: list[dict[str, object]]) -> pl.DataFrame:
    """The same join in polars, from all impressions and events at once."""
    served = pl.DataFrame(
        [{"n": n, "served": i.served_at_ms, "owner": i.user_id, "q": i.query,
          "impression_id": i.impression_id} for n in range(6) for i in [_impression(n)]]
    )  # fmt: skip
    plain = pl.DataFrame(
        [{"n": int(str(e["video_id"])[1:]), "user": e["user_id"], "kind": e["kind"],
          "t": e["event_time_ms"], "dwell": e["dwell_ms"], "amount": e["amount_cents"]}
         for e in events],
        schema={"n": pl.Int64, "user": pl.String, "kind": pl.String, "t": pl.Int64,
                "dwell": pl.Int64, "amount": pl.Int64},
    )  # fmt: skip
    on = plain.join(served, on="n").filter(pl.col("user") == pl.col("owner"))
    on = on.with_columns(t=pl.max_horizontal("t", "served"))
    shown_kind = (
        pl.when(pl.col("q").is_null()).then(pl.lit("shown")).otherwise(pl.lit("query_shown"))
    )
    relevant = on.filter(pl.col("kind").is_in(FEEDBACK_TASKS) | (pl.col("kind") == shown_kind))
    first = [
        pl.col("t").filter(pl.col("kind") == task).min().alias(f"{task}_at_ms")
        for task in FEEDBACK_TASKS
    ]
    orders = pl.col("kind") == "order"
    rows = relevant.group_by("impression_id").agg(
        pl.col("t").filter(pl.col("kind") == shown_kind).min().alias("shown_at_ms"),
        *first,
        pl.col("dwell").max().fill_null(0).alias("dwell_ms"),
        pl.col("amount").filter(orders & (pl.col("t") == pl.col("t").filter(orders).min())).min()
        .fill_null(0).alias("order_amount_cents"),
    )  # fmt: skip
    longest = max(WINDOWS.values())
    hit = [
        (pl.col(f"{task}_at_ms") <= pl.col("shown_at_ms") + WINDOWS.get(task, longest))
        .fill_null(False)
        .alias(task)
        for task in FEEDBACK_TASKS
    ]
    return rows.with_columns(*hit, matured_at_ms=pl.col("shown_at_ms") + longest)


@settings(max_examples=60, deadline=None)
@given(events=_EVENTS, data=st.data())
def test_the_stream_equals_the_batch_join_for_any_order_batches_replay_and_restart(
    tmp_path_factory: pytest.TempPathFactory,
    event_table: Build,
    events: list[dict[str, object]],
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("feedback")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=4)))
    edges = list(zip([0, *cuts], [*cuts, len(events)], strict=True))
    messages = [
        Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), event_table(events[a:b]))
        for offset, (a, b) in enumerate(edges)
    ]
    topic = _Topic()
    own: dict[str, Any] = {"cached_impressions": data.draw(st.sampled_from([1, 1_000]))}
    if data.draw(st.booleans()):  # every batch finds the impressions before it idle
        own["monotonic_s"] = itertools.count(0, 1_000).__next__
    store = _store(directory, producer=topic, **own)
    offset, restarts = 0, 0
    while offset < len(messages):
        until = offset + data.draw(st.integers(1, 3))  # waiting messages are combined
        store.join(combine(messages[offset:until]))
        offset = min(until, len(messages))
        if restarts < 4 and data.draw(st.integers(0, 2)) == 2:  # the group resumes earlier
            restarts += 1
            offset = data.draw(st.integers(0, offset))
            store = _store(directory, producer=topic, **own)
    expected = _batch_join(events).sort("impression_id")
    got = read_feedback(directory).sort("impression_id")
    assert got.select(expected.columns).equals(expected.select(expected.columns))
    clean = tmp_path_factory.mktemp("clean")
    for message in messages:
        _store(clean).join(message)
    assert read_feedback(clean).sort("impression_id").equals(got)
    last = {row["impression_id"]: row["revision"] for row in topic.rows}
    assert last == dict(zip(got["impression_id"], got["revision"], strict=True))
    published = {(row["impression_id"], row["revision"]): row for row in topic.rows}
    assert all(published[row["impression_id"], row["revision"]] == row for row in topic.rows)


def test_memory_follows_the_rate_of_impressions_not_their_number(
    tmp_path: Path, event_table: Build
) -> None:
    now = [0.0]
    store = _store(tmp_path, monotonic_s=lambda: now[0])
    for offset in range(40):
        now[0] += IDLE_S / 4
        batch = event_table([_event(offset, "shown", 5)])
        store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), batch))
        assert len(store._cache) <= 9
    late = event_table([_event(0, "like", 20)])
    store.join(Delivery(EVENTS_BY_USER, Stamp("e", 0, 40), late))
    rows = read_feedback(tmp_path)
    seen = sum(_impression(number).query is None for number in range(40))
    assert (rows.height, rows.filter("like")["impression_id"].to_list()) == (seen, ["r0:0"])
