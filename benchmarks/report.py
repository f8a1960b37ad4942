"""The form of every benchmark's result: a table, verdicts, and what it ran on.

Knows tables, bars and files. Does not know what is measured.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson
import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Verdict:
    """One claim beside its bar, which was written down before the run.

    `value` and `bar` are in the same unit, named in `name`. `ok` is None where the
    claim is reported and not gated.
    """

    name: str
    value: float
    bar: str
    ok: bool | None


@dataclass
class Report:
    """What one benchmark found. Rows are mappings with the same keys in the same order."""

    name: str
    config: Mapping[str, object]
    data_checksum: str = ""
    rows: list[dict[str, object]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, **row: object) -> None:
        self.rows.append(row)

    def judge(self, name: str, value: float, bar: str, ok: bool | None) -> None:
        self.verdicts.append(Verdict(name, value, bar, ok))

    def show(self, console: Console) -> None:
        """Prints the table, the notes and one closing line of verdicts."""
        console.print(f"\n[bold]{self.name}[/bold] on {machine()['cpu']}, {os.cpu_count()} cores")
        console.print(_table(self.rows))
        for note in self.notes:
            console.print(f"[dim]{note}[/dim]")
        console.print(f"verdicts: {'; '.join(_line(v) for v in self.verdicts)}", soft_wrap=True)

    def save(self, folder: Path = RESULTS) -> Path:
        """Writes results/NAME.json: date, machine, config hash, data checksum, table, verdicts."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        body = {
            "name": self.name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "config": dict(self.config),
            "config_hash": config_hash(self.config),
            "data_checksum": self.data_checksum,
            "table": self.rows,
            "notes": self.notes,
            "verdicts": [asdict(v) for v in self.verdicts],
        }
        path.write_bytes(
            orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
        )
        return path


def config_hash(config: Mapping[str, object]) -> str:
    return hashlib.sha256(orjson.dumps(dict(config), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def machine() -> dict[str, object]:
    """What a reader must know to read the absolute figures; nothing that names the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _table(rows: Sequence[Mapping[str, object]]) -> Table:
    table = Table(show_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _line(verdict: Verdict) -> str:
    word = {True: "ok", False: "SHORT", None: "reported"}[verdict.ok]
    return f"{verdict.name} {verdict.value:,.4g} (bar {verdict.bar}) {word}"
