"""Pages name what exists: links, paths, functions, commands with their options, settings.

A new reader follows a page from a diagram's box to a file and a function; a name that no longer
exists ends that walk.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.__main__ import names
from deploy.cli.main import build
from deploy.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("streams", "features", "models", "serving", "deploy", "benchmarks", "tests", "docs")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(chain.from_iterable((ROOT / folder).rglob("*.md") for folder in FOLDERS)),
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]+")
CODE = re.compile(r"`([^`\n]+)`")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _code(page: Path) -> list[str]:
    """What a page sets in code: spans, and the lines of its shell blocks."""
    text = page.read_text()
    shell = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = CODE.findall(FENCE.sub("", text))
    return [*spans, *(line.partition("#")[0] for block in shell for line in block.splitlines())]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    if page.name == "CHANGELOG.md":  # its older entries name what there was
        return
    paths = [path.rstrip("/.") for code in _code(page) for path in PATH.findall(code)]
    assert [path for path in paths if not list(ROOT.glob(path))] == []


def _defined(path: Path) -> set[str]:
    """Functions, classes and constants of a module, and `Class.method` for its methods."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [
                n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            own = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            found |= {node.name, *(f"{own}{each.name}" for each in inner)}
    return found


def _rows_with_functions() -> Iterator[tuple[str, set[str], list[str]]]:
    """(row, names defined in the files that it links, names in its last cell)."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            files = [page.parent / name for name in LINK.findall(line) if name.endswith(".py")]
            cells = line.strip("| ").split("|")
            stated = re.findall(r"`([A-Za-z_][\w.]*)`", cells[-1])
            if line.startswith("|") and files and stated:
                yield line, set().union(*map(_defined, files)), stated


def test_functions_stand_in_the_files_beside_them() -> None:
    rows = list(_rows_with_functions())
    assert len(rows) > 50
    assert [(line, f) for line, defined, stated in rows for f in stated if f not in defined] == []


def _options(command: Any) -> set[str]:
    own = chain.from_iterable((*p.opts, *p.secondary_opts) for p in command.params)
    return {"--help", *own}


def _unknown_words(words: list[str]) -> list[str]:
    """Of the words after `tidemill`: those that name no command, else no option of it."""
    command: Any = typer.main.get_command(build())
    while words and hasattr(command, "commands"):
        alternatives = words[0].split("|")  # a page may write `log show|compact`
        if unknown := [word for word in alternatives if word not in command.commands]:
            return unknown
        command, words = command.commands[alternatives[0]], words[1:]
    options = _options(command)
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [word for word in given if word not in options]


def test_commands_exist_with_their_options() -> None:
    unknown, seen = [], 0
    for page in PAGES:
        for code in _code(page):
            if command := re.search(r"(?:^|[\s/])tidemill ([a-z][^{}…`]*)$", code.strip()):
                seen += 1
                unknown += [(_name(page), code, w) for w in _unknown_words(command[1].split())]
    assert seen > 20
    assert unknown == []


def test_modules_benchmarks_and_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for code in _code(page):
            for module in re.findall(r"python -m ([\w.]+)", code):
                file = ROOT / module.replace(".", "/")
                assert file.is_dir() or file.with_suffix(".py").exists(), (_name(page), code)
            for name in re.findall(r"\bbenchmarks ([a-z_]+)", code):
                assert name in names(), (_name(page), code)
            for target in re.findall(r"^make ([a-z]+)", code):
                assert target in targets, (_name(page), code)


def test_settings_in_the_environment_exist() -> None:
    """Those with a section; the others are read by the code that names them."""
    for page in PAGES:
        for section, key in re.findall(r"TIDEMILL_([A-Z]+)__([A-Z_]+)", page.read_text()):
            model: Any = Settings.model_fields[section.lower()].annotation
            for part in key.lower().split("__"):  # a section may have sections
                assert part in model.model_fields, (_name(page), section, key)
                model = model.model_fields[part].annotation


def test_each_box_of_the_readme_has_its_row() -> None:
    """A reader goes from the diagram to the page and the file through this table."""
    text = (ROOT / "README.md").read_text()
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    boxes = {box.strip("()") for box in re.findall(r"\w\[([^\]]+)\]", diagram)}
    rows = re.findall(r"^\| ([^|]+?) \|.*architecture/", text, re.MULTILINE)
    assert len(boxes) > 5
    assert [box for box in boxes if not any(row.startswith(box) for row in rows)] == []
