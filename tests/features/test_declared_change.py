"""What a changed declaration costs is said before it runs, and what is said is so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from deploy import wiring
from deploy.cli.features import app
from deploy.settings import Settings
from features.definitions import ALL, DAY, DEFINITIONS, Distinct, LastN, Ratio, Sum
from features.memory_store import MemoryFeatureStore
from features.offline.declared_change import SAMPLE_EVENTS, compared, rebuild_cost, write_rate
from features.stored_declaration import Declaration, write_declaration
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS
from streams.contract.declaration import Contract, contract, declare
from streams.contract.signals import Signal, Signals
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog

T0 = 1_700_000_000_000
RATING = Signal("rating", 64, "engagement", ("value",), 3_600_000)
BEFORE = Declaration(
    Contract(signals=Signals((RATING,))),
    {"user": (LastN("met", "author_id", ("play",), 5), Distinct("authors", "met"))},
)
RATE = Ratio("like_rate", "like_count", "play_count", (DAY,))


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = contract()
    yield
    declare(before)
    DEFINITIONS.add({})


@pytest.fixture
def log(tmp_path: Path, event_table) -> EventLog:
    rng = np.random.default_rng(3)
    log = EventLog(tmp_path / "log")
    for batch in range(4):
        events = [
            {
                "event_id": f"{batch}-{place}", "kind": ("play", "like")[place % 2],
                "event_time_ms": T0 + int(rng.integers(9 * DAY_MS)),
                "user_id": f"u{rng.integers(9)}", "author_id": f"a{rng.integers(20)}",
                "video_id": f"v{rng.integers(30)}", "dwell_ms": 5,
            }
            for place in range(50)
        ]  # fmt: skip
        log.append(Delivery(EVENTS_BY_USER, Stamp("U", 0, batch), event_table(events)))
    return log


def test_features_are_compared_by_name() -> None:
    longer = LastN("met", "author_id", ("play",), 50)
    sold = Sum("amount_cents", ("order",), (ALL,), name="spent")
    after = replace(BEFORE, features={"user": (longer, RATE), "video": (sold,)})
    change = compared(BEFORE, after)
    assert str(change.features["user"]) == "+like_rate, -authors, ~met"
    assert str(change.features["video"]) == "+spent_sum"
    assert change.features.keys() == {"user", "video"}
    assert change.rebuilt


def test_a_new_signal_is_a_count_of_three_entities() -> None:
    change = compared(Declaration(), BEFORE)
    assert str(change.signals) == "+rating"
    assert [*change.features] == ["user", "video", "author"]
    assert "+rating_count" in str(change)


def test_derived_features_and_equal_declarations_rebuild_nothing() -> None:
    derived = replace(BEFORE, features={"user": (*BEFORE.features["user"], RATE)})
    assert str(compared(BEFORE, derived)) == "user +like_rate"
    assert not compared(BEFORE, derived).rebuilt
    assert not compared(BEFORE, BEFORE)


def test_the_cost_is_that_of_the_log(log: EventLog) -> None:
    cost = rebuild_cost(log.directory, Declaration(), BEFORE)
    rows = MemoryFeatureStore()
    for delivery in log.deliveries():
        for entity in DEFINITIONS:
            rows.fold(entity, delivery.table, delivery.stamp)
    assert (cost.events, cost.sample_events, cost.measured) == (200, 200, False)
    for entity, count in cost.rows.items():  # ids are counted approximately
        assert count == pytest.approx(len(list(rows.ids(entity))), rel=0.1)
    stored = [len(blob) for blob in rows._rows["video"].values()]
    assert cost.bytes_before["video"] == pytest.approx(np.mean(stored))
    assert cost.bytes_after["user"] > cost.bytes_before["user"]
    assert cost.bytes_after["query"] == cost.bytes_before["query"] == 0
    assert cost.events_per_s > 0
    assert "reads 200 events" in str(cost)
    assert contract().signals.declared == ()


def test_a_sample_is_no_longer_than_asked_for_and_a_measured_rebuild_counts_more(
    log: EventLog,
) -> None:
    write_rate(log.directory, SAMPLE_EVENTS, 10.0)
    write_rate(log.directory, 5, 1e-6)  # too short to say anything
    cost = rebuild_cost(log.directory, BEFORE, BEFORE, sample_events=60)
    assert (cost.events, cost.sample_events) == (200, 60)
    assert (cost.events_per_s, cost.measured) == (SAMPLE_EVENTS / 10, True)
    (log.directory / "rebuild.json").write_bytes(orjson.dumps({"events": 3}))
    assert not rebuild_cost(log.directory, BEFORE, BEFORE).measured


def test_an_empty_log_costs_nothing(tmp_path: Path) -> None:
    assert "nothing to rebuild" in str(rebuild_cost(tmp_path / "log", Declaration(), BEFORE))


def test_the_start_says_once_what_changed(log: EventLog) -> None:
    settings = Settings(
        home=log.directory.parent, signals={"rating": {"role": "engagement", "payload": ["value"]}}
    )
    wiring.declare(settings)
    line = wiring.declared_change(settings)
    assert line.startswith("the declaration changed: signals +rating; user +rating_count, ~")
    assert "~engaged_video_id; video +rating_count" in line
    assert "reads 200 events" in line
    wiring.record_declaration(settings)
    assert wiring.declared_change(settings) == ""
    DEFINITIONS.add({"user": (RATE,)})
    assert wiring.declared_change(settings).endswith("user +like_rate; no row is rebuilt")
    (log.directory / "declaration.json").write_text("{")
    assert "declaration.json: no declaration" in wiring.declared_change(settings)


def test_the_command_prints_names_bytes_and_time_and_changes_nothing(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_HOME", str(log.directory.parent))
    monkeypatch.setenv("COLUMNS", "200")
    write_declaration(log.directory, BEFORE)
    files = sorted(log.directory.rglob("*"))
    declare(BEFORE.contract)
    DEFINITIONS.add({"user": (LastN("met", "author_id", ("play",), 9),)})
    ran = CliRunner().invoke(app, ["plan"])
    assert ran.exit_code == 0, ran.output
    assert "-authors, ~met" in ran.output
    assert "a rebuild reads 200 events" in ran.output
    assert sorted(log.directory.rglob("*")) == files
    DEFINITIONS.add(BEFORE.features)
    assert "no row has to be rebuilt" in CliRunner().invoke(app, ["plan"]).output
