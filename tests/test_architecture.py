"""Laws of the whole tree: the arrows between packages, its names and its sizes."""

from __future__ import annotations

import ast
import re
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
MOST_PARAMETERS = 8
MOST_FILES = 12
NOT_NAMES = {"manager", "helper", "helpers", "utils", "processor", "handler", "engine", "common"}
SHADOWING = {"types", "logging", "queue"}  # names of the standard library's own modules
# The rooms of each package, lowest first: a room imports from itself and from those before it.
ROOMS = {
    "streams": "progress contract metrics json_logs telemetry kernels bus codec storage event_log erasure"
    " catalogue feedback ingest imports workers",
    "features": "store declarations own_features definitions stored_declaration kernels rows"
    " memory_store online offline feast live",
    "models": "ids signature batch recipe layers updates client echo registry release training retrieval"
    " ranking generation reasoning monitoring alignment experiments",
    "serving": "registry clients pipeline rules state stages monitoring surfaces fakes console gateway http"
    " kafka_requests",
    "deploy": "install renamed settings state services wiring logins processes doctor simulation supervisor stack"
    " console demo cli process compile export_schemas",
}
# Private words of an earlier time; docs/glossary.md has the terms that replaced them.
NOT_WORDS = {
    "door", "doors", "lane", "lanes", "mend", "mended", "mending", "mends", "mill", "trail",
    "trails", "poke", "vouched", "awaken", "misfit", "nudge", "deaf", "whoever", "nobody",
    "somebody", "uncollected", "storm", "victim", "patience", "upkeep", "rivals",
}  # fmt: skip
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


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = node.args
    return len(
        [p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in {"self", "cls"}]
    )


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_functions_take_few_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _parameters(node) <= MOST_PARAMETERS, node.name


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_hold_few_files(package: str) -> None:
    for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
        files = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(files) <= MOST_FILES, folder


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_compiled_code_lives_in_kernels(path: Path) -> None:
    if "kernels" in path.parts:
        return
    source = path.read_text()
    assert "numba" not in set(imported(ast.parse(source)))
    assert "fmt: skip" not in source
    assert "fmt: off" not in source


def _modules_imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_below_it(package: str) -> None:
    order = {room: n for n, room in enumerate(ROOMS[package].split())}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in _modules_imported(ast.parse(path.read_text())):
            parts = module.split(".")
            if parts[0] == package and order.get(parts[1], -1) > order[room]:
                wrong.append(f"{_name(path)} imports {module}")
    assert wrong == []


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
        assert not _words(name) & (NOT_NAMES | NOT_WORDS), name
    assert path.stem not in SHADOWING


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_nothing_is_left_for_later(path: Path) -> None:
    source = path.read_text()
    assert [word for word in UNFINISHED if word in source] == []


def _prose() -> list[Path]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    tests = [p for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__)]
    return [*pages, *modules(), *(ROOT / "benchmarks").rglob("*.py"), *tests]


def test_prose_uses_the_fields_words() -> None:
    """In pages, comments, docstrings and messages alike; see docs/glossary.md."""
    found = []
    for path in _prose():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = set(re.findall(r"[a-z]+", line.lower())) & NOT_WORDS
            if words and "private-word" not in line:
                found.append(f"{_name(path)}:{number}: {' '.join(sorted(words))}")
    assert found == []


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
