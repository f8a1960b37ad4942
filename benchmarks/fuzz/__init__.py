"""Fuzzing: bad inputs at every entry point of a real stack stop nothing.

HTTP requests from the gateway's OpenAPI page (schemathesis: valid, invalid, and raw bytes beside
it), messages with any value, key and headers on every topic, files in the log's folders, and
settings. The bar, set before any run: 0 faults, where a fault is

1. a status from 500 up, but for a declared 503 with Retry-After; an undeclared status;
2. a process that ended; `/healthz` that is not 200;
3. a good item, erasure, event or request, sent after the bad ones, that does not arrive;
4. the same after the stack was stopped and started with all of it stored;
5. a log, catalogue or erasure journal that a bad file stops; a good row that it hides;
6. settings that raise another error than `SettingsError`, or a message that holds a secret.

The seed is printed and saved: TIDEMILL_SEED repeats a run. `--cases` sets the number of requests,
messages, file sets and environments in all (100,000); `--quick` tries 1,000.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from benchmarks.fuzz.cases import Tally, drawn_seed
from benchmarks.fuzz.files import fuzz_files
from benchmarks.fuzz.good_inputs import GoodInputs
from benchmarks.fuzz.http import fuzz_http
from benchmarks.fuzz.settings import fuzz_settings
from benchmarks.fuzz.topics import fuzz_topics
from benchmarks.report import Report
from deploy import wiring
from deploy.console import out
from deploy.settings import Settings, TritonSettings
from deploy.stack import Stack
from streams.ingest.replay import replay

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

CASES, QUICK_CASES = 100_000, 1_000
HTTP_SHARE, TOPICS_SHARE, FILES_SHARE = 0.35, 0.45, 0.05  # the rest: settings
WITHIN_S = 300.0  # for a good input behind all the bad ones
HTTP_TIMEOUT_S = 120.0


def run(options: Options) -> Report:
    """Tries all entry points; the stack lives in a temporary home."""
    cases = options.cases or (QUICK_CASES if options.quick else CASES)
    seed = drawn_seed()
    out.print(f"TIDEMILL_SEED={seed}", highlight=False)
    report = Report("fuzz", {"cases": cases, "seed": seed})
    tallies = [
        fuzz_settings(round(cases * (1 - HTTP_SHARE - TOPICS_SHARE - FILES_SHARE)), seed),
        fuzz_files(round(cases * FILES_SHARE), seed),
    ]
    for tally in tallies:
        _print(tally)
    with tempfile.TemporaryDirectory(prefix="tidemill-fuzz-", ignore_cleanup_errors=True) as home:
        tallies += _fuzz_stack(Path(home), cases, seed)
    for tally in tallies:
        report.add(
            entry=tally.entry,
            cases=tally.cases,
            seconds=round(tally.seconds),
            faults=len(tally.faults),
        )
        report.notes.extend(f"{tally.entry}: {fault}" for fault in tally.faults)
    faults = sum(len(tally.faults) for tally in tallies)
    report.check("faults", faults, "0", faults == 0)
    return report


def _fuzz_stack(home: Path, cases: int, seed: int) -> list[Tally]:
    """HTTP and topics of one stack, then the same stack started again."""
    settings = Settings(home=home, triton=TritonSettings(kind="in_process"))
    tallies = []
    with Stack(settings, step=out.print) as stack:
        with httpx.Client(base_url=stack.page, timeout=HTTP_TIMEOUT_S, trust_env=False) as http:
            tallies.append(fuzz_http(http, round(cases * HTTP_SHARE), seed))
        _await_good(tallies[-1], stack)
        bus = wiring.bus(stack.settings)
        tallies.append(fuzz_topics(bus, round(cases * TOPICS_SHARE), seed))
        _await_good(tallies[-1], stack)
        done = replay(bus, lambda dead: dead.record.value)
        tallies.append(Tally("dead letters sent again", done.sent))
        _await_good(tallies[-1], stack)
    tallies.append(Tally("restart with all of it stored", 1))
    began = time.monotonic()
    with Stack(settings, step=out.print) as stack:
        _await_good(tallies[-1], stack)
        tallies[-1].seconds = time.monotonic() - began
    return tallies


def _await_good(tally: Tally, stack: Stack) -> None:
    tally.faults += GoodInputs(stack, WITHIN_S).missing()
    _print(tally)


def _print(tally: Tally) -> None:
    out.print(f"{tally.entry}: {tally.cases:,} cases in {tally.seconds:,.0f} s", highlight=False)
    for fault in tally.faults:
        out.print(f"  fault: {fault}", highlight=False, markup=False)
