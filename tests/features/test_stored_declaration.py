"""A declaration as JSON: what is written is read, and readers without a stack adopt it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import wiring
from deploy.settings import Settings
from features import stored_declaration
from features.definitions import (
    ALL,
    DEFINITIONS,
    MONTH,
    SHIPPED,
    WEEK,
    Count,
    CountBy,
    Decayed,
    Distinct,
    Key,
    LastN,
    Ratio,
    Sum,
)
from features.feast.registry import open_store
from features.offline.spark import _bucket_fold
from features.stored_declaration import (
    Declaration,
    UnreadableDeclaration,
    adopt,
    declaration_in_force,
    read_declaration,
    write_declaration,
)
from streams.bus.contract import Stamp
from streams.contract.attributes import AttributeDeclaration, AttributeDeclarations
from streams.contract.declaration import Contract, contract, declare, declared
from streams.contract.schema import conform, event_schema
from streams.contract.signals import Signal, Signals

T0 = 1_700_000_000_000
RATING = Signal("rating", 64, "engagement", ("value", "text"), 3_600_000)
OWN = {
    "user": (
        Sum("amount_cents", ("order",), (MONTH, ALL), name="spent"),
        LastN("rated_item", "video_id", ("rating",), 5, "rated_kind", "rated_time_ms"),
        LastN("said", "text", ("rating",), 2),
        Ratio("rating_rate", "rating_count", "play_count", (WEEK, ALL)),
        Decayed("recent_plays", "play_count", MONTH, 604_800_000),
        Distinct("rated_items", "rated_item"),
        CountBy("most_rated", "rated_item", 3, ("rating",), 86_400_000),
    ),
    "query": (Count("play", (ALL,)),),
    "word": (Key("text"), Count("rating", (ALL,))),
}
DECLARATION = Declaration(
    Contract(
        items=AttributeDeclarations(
            {"look": AttributeDeclaration(type="vector", length=3)}, undeclared="mark"
        ),
        signals=Signals((RATING,), (Signal("old", 65, "dislike"),)),
        across_items=("order",),
        surfaces=("feed",),
    ),
    OWN,
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _undeclared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has declared nothing."""
    before = contract()
    monkeypatch.setattr(stored_declaration, "_adopted", Declaration())
    declare(Contract())
    yield
    declare(before)
    DEFINITIONS.add({})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_declaration(tmp_path, DECLARATION)
    assert read_declaration(tmp_path) == DECLARATION
    assert [path.name for path in tmp_path.iterdir()] == ["declaration.json"]


def test_nothing_is_written_where_nothing_is_or_was_declared(tmp_path: Path) -> None:
    write_declaration(tmp_path / "log", Declaration(Contract(surfaces=("feed",))))
    assert not (tmp_path / "log").exists()
    assert read_declaration(tmp_path / "log") == Declaration()
    write_declaration(tmp_path / "log", DECLARATION)
    write_declaration(tmp_path / "log", Declaration())
    assert read_declaration(tmp_path / "log").declares_nothing


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": {"user": [{"feature": "Median"}]}}, "Median"),
        ({"features": {"user": [{"feature": "Ratio", "n": 3}]}}, "unexpected keyword"),
        ({"features": {"shop": []}, "contract": {}}, "shop"),
        ({"features": {"user": [{"feature": "Count", "kind": "sold", "windows": ["all"]}]}},
         "'sold' is no signal"),
        ({"contract": {"signals": {"declared": [{"name": "x"}]}}}, "number"),
        ({"contract": 3}, "Contract"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, change: dict, named: str) -> None:
    body = json.loads(DECLARATION.to_json()) | change
    (tmp_path / "declaration.json").write_text(json.dumps(body))
    with pytest.raises(UnreadableDeclaration, match=rf"declaration\.json.*(?s:.*){named}"):
        read_declaration(tmp_path)


