"""The result of a benchmark: a table, checks of bars, and the machine.

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
from rich.table import Table

from deploy.console import out, styled

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class BarCheck:
    """One measured value and its bar, which was set before the run.

    `value` and `bar` are in the same unit, stated in `name`. `ok` is None if there is no bar.
    """

    name: str
    value: float
    bar: str
    ok: bool | None


@dataclass
class Report:
    """The result of one benchmark. Rows have the same keys in the same order."""

    name: str
    config: Mapping[str, object]
    data_checksum: str = ""
    rows: list[dict[str, object]] = field(default_factory=list)
    checks: list[BarCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, **row: object) -> None:
        self.rows.append(row)

    def check(self, name: str, value: float, bar: str, ok: bool | None) -> None:
        self.checks.append(BarCheck(name, value, bar, ok))

    def show(self) -> None:
        """Prints the table, the notes and one line for each bar."""
        out.print(
            styled("\n", (self.name, "bold"), f" on {machine()['cpu']}, {os.cpu_count()} cores")
        )
        out.print(_table(self.rows))
        for note in self.notes:
            out.print(note, style="dim", highlight=False)
        for check in self.checks:
            out.print(_line(check))

    def save(self, folder: Path = RESULTS) -> Path:
        """Writes results/NAME.json: date, machine, config hash, data checksum, table, checks."""
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
            "verdicts": [asdict(check) for check in self.checks],
        }
        path.write_bytes(
            orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
        )
        return path


def config_hash(config: Mapping[str, object]) -> str:
    return hashlib.sha256(orjson.dumps(dict(config), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def machine() -> dict[str, object]:
    """What the absolute figures depend on; nothing that identifies the machine."""
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


def _line(check: BarCheck) -> str:
    result = {True: "met", False: "NOT MET", None: "reported"}[check.ok]
    return f"{check.name}: {check.value:,.4g} (bar {check.bar}), {result}"
