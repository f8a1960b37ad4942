"""Files in the log: foreign ones in every folder, and own ones that are torn or overwritten.

Knows the log's folders. Does not know processes. The laws: whatever lies beside them, the good
files are read, an append, a flush and a compaction work, and so does a restart.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from benchmarks.fuzz.cases import Tally
from benchmarks.fuzz.messages import ADDED, PLAIN, mutated
from streams import telemetry
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.catalogue import CatalogueLog
from streams.contract.clock import HOUR_MS
from streams.contract.events import CATALOGUE_EVENT
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.erasure import ErasureJournal
from streams.event_log import EventLog
from streams.storage import compaction

AT = 1_767_225_600_000  # 2026-01-01 00:00 UTC
BATCHES, ROWS = 4, 3
SEALED = 2  # of the batches; the others are write-ahead files
NAMES = [
    "_SUCCESS", "notes.txt", "empty.parquet", "part-00000.snappy.parquet", ".x.parquet.crc", "x",
    "0.parquet", "0.arrow", "ü.arrow", "a b.parquet", ".tmp", "x.damaged", "x.partial",
]  # fmt: skip
LINES = ("erasures.jsonl", "catalogue.jsonl")


@dataclass(frozen=True)
class BadFile:
    """`damaged`: replaces what one of the log's own files holds; otherwise a file is added.

    place: picks the folder or the file. keep: how much of an own file's bytes stay, 0 to 1.
    """

    damaged: bool
    place: int
    name: str
    content: bytes
    keep: float


bad_files = st.lists(
    st.builds(
        BadFile,
        st.booleans(),
        st.integers(0, 99),
        st.sampled_from(NAMES) | st.sampled_from(LINES),
        st.binary(max_size=40)
        | st.sampled_from([value or b"" for value in PLAIN if len(value or b"") < 60_000])
        | mutated(ADDED)
        | mutated({"user_id": "x", "at_ms": AT}),
        st.sampled_from([0.0, 0.0, 0.3, 0.9]),
    ),
    max_size=4,
)


def fuzz_files(cases: int, seed: int) -> Tally:
    """Tries so many sets of up to four bad files, each beside a small log."""
    tally = Tally("files in the log")
    loggers = [logging.getLogger(name) for name in ("streams", "tidemill", telemetry.__name__)]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)  # each bad file is named: that is a law of other tests
    with tempfile.TemporaryDirectory(prefix="tidemill-fuzz-") as folder:
        template = Path(folder) / "template"
        _fill(template)

        def law(files: list[BadFile]) -> None:
            home = Path(tempfile.mkdtemp(dir=folder))
            try:
                shutil.copytree(template, home / "log")
                _check(home / "log", files)
            finally:
                shutil.rmtree(home)

        tally.try_cases("files", bad_files, law, cases, seed)
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
    return tally


def _fill(folder: Path) -> None:
    log = EventLog(folder)
    for number in range(BATCHES):
        log.append(_batch(number))
        if number == SEALED - 1:
            log.flush()
    CatalogueLog(folder).append([_added("good")])
    ErasureJournal(folder / LINES[0]).append("gone", AT)


def _batch(number: int) -> Delivery:
    row: dict[str, Any] = {
        "event_time_ms": AT + number, "ingested_at_ms": AT + number, "kind": 0, "surface": "feed",
        "origin": "live", "video_id": "v", "late": False, "duplicate": False, "source_partition": 0,
    }  # fmt: skip
    rows = [
        row | {"event_id": f"e{number}-{n}", "user_id": f"u{n}", "source_offset": number * ROWS + n}
        for n in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
    return Delivery(EVENTS_BY_USER, Stamp("topic", 0, number), table)


def _added(item_id: str) -> Any:
    item = {**ADDED["item"], "video_id": item_id}  # type: ignore[dict-item]
    return CATALOGUE_EVENT.validate_python({**ADDED, "event_id": item_id, "item": item})


def _check(folder: Path, files: list[BadFile]) -> None:
    damaged = _place(folder, files)
    good = {f"e{number}-{n}" for number in range(BATCHES) for n in range(ROWS)}
    log = EventLog(folder)
    found = set(log.read()["event_id"])
    assert found <= good
    assert damaged or found == good, f"lost {sorted(good - found)}"
    assert len(found) >= len(good) - ROWS * SEALED * len(damaged), f"lost {sorted(good - found)}"
    log.append(_batch(BATCHES))
    log.flush()
    compaction.compact(log.segments, AT + 9 * HOUR_MS)
    again = EventLog(folder)
    fresh = {f"e{BATCHES}-{n}" for n in range(ROWS)}
    assert fresh <= set(again.read()["event_id"]), "an append after the bad files is lost"
    assert sum(each.table.num_rows for each in again.deliveries()) >= ROWS
    again.erase("u1", AT + 9 * HOUR_MS)
    assert "u1" not in set(EventLog(folder).read()["user_id"])
    catalogue = CatalogueLog(folder)
    catalogue.append([_added("after")])
    assert {"good", "after"} <= set(CatalogueLog(folder).load().available_ids())
    journal = ErasureJournal(folder / LINES[0])
    journal.append("after", AT)
    assert {"gone", "after"} <= set(journal.read())


def _place(folder: Path, files: list[BadFile]) -> set[Path]:
    """Writes the files; returns those of the log's own that were damaged."""
    own = sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".arrow"))
    folders = sorted({folder, *(path for path in folder.rglob("*") if path.is_dir())})
    damaged = set()
    for file in files:
        if file.name in LINES:  # lines among the good ones
            with (folder / file.name).open("ab") as lines:
                lines.write(b"\n" + file.content + b"\n")
        elif file.damaged:
            path = own[file.place % len(own)]
            whole = path.read_bytes()
            path.write_bytes(whole[: int(len(whole) * file.keep)] + file.content)
            damaged.add(path)
        else:
            (folders[file.place % len(folders)] / file.name).write_bytes(file.content)
    return damaged
