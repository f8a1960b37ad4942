"""The console page on the loop: updates, rules, themes, and what axe-core finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
Serve = Callable[..., str]


def _open(page: Page, address: str) -> None:
    page.goto(f"{address}?user=user-0")
    page.wait_for_selector("#slate[data-state=ready] .card")
    page.wait_for_selector("body[data-live=yes]")
    page.wait_for_selector("#timeline li")


def _serious(page: Page) -> list[str]:
    """axe's findings of impact serious or critical, with the elements they are about.

    axe is evaluated from outside, as the page's policy loads no foreign script.
    """
    page.evaluate(AXE)
    found: list[dict[str, Any]] = page.evaluate("axe.run().then((r) => r.violations)")
    return [
        f"{each['id']}: {[node['target'] for node in each['nodes']][:5]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_the_page_says_what_the_last_update_did_and_why(page: Page, serve: Serve) -> None:
    _open(page, serve())
    said = page.locator("#update-now li[data-model=ranker]")
    expect(said).to_contain_text("the last update went live as version 1: GAUC 0.6200 against")
    expect(said).to_contain_text("Now: waiting (no feedback has matured")
    expect(page.locator("#update-now li[data-model=queries]")).to_contain_text("9 clicks")
    live = page.locator("#timeline li[data-ending=promoted]")
    expect(live).to_contain_text("release r0002 is live")
    expect(live).to_contain_text("4,321 impressions")
    expect(live.locator(".intervals li")).to_have_count(3)
    expect(live).to_contain_text("95 % interval [+0.0040, +0.0200]")
    expect(page.locator("#timeline > li[data-ending=waiting]")).to_contain_text("too little")


def test_rules_are_shown_in_one_line_each(page: Page, serve: Serve) -> None:
    address = serve()
    rules = [
        {"name": "no-drama", "kind": "filter", "exclude": "'Drama' in item.categories"},
        {"name": "old", "kind": "exclude_own", "until": "2020-01-01T00:00:00Z"},
    ]
    assert httpx.put(f"{address}v1/rules", json={"rules": rules}).status_code == 200
    _open(page, address)
    lines = page.locator("#rules li")
    expect(lines).to_have_count(2)
    expect(lines.nth(0)).to_contain_text("acts no-drama removes 'Drama' in item.categories")
    expect(lines.nth(1).locator(".badge")).to_have_text("over")


def test_the_theme_is_the_systems_until_it_is_chosen_and_stays_chosen(
    page: Page, serve: Serve
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    address = serve()
    _open(page, address)
    dark = page.evaluate(ground)
    page.focus("#theme")
    page.keyboard.press("Enter")
    expect(page.locator("#theme")).to_have_text("Theme: light")
    assert page.evaluate(ground) != dark
    _open(page, address)
    expect(page.locator("#theme")).to_have_text("Theme: light")
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, serve: Serve, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    _open(page, serve())
    page.click("#show-trajectory")
    page.click("#send-broken")
    page.wait_for_selector("#admission .badge.dead")
    assert _serious(page) == []
