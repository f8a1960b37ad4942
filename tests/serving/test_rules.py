"""Rules at work: what they remove, promote, pin and limit, and that propensities stay exact."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.alignment import ranker_value
from models.release.store import Manifest, ReleaseStore
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Scored
from serving.rules.columns import ItemColumns
from serving.rules.definitions import KINDS, RulesRefused, read_rules_toml
from serving.stages.acting_rules import RuleReader
from serving.stages.rule_selector import RuleSelector
from serving.stages.selectors import InOrder, PlackettLuce
from serving.state.catalogue import LiveCatalogue
from serving.state.rule_book import RuleBook
from streams.catalogue import Catalogue
from streams.contract.events import KIND_CODE, CatalogueItem, ItemAdded
from streams.contract.impression import Impression, sign, verify
from streams.contract.schema import EVENT_SCHEMA
from streams.feedback.join import FeedbackJoin
from streams.feedback.outcomes import AttributionWindows

SURFACES = {"feed": KINDS, "reactivation": tuple(k for k in KINDS if k != "boost"), "queries": ()}
KEY = bytes(range(32))


def put(harness: Any, *rules: dict[str, Any]) -> Any:
    return harness.client.put("/v1/rules", json={"rules": list(rules)})


def in_force(harness: Any, *rules: dict[str, Any]) -> None:
    assert (reply := put(harness, *rules)).status_code == 200, reply.text


def ids(reply: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in reply["items"]]


def test_a_requests_filter_keeps_only_what_meets_it(harness: Any) -> None:
    reply = harness.feed(filter="'Film-Noir' in item.categories && item.author != 'a4'")
    assert len(reply["items"]) == 8
    for item in reply["items"]:
        assert "Film-Noir" in item["categories"]
        assert item["author_id"] != "a4"
    removed = {(each["stage"], each["reason"]) for each in reply["removed"]}
    assert ("rules", "the request's filter") in removed
    assert "placed" not in reply["items"][0]


def test_a_filter_finds_items_that_no_source_offers(stage_deps: Any) -> None:
    """One of 2,000 unpopular items: sources alone would not return it."""
    from serving.surfaces import Surfaces
    from serving.surfaces.feed import FeedRequest

    catalogue = Catalogue()
    for n in range(2_000):
        brand = "rare" if n == 1_234 else None
        item = CatalogueItem(item_id=f"v{n}", title="t", brand=brand)
        catalogue.apply(ItemAdded(event_id=f"e{n}", event_time_ms=1_700_000_000_000, item=item))
    live = LiveCatalogue(catalogue)
    popularity = type(stage_deps.popularity)(stage_deps.store, live, stage_deps.clock)
    popularity.refresh()
    surfaces = Surfaces(replace(stage_deps, catalogue=live, popularity=popularity))
    slate = surfaces.answer(FeedRequest(user_id="u1", k=5, filter="item.brand == 'rare'"))
    surfaces.close()
    assert [item.item_id for item in slate.items] == ["v1234"]


def test_a_filter_that_leaves_nothing_gives_an_empty_reply_with_the_reason(harness: Any) -> None:
    reply = harness.feed(filter="item.brand == 'none has it'")
    assert reply["items"] == []
    assert "by rules or the request's filter" in reply["reason"]


def test_a_wrong_expression_of_a_request_is_refused_with_the_nearest_name(harness: Any) -> None:
    for body in (
        {"filter": "item.brnad == 'a'"},
        {"boosts": [{"when": "item.brnad", "strength": 1}]},
    ):
        reply = harness.client.post("/v1/feed", json={"user_id": "u", **body})
        assert reply.status_code == 422
        assert "the nearest is item.brand" in reply.json()["detail"][0]["msg"]
    long = {"user_id": "u", "filter": "true || " * 1_000 + "true"}
    assert harness.client.post("/v1/feed", json=long).status_code == 422


def test_boosts_promote_and_bury_and_are_named(harness: Any) -> None:
    rule = {
        "name": "noir",
        "kind": "boost",
        "when": "'Film-Noir' in item.categories",
        "strength": 9,
    }
    in_force(harness, rule)
    reply = harness.feed(boosts=[{"when": "item.author == 'a4'", "strength": -9}])
    assert all("Film-Noir" in item["categories"] for item in reply["items"])
    named = {(each["item_id"], each["rule"], each["strength"]) for each in reply["boosted"]}
    assert named >= {(item_id, "noir", 9.0) for item_id in ids(reply)}
    assert all(item["author_id"] != "a4" for item in reply["items"])


def test_a_pinned_item_has_its_slot_and_is_marked_in_reply_and_token(harness: Any) -> None:
    in_force(
        harness,
        {"name": "hero", "kind": "pin", "slot": 2, "item": "v17"},
        {"name": "late", "kind": "pin", "slot": 2, "item": "v18"},
        {"name": "gone", "kind": "pin", "slot": 3, "item": "unknown"},
        {"name": "noir", "kind": "pin", "slot": 0, "when": "'Film-Noir' in item.categories"},
    )
    reply = harness.feed()
    assert ids(reply)[2] == "v17"
    assert "Film-Noir" in reply["items"][0]["categories"]
    placed = {item["slot"]: item.get("placed") for item in reply["items"]}
    assert {slot: rule for slot, rule in placed.items() if rule} == {2: "hero", 0: "noir"}
    tokens = [verify(item["impression"], KEY) for item in reply["items"]]
    assert [token.placed for token in tokens] == [slot in (0, 2) for slot in range(8)]
    unmet = {each["rule"]: each["reason"] for each in reply["unmet"]}
    assert unmet["late"] == "slot 2 is taken by hero"
    assert unmet["gone"] == "no candidate that it names is left"


def test_feedback_marks_placed_items_and_off_policy_estimates_leave_them_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = [sign(_impression(slot, placed=slot == 1), KEY) for slot in range(3)]
    columns = FeedbackJoin(KEY).join_batch(_shown(tokens)).to_columns()
    table = pl.from_arrow(columns.feedback_rows(AttributionWindows({"play": 1_000})))
    assert isinstance(table, pl.DataFrame)
    assert dict(table.select("slot", "placed").iter_rows()) == {0: False, 1: True, 2: False}
    manifest = Manifest("r1", {"ranker": 1}, created_ms=1)
    monkeypatch.setattr(ReleaseStore, "manifests", lambda _self: [manifest])
    store = ReleaseStore(Path("unused"))
    assert sorted(ranker_value._served_by(store, 1, table)["slot"]) == [0, 2]
    old = table.with_columns(placed=pl.lit(None, pl.Boolean))
    assert sorted(ranker_value._served_by(store, 1, old)["slot"]) == [0, 1, 2]


def _impression(slot: int, placed: bool) -> Impression:
    return Impression(
        request_id="s1",
        surface="feed",
        user_id="u1",
        video_id=f"v{slot}",
        slot=slot,
        propensity=1.0,
        release="r1",
        served_at_ms=1_700_000_000_000,
        placed=placed,
    )


def _shown(tokens: list[str]) -> pa.Table:
    rows = [
        {
            "event_id": f"e{n}",
            "user_id": "u1",
            "kind": KIND_CODE["shown"],
            "video_id": f"v{n}",
            "event_time_ms": 1_700_000_000_005,
            "ingested_at_ms": 1_700_000_000_005,
            "surface": "feed",
            "origin": "live",
            "late": False,
            "duplicate": False,
            "impression": token,
            "source_partition": 0,
            "source_offset": n,
        }
        for n, token in enumerate(tokens)
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def test_an_excluded_item_is_not_pinned(harness: Any) -> None:
    in_force(
        harness,
        {"name": "hero", "kind": "pin", "slot": 0, "item": "v17"},
        {"name": "not-v17", "kind": "filter", "exclude": "item.id == 'v17'"},
    )
    reply = harness.feed()
    assert "v17" not in ids(reply)
    assert [each["rule"] for each in reply["unmet"]] == ["hero"]
    assert ("v17", "rule not-v17") in {(r["item_id"], r["reason"]) for r in reply["removed"]}


def test_groups_shares_and_pins_hold_together(harness: Any) -> None:
    in_force(
        harness,
        {"name": "authors", "kind": "group", "by": "item.author", "at_most": 1},
        {
            "name": "comedy",
            "kind": "share",
            "when": "'Comedy' in item.categories",
            "minimum": 0.5,
            "maximum": 0.5,
        },
        {"name": "hero", "kind": "pin", "slot": 7, "when": "'Comedy' in item.categories"},
    )
    reply = harness.feed()
    authors = Counter(item["author_id"] for item in reply["items"])
    assert max(authors.values()) == 1
    assert sum("Comedy" in item["categories"] for item in reply["items"]) == 4
    assert reply["items"][7]["placed"] == "hero"
    assert "unmet" not in reply


def test_seen_and_own_items_are_excluded(harness: Any) -> None:
    in_force(
        harness, {"name": "own", "kind": "exclude_own"}, {"name": "seen", "kind": "exclude_seen"}
    )
    shown = ids(harness.feed("u1"))[:3]
    for item_id in shown:
        assert harness.send_event("shown", item_id, "u1").status_code == 202
    read = lambda: harness.client.get("/v1/users/u1").json()["features"].get("shown_video_id", [])  # noqa: E731
    harness.wait_until(lambda: len(read()) == 3)
    reply = harness.feed("u1")
    assert not set(shown) & set(ids(reply))
    assert "rule seen: the user has seen it" in {r["reason"] for r in reply["removed"]}
    assert all(item["author_id"] != "a3" for item in harness.feed("a3")["items"])


def test_the_popularity_arm_and_trajectories_keep_filters_and_pins(harness: Any) -> None:
    in_force(
        harness,
        {"name": "hero", "kind": "pin", "slot": 1, "item": "v17"},
        {"name": "no-drama", "kind": "filter", "exclude": "'Drama' in item.categories"},
    )
    body = {"user_id": "u1", "k": 3, "filter": "item.id != 'v1'"}
    reply = harness.client.post("/v1/reactivation", json=body).json()
    assert ids(reply)[1] == "v17"
    assert all("Drama" not in item["categories"] for item in reply["items"])


def test_a_set_is_refused_as_a_whole_with_every_fault(harness: Any) -> None:
    in_force(harness, {"name": "kept", "kind": "filter", "exclude": "item.kind == 'live'"})
    reply = put(
        harness,
        {"name": "a", "kind": "filter", "keep": "item.pirce < 3.0"},
        {"name": "a", "kind": "group", "by": "item.price"},
        {"name": "b", "kind": "boost", "when": "true", "strength": 1, "surfaces": ["reactivation"]},
        {"name": "c", "kind": "exclude_own", "surfaces": ["fed"]},
    )
    assert reply.status_code == 422
    faults = {(each["field"], each["msg"].partition(";")[0]) for each in reply.json()["detail"]}
    assert faults == {
        ("a", "two rules have this name"),
        ("a", "there is no item.pirce: the nearest is item.price"),
        ("a", "`by` takes a text of items, and item.price is none"),
        ("b", "a boost has no effect on reactivation"),
        ("c", "there is no surface fed: the nearest is feed"),
    }
    stated = harness.client.get("/v1/rules").json()["rules"]
    assert [rule["name"] for rule in stated] == ["kept"]


def test_what_is_read_can_be_put_again(harness: Any) -> None:
    rule = {"name": "sale", "kind": "pin", "slot": 0, "item": "v3", "until": "2031-01-01T00:00:00Z"}
    in_force(harness, rule)
    stated = harness.client.get("/v1/rules").json()
    assert stated == {"rules": [rule]}
    assert harness.client.put("/v1/rules", json=stated).json() == stated


def test_rules_survive_a_restart_and_reach_other_processes(tmp_path: Path) -> None:
    one, other = RuleBook(tmp_path / "rules.json"), RuleBook(tmp_path / "rules.json")
    for book in (one, other):
        book.know_surfaces(SURFACES)
    assert other.current().rules == ()
    one.replace({"rules": [{"name": "a", "kind": "exclude_own"}]})
    deadline = time.monotonic() + 30
    while not other.current().rules:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [each.rule.name for each in other.current().acting("feed", 0)] == ["a"]
    assert other.current().acting("queries", 0) == ()


def test_a_file_that_cannot_be_read_leaves_the_rules_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    book = RuleBook(path)
    book.know_surfaces(SURFACES)
    book.replace({"rules": [{"name": "a", "kind": "exclude_own"}]})
    path.write_text("{")
    time.sleep(0.25)  # the file is looked at five times a second
    assert [each.rule.name for each in book.current().rules] == ["a"]


def test_a_rule_acts_between_its_times_and_while_it_is_enabled() -> None:
    at = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)
    toml = """
    [[rules]]
    name = "sale"
    kind = "exclude_own"
    from = 2026-11-30T00:00:00Z
    until = "2026-12-01T00:00:00Z"

    [[rules]]
    name = "off"
    kind = "exclude_own"
    enabled = false
    """
    rules, day_ms = read_rules_toml(toml, SURFACES), 86_400_000
    at_ms = int(at.timestamp() * 1e3)
    acting = [[r.rule.name for r in rules.acting("feed", at_ms + d)] for d in (-1, 0, day_ms)]
    assert acting == [[], ["sale"], []]


FAULTS = {
    "name = 'A'\nkind = 'exclude_own'": "A.name",
    "name = 'a'\nkind = 'pim'": "there is no kind 'pim': the nearest is pin",
    "name = 'a'\nkind = 'pin'\nslot = 1": "state `item`, `when` or both",
    "name = 'a'\nkind = 'filter'": "state either `keep` or `exclude`",
    "name = 'a'\nkind = 'exclude_own'\nuntil = 2026-01-01T00:00:00": "a time needs its zone",
    "name = 'a'\nkind = 'exclude_own'\nslot = 1": "there is no field slot",
    "name = 'a'\nkind = 'share'\nwhen = 'true'\nminimum = 0.9\nmaximum = 0.1": "is above `maximum`",
    "name = ": "is not TOML",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_faulty_rule_is_refused_with_its_name_and_fault(text: str) -> None:
    with pytest.raises(RulesRefused, match=FAULTS[text].replace("`", ".")) as refused:
        read_rules_toml(f"[[rules]]\n{text}", SURFACES)
    assert len(refused.value.problems) == 1


# --- the draw -------------------------------------------------------------------------------------


def reader_of(items: list[CatalogueItem], *rules: dict[str, Any]) -> RuleReader:
    catalogue = Catalogue()
    for n, item in enumerate(items):
        catalogue.apply(ItemAdded(event_id=f"e{n}", event_time_ms=1_700_000_000_000, item=item))
    live, book = LiveCatalogue(catalogue), RuleBook()
    live.index()
    book.know_surfaces(SURFACES)
    book.replace({"rules": list(rules)})
    return RuleReader(book, ItemColumns(live.table), live)


def shop(brands: str, groups: str = "") -> list[CatalogueItem]:
    return [
        CatalogueItem(item_id=f"v{n}", title="t", brand=brand, group_id=(groups or brands)[n])
        for n, brand in enumerate(brands)
    ]


def pool_of(items: list[CatalogueItem], scores: list[float]) -> Pool:
    p = np.zeros((len(scores), 0), np.float32)
    candidates = [Candidate(item.item_id, "popular", item=item) for item in items]
    return Pool.of(candidates, scored=Scored(np.array(scores, np.float32), p))


def ask(seed: int, k: int) -> Query:
    return Query("r", "feed", "u", k, 1_790_000_000_000, seed)


DRAW = PlackettLuce(temperature=0.8, diversity=0.3, explore=0.0)
BOOST_A = {"name": "boost", "kind": "boost", "when": "item.brand == 'a'", "strength": 0.7}


def test_propensities_under_rules_are_the_frequencies_of_the_draw() -> None:
    items = shop("aabbc", "xxyzz")
    reader = reader_of(
        items,
        BOOST_A,
        {"name": "variants", "kind": "group", "at_most": 1},
        {"name": "some-b", "kind": "share", "when": "item.brand == 'b'", "minimum": 0.3},
        {"name": "pin", "kind": "pin", "slot": 1, "item": "v4"},
    )
    selector, shared = RuleSelector(DRAW, reader), pool_of(items, [1.0, 0.4, 0.2, -0.5, 0.1])
    drawn: Counter[tuple[str, ...]] = Counter()
    logged: dict[tuple[str, ...], float] = {}
    runs = 1_500
    for seed in range(runs):
        slate = selector.select(ask(seed, 3), shared)
        names = tuple(c.item_id for c in slate)
        drawn[names] += 1
        logged[names] = float(np.prod([c.propensity for c in slate]))
    assert sum(logged.values()) == pytest.approx(1.0, abs=1e-6)
    assert all(names[1] == "v4" and {"v2", "v3"} & set(names) for names in logged)
    assert all("v3" not in names for names in logged)  # its group is that of the pinned item
    for names, p in logged.items():
        error = 4 * (p * (1 - p) / runs) ** 0.5
        assert abs(drawn[names] / runs - p) < error, names


def test_a_slot_whose_choice_a_minimum_restricts_is_marked_as_placed() -> None:
    items = shop("aaaab")
    reader = reader_of(
        items, {"name": "b", "kind": "share", "when": "item.brand == 'b'", "minimum": 0.5}
    )
    slate = RuleSelector(replace(DRAW, temperature=0.01), reader).select(
        ask(1, 2), pool_of(items, [4.0, 3.0, 2.0, 1.0, -9.0])
    )
    assert [(c.item_id, c.placed, c.propensity) for c in slate][1] == ("v4", "b", 1.0)
    assert slate[0].placed is None
    assert slate[0].propensity < 1.0


def test_contradictory_shares_are_resolved_in_the_documented_order() -> None:
    """A maximum holds; a minimum yields to it and is reported."""
    items = shop("aaaabb")
    reader = reader_of(
        items,
        {"name": "most", "kind": "share", "when": "item.brand == 'a'", "minimum": 1.0},
        {"name": "few", "kind": "share", "when": "item.brand == 'a'", "maximum": 0.5},
    )
    query = ask(3, 4)
    slate = RuleSelector(DRAW, reader).select(query, pool_of(items, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert Counter(c.item.brand for c in slate if c.item) == {"a": 2, "b": 2}
    assert query.rule_notes.unmet == {"most": "2 of at least 4 slots"}


def test_two_minimums_that_fit_are_both_met() -> None:
    items = shop("aaabbbcccccc")
    rules = [
        {"name": b, "kind": "share", "when": f"item.brand == '{b}'", "minimum": 0.4} for b in "ab"
    ]
    reader = reader_of(items, *rules)
    scores = [-1.0] * 6 + [5.0 + n for n in range(6)]
    for seed in range(20):
        slate = RuleSelector(DRAW, reader).select(ask(seed, 5), pool_of(items, scores))
        brands = Counter(c.item.brand for c in slate if c.item)
        assert brands["a"] >= 2, seed
        assert brands["b"] >= 2, seed


def test_a_short_slate_moves_pins_up() -> None:
    items = shop("aaab")
    reader = reader_of(
        items,
        {"name": "one-a", "kind": "group", "by": "item.brand", "at_most": 1},
        {"name": "last", "kind": "pin", "slot": 3, "item": "v3"},
    )
    for inner in (DRAW, InOrder()):
        slate = RuleSelector(inner, reader).select(ask(1, 4), pool_of(items, [4.0, 3.0, 2.0, 1.0]))
        assert [c.placed for c in slate] == [None, "last"]


def test_what_a_group_keeps_out_is_reported_with_its_rule() -> None:
    items = shop("aab")
    reader = reader_of(items, {"name": "one", "kind": "group", "by": "item.brand"})
    selector, query = (
        RuleSelector(replace(DRAW, temperature=0.01, diversity=0.0), reader),
        ask(1, 2),
    )
    found = pool_of(items, [4.0, 3.0, 1.0])
    slate = selector.select(query, found)
    held = selector.held_back(query, found, slate)
    assert [(r.item_id, r.stage, r.reason) for r in held] == [
        ("v1", "rules", "rule one: its group already has 1")
    ]


def test_a_boost_moves_scores_by_their_standard_deviation() -> None:
    items = shop("ab")
    query, reader = ask(1, 2), reader_of(items, BOOST_A)
    slate = RuleSelector(DRAW, reader).select(query, pool_of(items, [1.0, 3.0]))
    assert {c.item_id: c.score for c in slate} == pytest.approx({"v0": 1.7, "v1": 3.0})
    assert [(b.item_id, b.rule) for b in query.rule_notes.boosted] == [("v0", "boost")]


def test_without_rules_a_request_runs_the_same_stages(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(streams=False)
    assert "rules" not in harness.feed()["stage_ms"]
    assert "rules" in harness.feed(filter="true")["stage_ms"]
