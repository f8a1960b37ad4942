"""Laws of the whole tree: the arrows between packages, its names and its sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("streams", "features", "models", "serving", "deploy")
MAY_IMPORT = {package: set(PACKAGES[: n + 1]) for n, package in enumerate(PACKAGES)}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
NOT_NAMES = {"manager", "helper", "helpers", "utils", "processor", "handler", "engine", "common"}
SHADOWING = {"types", "logging", "queue"}  # names of the standard library's own modules
# Words for an unfinished thing; in parts, so that this file does not hold them.
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "Not" + "ImplementedError")


def modules() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level package of every import, wherever in the module it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _wrong_arrows(package: str, source: str) -> set[str]:
    return (set(imported(ast.parse(source))) & set(PACKAGES)) - MAY_IMPORT[package]


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_a_package_imports_only_to_its_left(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert _wrong_arrows(package, path.read_text()) == set()


def test_the_arrow_test_sees_imports_inside_functions() -> None:
    inside = "def f():\n    import serving.pipeline.query\n    from deploy import stack\n"
    assert _wrong_arrows("models", inside) == {"serving", "deploy"}
    assert _wrong_arrows("deploy", inside) == set()


def test_no_relative_import_can_hide_an_arrow() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path


def test_serving_imports_no_torch() -> None:
    """Not even through what it imports: asked of a fresh interpreter."""
    names = [
        _name(p).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for p in sorted((ROOT / "serving").rglob("*.py"))
    ]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'faust', 'deploy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_a_module_opens_with_what_it_knows_and_stays_short(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(source.splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name


def _defined_names(path: Path) -> Iterator[str]:
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def _words(name: str) -> set[str]:
    spaced = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return set(spaced.split("_"))


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_names_are_the_fields_own(path: Path) -> None:
    for name in _defined_names(path):
        assert not _words(name) & NOT_NAMES, name
    assert path.stem not in SHADOWING


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_nothing_is_left_for_later(path: Path) -> None:
    source = path.read_text()
    assert [word for word in UNFINISHED if word in source] == []


def test_tests_have_no_init_files_and_unique_names() -> None:
    """But for the folder whose tests share what is started once for all of them."""
    tests = ROOT / "tests"
    assert list(tests.rglob("__init__.py")) == [tests / "e2e" / "__init__.py"]
    names = [p.name for p in tests.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_tracked_files_hold_no_credentials_and_no_absolute_home() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    suspicious = ("BEGIN PRIVATE" + " KEY", "BEGIN RSA" + " PRIVATE", "AKI" + "A", "/home" + "/")
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".sh", ""}:
            if not path.is_file():
                continue
            text = path.read_text(errors="ignore")
            assert [s for s in suspicious if s in text] == [], name
