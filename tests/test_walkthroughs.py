"""The pages of docs/extending work as they stand: each is applied to a copy of the checkout.

A fenced block with a title is a step: a `diff` changes an existing file, any other block is a new
one. The shell blocks are not run: they need a stack.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "extending"
COPIED = ("models", "serving", "tests")  # what the pages change; all else is linked
# Page -> the most existing files that it may change, and the suite that it must pass beside its own
# test; `-k` selects both by the new name.
LAWS = {
    "new-surface": (3, ["tests/serving/test_surfaces.py", "-k", "similar"]),
    "new-model": (2, ["tests/models/test_contract_suite.py", "-k", "recent_popularity"]),
}
_BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One block of a page."""

    language: str
    path: str
    text: str

    @property
    def changes_a_file(self) -> bool:
        return self.language == "diff"

    def apply(self, checkout: Path) -> None:
        target = checkout / self.path
        if not self.changes_a_file:
            assert not target.exists(), f"{self.path} exists already"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.text)
            return
        lines = self.text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in "- ")
        after = "".join(line[1:] for line in lines if line[0] in "+ ")
        source = target.read_text()
        assert source.count(before) == 1, f"{self.path} does not hold {before!r} once"
        target.write_text(source.replace(before, after))


def steps_of(page: str) -> list[Step]:
    return [Step(*found) for found in _BLOCK.findall((PAGES / f"{page}.md").read_text())]


def copy_of_the_checkout(folder: Path) -> Path:
    """The packages that pages change are copied, the others linked: their caches stay in use."""
    folder.mkdir()
    for each in ROOT.iterdir():
        if each.name in COPIED:
            shutil.copytree(each, folder / each.name)
        elif not each.name.startswith(".") or each.name == ".cache":
            (folder / each.name).symlink_to(each)
    return folder


@pytest.mark.parametrize("page", LAWS)
def test_a_page_works_as_it_stands_and_changes_few_files(page: str, tmp_path: Path) -> None:
    most, laws = LAWS[page]
    steps = steps_of(page)
    changed = {step.path for step in steps if step.changes_a_file}
    assert 1 <= len(changed) <= most
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    for step in steps:
        step.apply(checkout)
    own = [step.path for step in steps if Path(step.path).name.startswith("test_")]
    assert own, "the page has no test of its own"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *own, *laws, "-q", "-n", "0", "-p", "no:cacheprovider"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert "passed" in done.stdout


def test_every_page_with_steps_is_tested() -> None:
    assert {path.stem for path in PAGES.glob("*.md") if steps_of(path.stem)} == set(LAWS)
