"""The page on rules works as it is written, and `tidemill rules` checks what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.cli.main import build
from serving.pipeline.items import ItemTable
from serving.rules.columns import ItemColumns
from serving.rules.definitions import read_rules_toml
from serving.rules.names import known_names
from serving.rules.predicate import compile_predicate
from serving.rules.syntax import RuleError
from serving.surfaces import load_surfaces, rule_kinds
from serving.surfaces.feed import FeedRequest
from streams.contract.events import CatalogueItem

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()


def _block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_pages_request_is_accepted() -> None:
    request = FeedRequest.model_validate(json.loads(_block("json")))
    assert request.filter is not None
    assert len(request.boosts) == 1


def test_the_pages_rules_are_accepted_and_are_of_every_kind() -> None:
    kinds = rule_kinds(load_surfaces())
    rules = read_rules_toml(_block("toml"), kinds)
    assert {each.rule.kind for each in rules.rules} == set(kinds["feed"])


def test_the_pages_refusal_is_what_is_said() -> None:
    text, said = _block("text").strip().splitlines()
    with pytest.raises(RuleError, match=re.escape(said)):
        compile_predicate(text)


def test_the_page_names_every_name() -> None:
    missing = [name for name in known_names() if f"`{name}`" not in PAGE]
    assert missing == []


def test_the_pages_table_of_missing_values_is_what_happens() -> None:
    item = CatalogueItem(item_id="v1", title="t")
    table = ItemTable({"v1": item}.get)
    frame = ItemColumns(table).frame(table.numbers.add(["v1"]), None)
    rows = re.findall(
        r"^\| `([^`]*brand[^`]*)` \| (removed|stays) \| (removed|stays) \|$", PAGE, re.M
    )
    assert len(rows) == 3
    for text, keep, exclude in rows:
        holds = bool(np.all(compile_predicate(text.replace(r"\|", "|")).holds(frame)))
        assert (keep, exclude) == (("stays", "removed") if holds else ("removed", "stays")), text


def test_a_file_is_checked_without_a_stack(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(_block("toml"))
    good = CliRunner().invoke(build(), ["rules", "check", str(file)])
    assert good.exit_code == 0, good.output
    file.write_text(_block("toml").replace("item.brand", "item.brnad"))
    bad = CliRunner().invoke(build(), ["rules", "check", str(file)])
    assert bad.exit_code == 1
    assert "own-brand: there is no item.brnad: the nearest is item.brand" in " ".join(
        bad.output.split()
    )
