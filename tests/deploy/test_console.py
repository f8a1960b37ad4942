"""Output in a pipe: whole tables, progress as lines, and no control characters."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from deploy.console import ProgressDisplay, TextConsole, printable, styled, track

ROOT = Path(__file__).resolve().parents[2]
LONG = "a cell that is much wider than any terminal " * 5
REPORT = f"""
from benchmarks.report import Report
report = Report("example", {{}})
report.add(method="ours", note={LONG!r}, value=1.5)
report.check("ratio", 2.0, ">= 1", True)
report.notes.append("[brackets] are printed as they are")
report.show()
"""
COMMANDS = (
    ["-m", "deploy.cli.main", "log", "show"],
    ["-m", "deploy.cli.main", "doctor"],
    ["-m", "deploy.cli.main", "models", "status"],
    ["-m", "deploy.cli.main", "replay", "--help"],
    ["-c", REPORT],
)


def _piped(arguments: list[str], home: Path) -> str:
    environment = os.environ | {
        "TIDEMILL_HOME": str(home),
        "TIDEMILL_CACHE": str(home / ("a folder with a long name" * 3)),
        "COLUMNS": "40",
        "PYTHONIOENCODING": "utf-8",
    }
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: " ".join(a[1:])[:20].strip())
def test_piped_output_has_no_cut_cell_and_no_control_character(
    arguments: list[str], tmp_path: Path
) -> None:
    text = _piped(arguments, tmp_path)
    assert text.strip()
    assert "…" not in text
    assert [c for c in text if ord(c) < 32 and c != "\n"] == []


def test_a_long_cell_stays_on_one_line_of_a_pipe(tmp_path: Path) -> None:
    text = _piped(["-c", REPORT], tmp_path)
    assert sum(LONG.strip() in line for line in text.splitlines()) == 1
    assert "[brackets]" in text


@pytest.fixture
def pipe() -> Console:
    return Console(file=io.StringIO(), width=200)


def _lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_progress_in_a_pipe_is_a_line_with_count_share_and_rate(pipe: Console) -> None:
    with ProgressDisplay(pipe, every_s=0.0) as display:
        task = display.add("replaying", 2_000)
        task.update(500)
        task.update(2_000)
    first, last = _lines(pipe)
    assert first.startswith("replaying: 500 of 2,000 (25%), ")
    assert first.endswith("/s")
    assert last.startswith("replaying: 2,000 of 2,000 (100%), ")


def test_a_count_without_a_known_total_claims_no_share(pipe: Console) -> None:
    with ProgressDisplay(pipe, every_s=60.0) as display:
        task = display.add("checking rows", 0)
        for rows in (10, 20):
            task.update(rows)
    (line,) = _lines(pipe)
    assert line.startswith("checking rows: 20, ")


def test_progress_by_share_names_its_step(pipe: Console) -> None:
    with ProgressDisplay(pipe, every_s=0.0) as display:
        display.add("backfill").update(0.4, "folding users")
    assert _lines(pipe) == ["backfill: 40%, folding users"]


def test_lines_come_now_and_then_and_at_the_end(pipe: Console) -> None:
    with ProgressDisplay(pipe, every_s=60.0) as display:
        task = display.add("train ranker")
        for step in range(100):
            task.update(step / 100, f"step {step}")
    assert _lines(pipe) == ["train ranker: 99%, step 99"]


def test_a_failure_prints_no_last_line(pipe: Console) -> None:
    def fail() -> None:
        with ProgressDisplay(pipe, every_s=60.0) as display:
            display.add("train ranker").update(0.5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _lines(pipe) == []


def test_a_terminal_gets_a_bar() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressDisplay(terminal) as display:
        display.add("replaying", 10).update(10)
    assert "━" in terminal.file.getvalue()  # type: ignore[attr-defined]


def test_tracked_items_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "characters", 3)) == ["a", "b", "c"]
    assert "3 of 3 (100%)" in capsys.readouterr().out


# Not the characters that change the one before them: how wide they are is up to the terminal.
CHARACTERS = st.characters(exclude_categories=("Mn", "Me", "Mc", "Cf", "Sk", "Cn"))
MARKUP = ("[/INST] live", "[bold]x", ":smile:", "\x1b[2J", "\r over", "\ud800", "[link=a]b[/link]")


def _printed(show: Callable[[Console], None]) -> str:
    console = TextConsole(file=io.StringIO(), width=100_000)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@example("0\u20280\u2029")
@given(st.one_of(st.sampled_from(MARKUP), st.text(CHARACTERS, min_size=1)))
@settings(max_examples=300, deadline=None)
def test_any_text_is_printed_as_text(text: str) -> None:
    """In cells, headings, titles, messages and styled messages; white space is not compared."""

    def in_table(console: Console) -> None:
        table = Table("column", text, title=text)
        table.add_row(text, styled((text, "bold")))
        console.print(table)

    wanted = ["".join(line.split()) for line in printable(text).split("\n")]
    table_text = "".join(_printed(in_table).split())
    assert all(table_text.count(line) >= 4 for line in wanted if line)
    for message in (text, styled("it is ", (text, "red"))):
        printed = _printed(lambda console, each=message: console.print(each, style="yellow"))
        assert all(line in "".join(printed.split()) for line in wanted)
        assert not {c for c in printed if ord(c) < 32} - {"\n", "\t"}


@pytest.mark.parametrize("text", MARKUP)
def test_progress_shows_any_text_as_text(text: str) -> None:
    for terminal in (False, True):
        console = TextConsole(file=io.StringIO(), force_terminal=terminal, width=300)
        with ProgressDisplay(console, every_s=0.0) as display:
            display.add("train").update(1.0, text)
        if "[" in text and "\x1b" not in text:
            assert text in console.file.getvalue()  # type: ignore[attr-defined]


def test_only_the_console_module_makes_consoles() -> None:
    """So that no table or message can print data as markup."""
    found = [
        str(path.relative_to(ROOT))
        for folder in ("streams", "features", "models", "serving", "deploy", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bConsole\(|from_markup\(|rich\.print", path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_locale_without_utf_8_is_no_traceback(tmp_path: Path) -> None:
    environment = os.environ | {"TIDEMILL_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", "doctor"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"\\u2713" in done.stdout or b"Python" in done.stdout
