"""Mappings: what they make of values, and what they say of what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.imports.check import Verdict, checker
from streams.imports.mapping import BadMapping, load, shipped, shipped_text
from streams.imports.source import Place, UnreadableFile, find, opened
from streams.ingest.admission import AdmissionLimits

NOW_MS = 1_800_000_000_000
HEAD = '[fields]\nuser_id = "user"\nitem_id = "item"\nkind = { value = "play" }\n'
TIME = 'event_time_ms = { column = "at", unit = "ms" }\n'


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def messages(file: str, mapping: str, shift_ms: int = 0) -> list[dict[str, Any]]:
    (place,) = find([file])
    with opened(place, load(mapping)) as rows:
        pieces = list(rows.pieces(shift_ms=shift_ms, now_ms=NOW_MS))
    return [json.loads(body) for piece in pieces for body in piece["body"].to_pylist() if body]


def verdict_of(file: str, mapping: str) -> Verdict:
    found = load(mapping)
    check, verdict = checker(found.target, NOW_MS, AdmissionLimits()), Verdict()
    with opened(Place(file), found) as rows:
        for piece in rows.pieces(shift_ms=0, now_ms=NOW_MS):
            check(piece, verdict)
    return verdict


@pytest.fixture
def mapping(tmp_path: Path) -> str:
    return written(tmp_path / "own.toml", HEAD + TIME)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_each_shipped_mapping_is_sound_and_can_be_copied(name: str, tmp_path: Path) -> None:
    assert load(written(tmp_path / "copy.toml", shipped_text(name))) == load(name)
    assert load(name).about


def test_rows_become_events_with_ids_that_stay_the_same(mapping: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", "user,item,at\nann,i1,1000\n,i2,2000\n")
    first, second = messages(file, mapping)
    assert first == {
        "event_id": first["event_id"],
        "kind": "play",
        "user_id": "ann",
        "item_id": "i1",
        "event_time_ms": 1000,
    }
    assert "user_id" not in second  # absent, as admission will say
    assert [m["event_id"] for m in messages(file, mapping)] == [
        first["event_id"],
        second["event_id"],
    ]
    assert first["event_id"] != second["event_id"]


# Characters of which CSV, SQL or JSON make something of their own, and any others.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(user=TEXT, item=TEXT)
def test_any_text_arrives_as_it_is(user: str, item: str, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    file = folder / "a.parquet"
    pl.DataFrame({"user": [user], "it'em\"": [item], "at": [5]}).write_parquet(file)
    own = HEAD.replace('"item"', "'it\u0027em\"'".replace("'it'em\"'", '"it\'em\\""'))
    (message,) = messages(str(file), written(folder / "m.toml", own + TIME))
    assert (message["user_id"], message["item_id"]) == (user, item)


@pytest.mark.parametrize(
    ("value", "source", "expected"),
    [
        ("1.5", 'unit = "s"', 1_500),
        ("1500", 'unit = "us"', 2),
        ("2019-10-01T02:00:00", 'unit = "iso", zone = "Europe/Berlin"', 1_569_888_000_000),
        ("2019-10-01T00:00:00Z", 'unit = "iso", zone = "Europe/Berlin"', 1_569_888_000_000),
        ("2019-10-01 02:00:00+02:00", 'unit = "iso"', 1_569_888_000_000),
        ("01.10.2019 02:00", 'unit = "%d.%m.%Y %H:%M", zone = "Europe/Berlin"', 1_569_888_000_000),
        ("soon", 'unit = "s"', "soon"),
        ("soon", 'unit = "iso"', "soon"),
    ],
)
def test_units_and_zones(value: str, source: str, expected: object, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", f'user,item,at\nann,i1,"{value}"\n')
    own = written(tmp_path / "m.toml", HEAD + f'event_time_ms = {{ column = "at", {source} }}\n')
    (message,) = messages(file, own)
    assert message["event_time_ms"] == expected


def test_times_are_shifted_by_one_constant(mapping: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", "user,item,at\nann,i1,1000\nbob,i2,3000\n")
    (place,) = find([file])
    with opened(place, load(mapping)) as rows:
        assert rows.newest_ms() == 3_000
    assert [m["event_time_ms"] for m in messages(file, mapping, shift_ms=500)] == [1_500, 3_500]


def test_what_is_refused_and_left_out_is_counted_with_its_cause(tmp_path: Path) -> None:
    own = written(
        tmp_path / "m.toml",
        '[fields]\nuser_id = "user"\nitem_id = "item"\namount_cents = { column = "price", scale = 100 }\n'
        'kind = { column = "type", map = { buy = "order" } }\n' + TIME,
    )
    file = written(
        tmp_path / "a.csv",
        "user,item,type,price,at\nann,i1,buy,9.99,1700000000000\nann,i1,peek,1,1700000000000\nann,i1,buy,cheap,1700000000000\n"
        f",i1,buy,1,1700000000000\nann,i1,buy,1,{NOW_MS * 2}\n",
    )
    verdict = verdict_of(file, own)
    assert (verdict.rows, verdict.accepted) == (5, 1)
    assert dict(verdict.skipped) == {"peek": 1}
    causes = " ".join(verdict.refused)
    for named in ("amount_cents", "user_id", "future"):
        assert named in causes
    assert json.loads(verdict.shown[0][0])["amount_cents"] == 999


def test_items_with_lists_prices_and_kinds(tmp_path: Path) -> None:
    file = written(
        tmp_path / "items.csv.txt",
        "movieId,title,genres\n1,Toy Story,Animation|Comedy\n2,,Drama\n",
    )
    verdict = verdict_of(file, "movielens-items")
    assert (verdict.rows, verdict.accepted) == (2, 1)
    assert json.loads(verdict.shown[0][0])["item"] == {
        "item_id": "v1",
        "title": "Toy Story",
        "categories": ["Animation", "Comedy"],
        "attributes": {},
    }


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        (
            "segment",
            {
                "type": "track", "messageId": "m1", "userId": None, "anonymousId": "anon",
                "event": "Order Completed", "timestamp": "2024-01-01T00:00:00.250Z",
                "properties": {"products": [{"product_id": "p1", "price": 5}, {"product_id": "p2"}]},
            },
            [
                {"event_id": "m1.0", "kind": "order", "user_id": "anon", "item_id": "p1",
                 "event_time_ms": 1_704_067_200_250, "amount_cents": 500},
                {"event_id": "m1.1", "kind": "order", "user_id": "anon", "item_id": "p2",
                 "event_time_ms": 1_704_067_200_250},
            ],
        ),
        (
            "segment",
            {
                "messageId": "m2", "userId": "u", "event": "Product Viewed",
                "timestamp": "2024-01-01T00:00:00Z", "properties": {"product_id": "p1"},
            },
            [{"event_id": "m2.0", "kind": "play", "user_id": "u", "item_id": "p1",
              "event_time_ms": 1_704_067_200_000}],
        ),
        (
            "ga4",
            {
                "event_name": "add_to_cart", "event_timestamp": "1704067200000000",
                "user_pseudo_id": "x.1", "items": [{"item_id": "p1", "price": 2.5}],
            },
            [{"kind": "cart", "user_id": "x.1", "item_id": "p1",
              "event_time_ms": 1_704_067_200_000, "amount_cents": 250}],
        ),
        (
            "snowplow",
            {
                "event_id": "s1", "domain_userid": "d", "derived_tstamp": "2024-01-01 00:00:00.0",
                "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1":
                    {"type": "product_view"},
                "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1": [{"id": "p1"}],
            },
            [{"event_id": "s1.0", "kind": "play", "user_id": "d", "item_id": "p1",
              "event_time_ms": 1_704_067_200_000}],
        ),
    ],
)  # fmt: skip
def test_documents_of_trackers(
    name: str, line: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(line) + "\n")
    found = messages(str(tmp_path / "a.jsonl.gz"), name)
    for message, wanted in zip(found, expected, strict=True):
        assert {key: message.get(key) for key in wanted} == wanted
    verdict = verdict_of(str(tmp_path / "a.jsonl.gz"), name)
    assert verdict.accepted == verdict.rows == len(expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD, "event_time_ms"),
        (HEAD + TIME + 'prise = "p"\n', "no field 'prise'"),
        (HEAD + 'event_time_ms = { column = "at", unit = "days" }\n', "the unit is one of"),
        (HEAD + 'event_time_ms = { column = "at", zone = "Berlin" }\n', "Europe/Berlin"),
        (HEAD + TIME + "query = {}\n", "name a column"),
        ("header = false\n" + HEAD + TIME, "columns"),
        ("[fields\n", "own.toml"),
        ('target = "items"\n[fields]\nitem_id = "i"\n', "title"),
    ],
)
def test_a_wrong_mapping_is_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadMapping) as refused:
        load(written(tmp_path / "own.toml", text))
    assert says in str(refused.value)


def test_a_missing_column_file_or_mapping_names_the_nearest(mapping: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", "user,items,at\nann,i1,1\n")
    with pytest.raises(BadMapping, match="did you mean 'items'"):
        messages(file, mapping)
    with pytest.raises(BadMapping, match="did you mean movielens"):
        load("movielense")
    with pytest.raises(UnreadableFile, match=r"nowhere\.csv"):
        find(["nowhere.csv"])
    with pytest.raises(UnreadableFile, match="--query"):
        find(["postgresql://ann:secret@host/db"])


def test_a_short_row_is_refused_by_its_field_and_the_others_arrive(
    mapping: str, tmp_path: Path
) -> None:
    rows = "".join(f"u{n},i{n},{1_700_000_000_000 + n}\n" for n in range(3))
    file = written(tmp_path / "a.csv", f"user,item,at\nann\n{rows}")
    verdict = verdict_of(file, mapping)
    assert (verdict.rows, verdict.accepted) == (4, 3)
    assert "event_time_ms" in " ".join(verdict.refused) or "item_id" in " ".join(verdict.refused)


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_the_delimiter_is_read_off_the_first_line(sign: str, mapping: str, tmp_path: Path) -> None:
    text = "user,item,at\nann,i1,1700000000000\n".replace(",", sign)
    (message,) = messages(written(tmp_path / "a.csv", text), mapping)
    assert (message["user_id"], message["item_id"]) == ("ann", "i1")


def test_a_torn_file_is_named(mapping: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"user,item,at\n" * 5_000)[:-20])
    with pytest.raises((UnreadableFile, BadMapping), match=r"a\.csv\.gz|no column"):
        messages(str(tmp_path / "a.csv.gz"), mapping)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UnreadableFile, match=r"a\.parquet"):
        messages(str(tmp_path / "a.parquet"), mapping)
