"""No feature, no training log and no package but deploy can read the planted truth."""

from __future__ import annotations

import ast
from pathlib import Path

import polars as pl
import pytest

from deploy.simulation.config import WorldConfig
from deploy.simulation.history import FRAME_SCHEMA, History
from deploy.simulation.movielens import MovieLens
from deploy.simulation.truth import plant
from streams.contract.schema import EVENT_SCHEMA

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for package in ("streams", "features", "models", "serving")
    for path in (ROOT / package).rglob("*.py")
]


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    return names | {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_package_reads_the_world(path: Path) -> None:
    assert not [name for name in _imports(path) if name.startswith("deploy.simulation")]
    assert "truth_" not in path.read_text()


def test_truth_has_a_folder_and_column_names_of_its_own(
    data: MovieLens, world: WorldConfig, past: History, tmp_path: Path
) -> None:
    folder = plant(data, world, 0).write(tmp_path)
    assert folder == tmp_path / "truth"
    public = {*EVENT_SCHEMA.names, *FRAME_SCHEMA, *past.items_frame.columns}
    for path in folder.iterdir():
        columns = pl.read_parquet_schema(path)
        assert columns
        assert all(name.startswith("truth_") for name in columns)
        assert public.isdisjoint(columns)


def test_no_feature_is_named_after_the_truth() -> None:
    from features import definitions

    assert "truth" not in Path(definitions.__file__).read_text()
