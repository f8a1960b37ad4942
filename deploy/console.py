"""Output of commands: messages, tables and progress, on a terminal and in a pipe.

Knows rich, and whether the output is a terminal. Elsewhere (a pipe, a log file, CI) tables
are as wide as their content and progress is a line now and then. Does not know what is shown:
every string is printed as it is, without rich's markup and emoji codes. Style is given by
`style=` or `styled`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

PIPE_WIDTH = 100_000  # wider than any table
LINE_EVERY_S = 5.0
_T = TypeVar("_T")


# Control characters and separators but newline and tab, by their escapes: data must not drive the terminal.
_VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
} | {0x2028: "\\u2028", 0x2029: "\\u2029"}  # separators of lines and paragraphs


def printable(text: str) -> str:
    """The text with control characters and lone surrogates as their escapes, tabs as spaces."""
    # rich measures a tab as one column and then cuts the cell.
    return (
        text.expandtabs(4).translate(_VISIBLE).encode("utf-8", "backslashreplace").decode("utf-8")
    )


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text of plain parts and (part, style) pairs."""
    shown = [printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts]
    return Text.assemble(*shown)


class TextConsole(Console):
    """Prints strings as they are, also in cells and titles of tables."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})


def _console(*, stderr: bool = False) -> Console:
    """Never cuts a cell or wraps a line where its output is no terminal."""
    console = TextConsole(stderr=stderr, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


out = _console()
errors = _console(stderr=True)


@dataclass
class ProgressTask:
    """One task of a `ProgressDisplay`. It counts up to `total`, or reports shares of 1.

    A `total` of 0 is one that is not known yet.
    """

    display: ProgressDisplay
    name: str
    total: float
    shares: bool
    completed: float = 0.0
    text: str = ""
    started_s: float = field(default_factory=time.monotonic)
    printed_s: float = field(default_factory=time.monotonic)
    printed: tuple[float, str] = (0.0, "")
    bar: TaskID | None = None

    def update(self, completed: float, text: str = "", total: float | None = None) -> None:
        """Shows how far the task is; may be called as often as there is news, by any thread."""
        self.total = self.total if total is None else total
        self.completed, self.text = completed, text
        self.display.show(self)

    def line(self) -> str:
        """The state as one line: share and step, or count, share and rate."""
        share = self.completed / self.total if self.total else 1.0
        if self.shares:
            return ", ".join(part for part in (f"{self.name}: {share:.0%}", self.text) if part)
        rate = self.completed / max(time.monotonic() - self.started_s, 1e-3)
        text = f"{self.name}: {self.completed:,.0f}"
        if self.total:  # 0: how many there will be is not known
            text += f" of {self.total:,.0f} ({share:.0%})"
        return ", ".join(part for part in (text, f"{rate:,.0f}/s", self.text) if part)


class ProgressDisplay:
    """Progress of one or more tasks: bars on a terminal, elsewhere a line every few seconds."""

    def __init__(
        self, console: Console = out, *, transient: bool = False, every_s: float = LINE_EVERY_S
    ) -> None:
        self._console, self._every_s = console, every_s
        self._tasks: list[ProgressTask] = []
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[step]}", markup=False),
                console=console,
                transient=transient,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif kind is None:
            for task in self._tasks:
                self._print(task)

    def add(self, name: str, total: float | None = None) -> ProgressTask:
        """A task that counts up to `total`; without it, one that reports shares from 0 to 1."""
        task = ProgressTask(self, name, 1.0 if total is None else total, shares=total is None)
        if self._bars is not None:
            task.bar = self._bars.add_task(name, total=task.total, step="")
        self._tasks.append(task)
        return task

    def show(self, task: ProgressTask) -> None:
        if self._bars is not None and task.bar is not None:
            self._bars.update(task.bar, completed=task.completed, total=task.total, step=task.text)
        elif 0 < task.total <= task.completed or self._is_due(task):
            self._print(task)

    def _is_due(self, task: ProgressTask) -> bool:
        return time.monotonic() - task.printed_s >= self._every_s

    def _print(self, task: ProgressTask) -> None:
        with self._lock:
            state = (task.completed, task.text)
            if state != task.printed:
                self._console.print(task.line(), highlight=False)
            task.printed, task.printed_s = state, time.monotonic()


@contextmanager
def share_progress(name: str) -> Iterator[Callable[[float, str], None]]:
    """Progress of one task; yields the callback for its share, from 0 to 1, and its step."""
    with ProgressDisplay(transient=True) as display:
        yield display.add(name).update


def track(items: Iterable[_T], name: str, total: int) -> Iterator[_T]:
    """Yields the items and shows progress by their count."""
    with ProgressDisplay() as display:
        task = display.add(name, total)
        for count, item in enumerate(items, start=1):
            yield item
            task.update(count)
