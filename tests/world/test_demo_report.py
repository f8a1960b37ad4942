"""The demo's table: both arms with intervals below the ceiling, whole in a pipe."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy.console import PIPE_WIDTH, TextConsole
from deploy.demo.arms import compare, write_figures
from deploy.demo.report import Flow, Result, table
from deploy.simulation.tally import SlateGroup, Tally


@pytest.fixture
def tally() -> Tally:
    found = Tally()
    for user in range(50):
        found.watched(SlateGroup("p", "1", "popularity"), f"a{user}", [20, 5 + user % 3, 0, 11.0])
        found.watched(SlateGroup("p", "1", "ranker"), f"b{user}", [20, 7 + user % 3, 1, 11.0])
    return found


def _text(tally: Tally, **more: Any) -> str:
    result = Result(
        flow=Flow(1_000, 1_000, 2),
        latencies={},
        failures={},
        fallbacks={},
        returns=(0, 0),
        live_s={"queries": 9.2, "ranker": 31.4},
        verdict_s=74.6,
        models={"queries": 1, "ranker": 2},
        gate="the challenger was promoted",
        reasons=["GAUC higher"],
        arms=compare(tally),
        **more,
    )
    out = TextConsole(file=io.StringIO(), width=PIPE_WIDTH)
    out.print(table(result))
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_it_compares_the_arms_and_says_when_models_were_live(tally: Tally) -> None:
    lines = [" ".join(line.replace("│", " ").split()) for line in _text(tally).splitlines()]
    assert any(line.startswith("clicks, popularity 29.9") for line in lines)
    assert any(line.startswith("clicks, ranker 39.9") for line in lines)
    assert any(line.startswith("ranker - popularity +10.00 percentage points [") for line in lines)
    assert "clicks, oracle (ceiling) 55.00%, expected on the same visits" in lines
    assert "live, after the page queries 9 s, ranker 31 s" in lines
    assert "the update's gate the challenger was promoted, 75 s after the page" in lines
    assert "…" not in _text(tally)


def test_without_slates_it_says_so() -> None:
    text = _text(Tally())
    assert "not both arms were shown" in text
    assert "nan" not in text


def test_the_pages_figures_are_plain_numbers_or_null(tally: Tally, tmp_path: Path) -> None:
    path = tmp_path / "experiment.json"
    write_figures(compare(Tally()), path)
    empty = orjson.loads(path.read_bytes())
    assert [arm["clicks"] for arm in empty["arms"]] == [None, None]
    assert (empty["ceiling"], empty["difference"]["clicks"]) == (None, None)
    write_figures(compare(tally), path)
    found = orjson.loads(path.read_bytes())
    low, clicks, high = (found["arms"][1][name] for name in ("low", "clicks", "high"))
    assert low < clicks < high < found["ceiling"] == 0.55
    assert [p.name for p in tmp_path.iterdir()] == ["experiment.json"]
