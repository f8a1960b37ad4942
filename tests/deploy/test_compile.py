"""Compiling: what takes anything from a changed kernel is compiled again, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy import compile as deploy_compile
from deploy.compile import is_current, kernels, remove_cache, sources, stamp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three kernels, each with a cache: `b` takes from `a`, `c` from `b`; `d` from none."""
    folder = tmp_path / "streams" / "kernels"
    (folder / "__pycache__").mkdir(parents=True)
    (tmp_path / "features" / "kernels").mkdir(parents=True)
    for name, taken in (("a", None), ("b", "a"), ("c", "b"), ("d", None)):
        line = f"from streams.kernels.{taken} import x\n" if taken else ""
        (folder / f"{name}.py").write_text(f"import math\n{line}")
        for suffix in ("nbi", "1.nbc"):
            (folder / "__pycache__" / f"{name}.f-3.py311.{suffix}").touch()
        stamp(folder / f"{name}.py", tmp_path)
    return tmp_path


def test_a_kernel_comes_behind_those_that_it_imports(root: Path) -> None:
    names = [path.stem for path in kernels(root)]
    assert sorted(names) == ["a", "b", "c", "d"]
    assert names.index("a") < names.index("b") < names.index("c")


@pytest.mark.parametrize(("changed", "stale"), [("a", "abc"), ("b", "bc"), ("c", "c"), ("d", "d")])
def test_what_takes_from_a_changed_kernel_is_stale(root: Path, changed: str, stale: str) -> None:
    assert all(is_current(path, root) for path in kernels(root))
    (root / "streams" / "kernels" / f"{changed}.py").open("a").write("# other code\n")
    found = [path.stem for path in kernels(root) if not is_current(path, root)]
    assert sorted(found) == list(stale)


def test_a_kernels_cache_is_removed_alone(root: Path) -> None:
    folder = root / "streams" / "kernels"
    remove_cache(folder / "b.py")
    left = {path.name.split(".")[0] for path in folder.glob("__pycache__/*.nb?")}
    assert left == {"a", "c", "d"}


def test_the_progress_names_each_compiled_module(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(deploy_compile, "ROOT", root)
    monkeypatch.setattr(deploy_compile, "import_module", imported.append)
    (root / "streams" / "kernels" / "b.py").open("a").write("# other code\n")
    deploy_compile.main()
    assert imported == ["streams.kernels.b", "streams.kernels.c"]
    assert re.fullmatch(
        r"compiling 1/2 streams\.kernels\.b \d+\.\d s\ncompiling 2/2 streams\.kernels\.c \d+\.\d s\n",
        capsys.readouterr().err,
    )
    imported.clear()
    deploy_compile.main()
    assert imported == []


def test_the_sources_of_the_fold_are_found() -> None:
    names = {path.stem for path in sources(ROOT / "features" / "kernels" / "fold.py", ROOT)}
    assert names >= {"fold", "merge", "packing", "layout", "tile_keys", "raw", "compile", "arrays"}
