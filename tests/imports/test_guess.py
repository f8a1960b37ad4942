"""Mappings that are guessed, and the folder that `tidemill init` writes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli.main import build
from deploy.settings import load as load_settings
from streams.imports.check import Verdict, checker
from streams.imports.guess import guess_events, guess_items
from streams.imports.mapping import load
from streams.imports.source import Place, opened
from streams.ingest.admission import AdmissionLimits

NOW_MS = 1_800_000_000_000
EVENTS = (
    ("customer_id", "SKU", "Action", "order_date", "price", "channel"),
    ("c1", "s1", "product_view", "2024-05-01 10:00:00", "10.50", "web"),
    ("c1", "s1", "add_to_cart", "2024-05-01 10:01:00", "10.50", "web"),
    ("c2", "s2", "Purchase", "2024-05-02 11:00:00", "3", "app"),
    ("c2", "s2", "logout", "2024-05-02 11:00:00", "", "app"),
)
ITEMS = (
    ("SKU", "name", "category", "price", "colour", "weight kg", "1st sale"),
    ("s1", "Running shoe", "Shoes;Sport", "10.50", "red", "0.4", "yes"),
    ("s2", "Sock", "Socks", "3", "red", "0.05", "no"),
)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, rows in (("events.csv", EVENTS), ("items.csv", ITEMS)):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path


def verdict_of(file: Path, mapping: Path) -> Verdict:
    found, verdict = load(str(mapping)), Verdict()
    check = checker(found.target, NOW_MS, AdmissionLimits())
    with opened(Place(str(file)), found) as rows:
        for piece in rows.pieces(shift_ms=0, now_ms=NOW_MS):
            check(piece, verdict)
    return verdict


def test_a_shop_s_files_become_a_folder_that_works_as_it_is(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--events", str(shop / "events.csv"), "--items", str(shop / "items.csv")]
    done = CliRunner().invoke(build(), ["init", str(shop / "mine"), *arguments])
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(shop / "mine")
    declared = load_settings().items.declarations().declared
    types = {name: each.type for name, each in declared.items()}
    assert types == {"colour": "label", "weight_kg": "number", "c_1st_sale": "flag"}
    events = verdict_of(shop / "events.csv", Path("events.toml"))
    assert (events.accepted, dict(events.skipped)) == (3, {"logout": 1})
    kinds = [text.split('"kind":"')[1].split('"')[0] for text, _ in events.shown]
    assert kinds == ["play", "cart", "order"]
    items = verdict_of(shop / "items.csv", Path("items.toml"))
    assert (items.rows, items.accepted) == (2, 2), items.refused
    assert '"categories":["Shoes","Sport"]' in items.shown[0][0]
    assert '"price_cents":1050' in items.shown[0][0]


def test_a_dry_run_says_how_to_state_the_form_of_times(shop: Path) -> None:
    mapping = shop / "events.toml"
    mapping.write_text(
        'target = "events"\n[fields]\nuser_id = "customer_id"\nitem_id = "SKU"\n'
        'kind = { value = "play" }\nevent_time_ms = { column = "order_date", unit = "%d.%m.%Y" }\n'
    )
    arguments = ["import", str(shop / "events.csv"), "--map", str(mapping), "--dry-run"]
    done = CliRunner().invoke(build(), arguments)
    assert done.exit_code == 0, done.output
    assert "times that are not of the unit '%d.%m.%Y': set it in the mapping" in done.output


def test_a_folder_without_files_is_sound_too(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(build(), ["init", str(shop / "mine")]).exit_code == 0
    monkeypatch.chdir(shop / "mine")
    load_settings()
    assert {load(name).target for name in ("events.toml", "items.toml")} == {"events", "items"}
    again = CliRunner().invoke(build(), ["init", str(shop / "mine")])
    assert again.exit_code == 2


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("1700000000", "s"),
        ("1700000000.5", "s"),
        ("1700000000000", "ms"),
        ("1700000000000000", "us"),
        ("2024-01-01T00:00:00Z", "iso"),
        ("2019-10-01 00:00:00 UTC", "%Y-%m-%d %H:%M:%S UTC"),
        ("31.12.2024 10:00", "%d.%m.%Y %H:%M"),
        ("31.12.2024 10:00:30", "%d.%m.%Y %H:%M:%S"),
        ("31.12.2024", "%d.%m.%Y"),
        ("12/31/2024 10:00", "%m/%d/%Y %H:%M"),
        ("31/12/2024 10:00:30", "%d/%m/%Y %H:%M:%S"),
    ],
)
def test_the_unit_of_times_is_guessed(value: str, unit: str) -> None:
    toml = guess_events({"user": ["u"], "item": ["i"], "time": [value]}).toml
    assert f'unit = "{unit}"' in toml
    assert "all rows are plays" in toml


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (["yesterday", "31.12.2024 10:00:30", "1.1.2025 9:05:00"], "%d.%m.%Y %H:%M:%S"),
        (["01/02/2024", "03/02/2024", "31/12/2024"], "%d/%m/%Y"),
        (["01/02/2024", "03/02/2024"], "%m/%d/%Y"),
    ],
)
def test_the_form_of_times_is_that_of_most_rows(times: list[str], unit: str) -> None:
    toml = guess_events({"user": ["u"] * 3, "item": ["i"] * 3, "time": times}).toml
    assert f'unit = "{unit}"' in toml


def test_a_category_path_is_split_into_categories() -> None:
    guess = guess_items({"sku": ["s1"], "name": ["Lamp"], "category path": ["Home > Lamps"]})
    assert 'categories = { column = "category path", separator = ">" }' in guess.toml
    assert guess.attributes == {}


def test_what_cannot_be_guessed_is_marked() -> None:
    assert 'user_id = "?"' in guess_events({"a": ["1"], "b": ["2"]}).toml