def test_a_reader_adopts_and_follows_what_is_declared() -> None:
    adopt(DECLARATION)
    assert contract().signals.number["rating"] == 64
    assert {"rating_count_1h", "most_rated", "rating_rate_7d"} <= {*DEFINITIONS["user"].columns}
    adopt(Declaration())
    assert DEFINITIONS["user"] is SHIPPED["user"]


def test_a_process_that_has_declared_keeps_its_own() -> None:
    own = Contract(signals=Signals((Signal("bought", 70, "conversion"),)))
    with declared(own):
        adopt(DECLARATION)
        assert contract() is own
        assert "bought_count_all" in DEFINITIONS["user"].columns
    DEFINITIONS.add({"query": (Count("play", (ALL,)),)})
    adopt(DECLARATION)
    assert contract() == Contract()


def test_a_spark_worker_folds_by_the_driver_s_declaration(event_table) -> None:
    """The function that Spark sends to its workers carries the declaration with it."""
    adopt(DECLARATION)
    fold = _bucket_fold("user", Stamp("backfill 7", 0, 0), 0)
    table = event_table([{"kind": "play", "event_time_ms": T0, "user_id": "ann"}])
    for name in ("epoch", "partition", "offset", "row"):
        table = table.append_column(name, [["t" if name == "epoch" else 0]])
    at_the_driver = fold(table)
    adopt(Declaration())
    assert fold(table).equals(at_the_driver)
    assert declaration_in_force() == DECLARATION


def test_the_log_s_writer_records_what_the_settings_declare(tmp_path: Path) -> None:
    signals = {"rating": {"role": "engagement", "payload": ["value"]}}
    settings = Settings(home=tmp_path, signals=signals)
    wiring.declare(settings)
    assert not (settings.log_dir / "declaration.json").exists()
    wiring.record_declaration(settings)
    assert read_declaration(settings.log_dir) == declaration_in_force()


PLAIN_CLIENT = """
import json, sys
from pathlib import Path
from features.feast.registry import feast_client
from features.online.connection import StoreLogin
client = feast_client(Path(sys.argv[1]), StoreLogin().feast_settings(sys.argv[2], 6), "declared")
def read(service, key, *ids):
    return client.get_online_features(
        features=client.get_feature_service(service),
        entity_rows=[{key: each, "now_ms": int(sys.argv[3])} for each in ids],
    ).to_dict()
print(json.dumps(read("word", "text", "good", "bad") | read("user", "user_id", "ann", "new")))
"""


def test_a_plain_feast_client_knows_declared_columns(valkey, tmp_path, event_table) -> None:
    adopt(DECLARATION)
    registry = tmp_path / "registry.db"
    store = open_store(registry_path=registry, address=valkey, db=6, project="declared")
    try:
        kinds = ["play", "play", "like"]
        played = [
            {"kind": kind, "event_time_ms": T0, "user_id": "ann", "event_id": f"e{place}"}
            for place, kind in enumerate(kinds)
        ]
        table = conform(event_table(played), event_schema())
        store.fold("user", table, Stamp("t", 0, 0))
        said = event_table([{"kind": "rating", "event_time_ms": T0, "text": "good"}])
        store.fold("word", said, Stamp("t", 0, 0))
        store.apply()
        ran = subprocess.run(
            [sys.executable, "-c", PLAIN_CLIENT, str(registry), valkey, str(T0 + 1)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        answer = json.loads(ran.stdout.splitlines()[-1])
        frame = store.read("user", ["ann", "new"], T0 + 1)
        assert frame.columns["recent_plays"][0] > 1.9
        assert answer["user_row_status"] == ["present", "absent"]
        assert answer["rating_rate_all"] == [0.0, None]
        assert answer["word_row_status"] == ["present", "absent"]
        words = store.read("word", ["good", "bad"], T0 + 1)
        assert words.columns["rating_count_all"].tolist() == [1, 0]
        for name in ("rating_count_all", "recent_plays", "rated_items", "most_rated", "said"):
            assert answer[name] == frame.columns[name].tolist(), name
    finally:
        store.tear_down()
