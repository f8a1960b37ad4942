"""The console page in a real Chromium, on the real folds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
from playwright.sync_api import Page, Response, TimeoutError, expect

from models.experiments.definition import Arm, Experiment, Guard, popularity_experiment
from models.experiments.results import results
from models.experiments.store import RESULTS, ExperimentStore
from models.release.json_files import write_json
from serving.surfaces.queries import QueriesRequest
from streams.contract.impression import POPULARITY_ARM, verify

KEY = bytes(range(32))
Serve = Callable[..., str]


def _open(page: Page, address: str, user: str = "user-0") -> None:
    page.goto(f"{address}?user={user}")
    page.wait_for_selector("#slate[data-state=ready] .card")
    page.wait_for_selector("body[data-live=yes]")


def _slate(page: Page) -> list[str]:
    cards = page.locator("#slate .card")
    return [cards.nth(n).get_attribute("data-item") or "" for n in range(cards.count())]


def _ask_again(page: Page) -> list[str]:
    before = page.locator("#slate").get_attribute("data-request")
    page.click("#again")
    page.wait_for_function(
        "id => document.querySelector('#slate').dataset.request !== id", arg=before
    )
    return _slate(page)


def _like_first(page: Page) -> str:
    first = page.locator("#slate .card").first
    item_id = first.get_attribute("data-item") or ""
    first.locator("button[data-act=like]").click()
    return item_id


def test_the_same_seed_shows_the_same_feed_until_a_click_changes_it(
    page: Page, serve: Serve
) -> None:
    _open(page, serve())
    before = _slate(page)
    assert _ask_again(page) == before
    liked = _like_first(page)
    expect(page.locator("#freshness")).to_contain_text("ms")
    page.wait_for_function("id => !document.querySelector(`#slate [data-item='${id}']`)", arg=liked)
    after = _slate(page)
    assert after != before
    changed = page.locator("tr.changed[data-feature=like_count_all]")
    old, new = changed.locator("td").nth(1), changed.locator("td").nth(2)
    assert int(new.inner_text()) == int(old.inner_text()) + 1


def test_without_writes_to_the_store_a_click_changes_nothing(page: Page, serve: Serve) -> None:
    _open(page, serve(fold=False))
    before = _slate(page)
    _like_first(page)
    with pytest.raises(TimeoutError):
        page.wait_for_selector("tr.changed", timeout=1_500)
    assert _ask_again(page) == before


def test_every_item_shows_its_score_and_queries(page: Page, serve: Serve) -> None:
    _open(page, serve())
    card = page.locator("#slate .card").first
    expect(card.locator(".bars .bar")).to_have_count(5)
    expect(card.locator(".queries button").first).to_be_visible()
    expect(page.locator("#weights")).to_contain_text("long view")
    expect(page.locator("#release")).to_have_text("r0002")
    expect(page.locator("#updates")).to_contain_text("promoted true")


def test_a_late_event_is_admitted_as_late_and_a_broken_one_becomes_a_dead_letter(
    page: Page, serve: Serve
) -> None:
    _open(page, serve())
    page.click("#send-late")
    expect(page.locator("#admission .badge.late")).to_have_text("late")
    page.click("#send-broken")
    expect(page.locator("#admission .badge.dead").first).to_have_text("dead letter")
    expect(page.locator("#admission")).to_contain_text("behaviour")


def test_a_dormant_users_trajectory_shows_roles(page: Page, serve: Serve) -> None:
    _open(page, serve())
    page.wait_for_selector("#dormant option", state="attached")
    assert page.locator("#dormant").input_value() == "user-5"
    expect(page.locator("#dormant option").first).to_contain_text("replayed")
    page.click("#show-trajectory")
    expect(page.locator("#trajectory .badge").first).to_have_text("trigger")
    expect(page.locator("#trajectory .goal")).to_contain_text("toward:")


def test_the_arms_are_shown_with_intervals_below_the_ceiling(
    page: Page, serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "experiment.json"
    _open(page, serve(experiment_file=file))
    expect(page.locator("#arms-panel")).to_be_hidden()
    arms = [
        {"arm": "popularity", "clicks": 0.299, "low": 0.28, "high": 0.32, "shown": 1_000},
        {"arm": "ranker", "clicks": 0.399, "low": 0.37, "high": 0.43, "shown": 1_000},
    ]
    difference = {"clicks": 0.1, "low": 0.07, "high": 0.13, "shown": 2_000}
    file.write_text(json.dumps({"arms": arms, "difference": difference, "ceiling": 0.55}))
    expect(page.locator("#arms li[data-arm=ranker] b")).to_have_text("39.9 %")
    expect(page.locator("#arms-about")).to_contain_text("+10.0 points [+7.0, +13.0]")
    expect(page.locator("#arms-about")).to_contain_text("ceiling on the same visits, 55.0 %")
    places = ["li[data-arm=popularity] .dot", "li[data-arm=ranker] .dot", "li .ceiling >> nth=1"]
    boxes = [page.locator(f"#arms {place}").bounding_box() for place in places]
    left = [box["x"] for box in boxes if box is not None]
    assert len(left) == 3
    assert left == sorted(left)


def test_experiments_are_shown_with_their_results(page: Page, serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "experiments.json"
    arms = (Arm("ranker", 0.5), Arm("popularity", 0.5, "popularity"))
    store = ExperimentStore(file)
    store.start(Experiment("taste", arms, guard=Guard()))
    slates = pl.DataFrame(
        {
            "arm": ["ranker", "popularity"] * 200,
            "user_id": [f"u{n}" for n in range(400)],
            "reward": [int(n % 2 == 0 or n % 8 == 1) for n in range(400)],
        }
    ).with_columns(guarded="reward", won=0)
    found = results(store.running()[0], slates)
    write_json(tmp_path / RESULTS, {"taste": found.to_json()})
    _open(page, serve(experiments=file))
    block = page.locator("#experiments [data-experiment=taste]")
    expect(block.locator("li[data-arm=popularity]")).to_contain_text("worse · 200 users")
    expect(block.locator("li[data-arm=ranker] b")).to_have_text("1.000")
    store.stop("taste", at_ms=1, reason="guard: play fell")
    expect(block.locator(".badge")).to_have_text("stopped")
    expect(block).to_contain_text("guard: play fell")


def test_the_page_opens_on_a_ranked_user_and_names_the_arm_of_another(
    page: Page, serve: Serve
) -> None:
    experiment = popularity_experiment(0.5)
    assert experiment is not None
    users = [f"user-{number}" for number in range(6)]
    popular = next(user for user in users if experiment.arm_of(user).name == POPULARITY_ARM)
    page.goto(serve(experiment=experiment))
    page.wait_for_selector("#slate[data-state=ready] .card")
    expect(page.locator("#feed-about")).to_contain_text("arm ranker")
    expect(page.locator("#weights")).to_contain_text("long view")
    page.fill("#user", popular)
    page.press("#user", "Enter")
    expect(page.locator("#feed-about")).to_contain_text("arm popularity")
    expect(page.locator("#weights")).to_contain_text("without a ranker")


def test_a_surface_that_names_a_panel_gets_one_with_its_own_fields(
    page: Page, serve: Serve
) -> None:
    surface = {"surface": "queries", "panel": "Ask for queries", "about": "Under an item."}
    listed = {"surfaces": [surface | {"request": QueriesRequest.model_json_schema()}]}
    page.route("**/v1/surfaces", lambda route: route.fulfill(json=listed))
    _open(page, serve())
    panel = page.locator('[data-surface="queries"]')
    assert panel.locator("input").count() == 1, "only the field that other requests lack"
    panel.locator("input").fill("v3")
    panel.locator("button").click()
    expect(panel.locator("li")).to_have_count(3)


@pytest.fixture
def sent(page: Page) -> list[dict[str, Any]]:
    """The events that the gateway accepted from the page; none may be refused."""
    events: list[dict[str, Any]] = []

    def collect(response: Response) -> None:
        if response.request.method == "POST" and response.url.endswith("/v1/events"):
            assert response.status == 202
            events.extend(json.loads(response.request.post_data or "[]"))

    page.on("response", collect)
    return events


def _await_kind(page: Page, sent: list[dict[str, Any]], kind: str) -> None:
    for _ in range(100):
        if any(event["kind"] == kind for event in sent):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"no {kind!r} was sent within 10 s")


def test_shown_queries_and_a_click_become_feedback(
    page: Page, serve: Serve, sent: list[dict[str, Any]]
) -> None:
    _open(page, serve())
    card = page.locator("#slate .card").first
    button = card.locator(".queries button").first
    expect(button).to_be_visible()
    clicked = button.inner_text()
    button.click()
    _await_kind(page, sent, "query_click")
    queries = [event for event in sent if event["kind"] == "query_shown"]
    tokens = {event["query"]: verify(event["impression"], KEY) for event in queries}
    item = card.get_attribute("data-item")
    assert clicked in {e["query"] for e in queries if e["item_id"] == item}
    assert all(token.query == query for query, token in tokens.items())
    assert {(t.surface, t.user_id) for t in tokens.values()} == {("queries", "user-0")}
    click = next(event for event in sent if event["kind"] == "query_click")
    shown = next(e for e in queries if (e["item_id"], e["query"]) == (item, clicked))
    assert click["impression"] == shown["impression"]
    assert sum(event["kind"] == "shown" for event in sent) == len(_slate(page))


def test_a_trajectory_and_an_action_on_it_become_feedback(
    page: Page, serve: Serve, sent: list[dict[str, Any]]
) -> None:
    _open(page, serve())
    page.wait_for_selector("#dormant option", state="attached")
    page.click("#show-trajectory")
    step = page.locator("#trajectory li[data-item]").last
    item = step.get_attribute("data-item")
    step.locator("button[data-act=like]").click()
    _await_kind(page, sent, "like")
    own = [event for event in sent if event["user_id"] == "user-5"]
    tokens = [verify(event["impression"], KEY) for event in own]
    assert {token.surface for token in tokens} == {"reactivation"}
    assert {event["surface"] for event in own} == {"reactivation"}
    assert [t.video_id for t in tokens] == [event["item_id"] for event in own]
    shown = [event["item_id"] for event in own if event["kind"] == "shown"]
    steps = page.locator("#trajectory li[data-item]")
    assert shown == [steps.nth(n).get_attribute("data-item") for n in range(steps.count())]
    like = next(event for event in own if event["kind"] == "like")
    assert like["item_id"] == item


@pytest.mark.parametrize("user", ["10.5281/zenodo.408", "a/b", "%2F", "..", "ü & ?#"])
def test_the_page_works_for_any_user_id(
    page: Page, serve: Serve, sent: list[dict[str, Any]], user: str
) -> None:
    _open(page, serve(), quote(user, safe=""))
    _like_first(page)
    expect(page.locator("#freshness")).to_contain_text("ms")
    expect(page.locator("tr.changed[data-feature=like_count_all]")).to_be_visible()
    expect(page.locator("#notice")).to_be_hidden()
    assert {event["user_id"] for event in sent} == {user}


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_fits_the_screen(page: Page, serve: Serve, width: int, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    _open(page, serve())
    _like_first(page)
    expect(page.locator("#freshness")).to_contain_text("ms")
    page.click("#show-trajectory")
    page.click("#send-broken")
    page.wait_for_selector("#admission .badge.dead")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    folder = Path(os.environ.get("TIDEMILL_SCREENSHOTS", tmp_path))
    page.wait_for_timeout(300)
    page.screenshot(path=folder / f"page-{width}.png", full_page=True)
    assert (folder / f"page-{width}.png").stat().st_size > 20_000
