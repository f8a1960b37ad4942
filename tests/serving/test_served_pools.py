"""Laws of logged pools: what is written is what the slate was drawn from, and it goes with its user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.monitoring.served_log import SCHEMA, ServedLog, pool_cost
from serving.gateway import SERVED

Make = Callable[..., Any]
DEFAULTS = ("temperature", "diversity", "explore", "explore_temperature")


def rows_of(harness: Any) -> pl.DataFrame:
    harness.gateway.served.flush()
    return ServedLog(harness.deps.config.state_dir / SERVED).read()


def test_a_pool_holds_the_slate_and_the_scores_it_was_drawn_by(
    make_harness: Make, tmp_path: Path
) -> None:
    harness = make_harness(streams=False, state_dir=tmp_path, pools_share=1.0)
    reply = harness.feed()
    row = rows_of(harness).row(0, named=True)
    score = dict(zip(row["pool_id"], row["pool_score"], strict=True))
    assert len(score) > len(reply["items"])
    for item in reply["items"]:
        assert np.isclose(score[item["item_id"]], item["score"], atol=1e-3)
    assert len(row["pool_fresh"]) == len(score)
    draw = harness.gateway.surfaces._pipelines["feed", ""].selector
    assert row["pool_draw"] == [getattr(draw, name) for name in DEFAULTS]


def test_the_share_is_of_request_ids_and_repeatable(make_harness: Make, tmp_path: Path) -> None:
    found = []
    for run in ("a", "b"):
        harness = make_harness(streams=False, state_dir=tmp_path / run, pools_share=0.5)
        for n in range(40):
            harness.feed(f"u{n}", request_id=f"request-{n}")
        found.append(rows_of(harness).sort("user_id")["pool_id"].is_not_null().to_list())
    assert found[0] == found[1]
    assert 8 <= sum(found[0]) <= 32


def test_slates_that_the_feeds_draw_did_not_choose_have_no_pool(
    make_harness: Make, tmp_path: Path
) -> None:
    harness = make_harness(streams=False, state_dir=tmp_path / "on", pools_share=1.0)
    harness.feed("ruled", filter="'Comedy' in item.categories")
    harness.feed("given", candidates=["v1", "v2", "v3"])
    off = make_harness(streams=False, state_dir=tmp_path / "off")
    off.feed("off")
    rows = pl.concat([rows_of(harness), rows_of(off)])
    assert set(rows["user_id"]) == {"ruled", "given", "off"}
    assert rows["pool_id"].null_count() == rows.height


def test_a_pool_is_erased_with_its_user_whichever_process_wrote_it(
    make_harness: Make, tmp_path: Path
) -> None:
    one, other = (
        make_harness(streams=False, state_dir=tmp_path, pools_share=1.0) for _ in range(2)
    )
    for harness in (one, other):
        harness.feed("stays")
        harness.feed("goes")
    assert rows_of(other).height == 2
    assert rows_of(one).height == 4
    one.gateway.served.erase("goes")
    left = rows_of(other)
    assert left["user_id"].to_list() == ["stays", "stays"]
    assert left["pool_id"].null_count() == 0


def test_files_of_before_have_no_pools(make_harness: Make, tmp_path: Path) -> None:
    harness = make_harness(streams=False, state_dir=tmp_path, pools_share=1.0)
    harness.feed("new")
    rows = rows_of(harness)
    older = rows.drop([name for name in SCHEMA if name.startswith("pool_")])
    older.write_parquet(tmp_path / SERVED / "000000000000001-older.parquet")
    assert rows_of(harness)["pool_id"].is_not_null().to_list().count(True) == 1
    assert rows_of(harness).schema == SCHEMA


def test_the_cost_of_pools_is_told_by_the_slate(make_harness: Make, tmp_path: Path) -> None:
    harness = make_harness(streams=False, state_dir=tmp_path, pools_share=1.0)
    assert pool_cost(ServedLog(tmp_path / "none").read()) == (0, 0.0)
    harness.feed("u1")
    pools, size = pool_cost(rows_of(harness))
    assert pools == 1
    assert size > 0
