"""`tidemill up | down | status | doctor`: the stack as commands.

Knows terminals and signals. Does not know how a part is started (`deploy.stack`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from deploy import state
from deploy.console import out, printable, styled
from deploy.doctor.finding import Finding
from deploy.services.process import wait_until
from deploy.settings import Settings, load
from deploy.supervisor import Report

app = typer.Typer()
PHASE_STYLE = {"running": "green", "starting": "yellow", "waiting": "red", "stopped": "dim"}


@app.command(
    epilog="[bold]Examples[/]  tidemill up  ·  TIDEMILL_BROKER=kafka tidemill up  ·  "
    "TIDEMILL_GATEWAY__PORT=8080 tidemill up"
)
def up(
    seconds: Annotated[
        float, typer.Option("--for", help="Stop after this many seconds; 0: on Ctrl-C.")
    ] = 0.0,
) -> None:
    """Start every part, keep them running, stop them all on Ctrl-C."""
    from deploy.stack import Stack

    stack = Stack(
        load(), report=print_report, step=lambda text: out.print(f"{text} …", style="dim")
    )
    with interrupted_by_signals():
        try:
            stack.start()
            out.print(address_table(stack.settings))
            out.print(styled("\nThe page: ", (stack.page, "bold"), "   Ctrl-C stops everything.\n"))
            wait_until(lambda: False, seconds or float("inf"), pause_s=0.5)
        except KeyboardInterrupt:
            out.print("\nstopping …", style="dim")
        finally:
            ignore_signals()  # a second Ctrl-C must not interrupt the cleanup
            stack.stop()
    out.print("stopped; no process is left running")


@app.command(epilog="[bold]Example[/]  tidemill down")
def down(
    quiet: Annotated[bool, typer.Option(help="Print nothing if no stack runs.")] = False,
) -> None:
    """Stop the stack of this home, and processes that a killed one left behind."""
    from deploy.stack import clean_up_after

    home = state.home_in_use(load().home.resolve())
    ran = state.stop_supervisor(home)
    reaped = clean_up_after(home)
    if ran:
        out.print("stopped")
    elif reaped:
        out.print(f"stopped processes that a killed stack had left behind: {', '.join(reaped)}")
    elif not quiet:
        out.print(f"no stack runs in {home}")


@app.command(epilog="[bold]Example[/]  tidemill status")
def status() -> None:
    """Show each process, where it listens and whether it answers. Exit code 1 if one does not."""
    home = state.home_in_use(load().home.resolve())
    if not state.home_is_locked(home):
        raise state.NotRunning(f"no stack runs in {home}: `tidemill up` starts one")
    settings = state.read_settings(home)
    components = list(_components(settings))
    out.print(_component_table(components))
    records = state.read_services(home)
    out.print(_service_table(records))
    if settings.updates:
        out.print(_update_table(settings))
    healthy = all(not component.problem for component in components)
    if not healthy or any(record.phase != "running" for record in records):
        raise typer.Exit(1)


@app.command(epilog="[bold]Example[/]  tidemill doctor")
def doctor() -> None:
    """Show what this machine lacks and, while a stack runs, which part of it is sick and the remedy.

    Exit code 1 if `up` cannot work, or a part is sick.
    """
    from deploy.doctor import machine, stack

    found = machine.examine()
    out.print(_findings_table("machine", found))
    if parts := list(stack.examine(state.home_in_use(load().home.resolve()))):
        out.print(_findings_table("stack", parts))
    if any(finding.needed and not finding.ok for finding in [*found, *parts]):
        raise typer.Exit(1)


def _findings_table(title: str, findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", title, "found"):
        table.add_column(column)
    for finding in findings:
        mark = ("✓", "green") if finding.ok else ("✗", "red") if finding.needed else ("–", "yellow")
        text = f"{finding.text}\nremedy: {finding.remedy}" if finding.remedy else finding.text
        table.add_row(styled(mark), finding.name, Text(printable(text), overflow="fold"))
    return table


def print_report(report: Report) -> None:
    """Prints a supervisor's report; a crash with the last lines of the log."""
    out.print(styled((report.service, "bold"), " ", report.text))
    if report.log:
        out.print(Text("\n".join(f"    {line}" for line in report.log.splitlines()), style="dim"))


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM interrupts the block as Ctrl-C does; afterwards both handlers are restored."""

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handle in before.items():
            signal.signal(number, handle)


def ignore_signals() -> None:
    """Ignores Ctrl-C and SIGTERM until `interrupted_by_signals` restores the handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def address_table(settings: Settings) -> Table:
    """Each component with its kind, address and whether it answers now."""
    return _component_table(list(_components(settings)))


@dataclass(frozen=True)
class _Component:
    """`problem`: why it does not answer; "" if it does."""

    name: str
    kind: str
    address: str
    problem: str


def _component_table(components: list[_Component]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("component", "kind", "address", "answers"):
        table.add_column(column)
    for each in components:
        mark = Text(f"no: {each.problem}", "red") if each.problem else Text("yes", "green")
        table.add_row(each.name, each.kind, each.address, mark)
    return table


def _components(settings: Settings) -> Iterator[_Component]:
    """Each component as it answers here and, where the gateway answers, as the gateway sees it."""
    page = settings.gateway.url
    seen = _unhealthy(f"{page}/healthz")
    for name, kind, address, answers in _answers(settings):
        problem = "" if answers else "it does not answer"
        yield _Component(name, kind, address, problem or (seen or {}).get(name, ""))
    problem = "it does not answer" if seen is None else seen.get("surfaces", "")
    yield _Component("gateway", "http", page, problem)


def _unhealthy(url: str) -> dict[str, str] | None:
    """Component -> what is wrong with it, by the gateway's health; None without an answer."""
    import httpx

    try:
        parts = httpx.get(url, timeout=3.0).json()["parts"]
        down = {name: part for name, part in parts.items() if part["status"] != "up"}
        return {name: str(part.get("reason") or "it is down") for name, part in down.items()}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, AttributeError, TypeError):
        return None


def _answers(settings: Settings) -> Iterator[tuple[str, str, str, bool]]:
    from deploy import logins
    from deploy.services.triton import answers_http

    broker, store, triton = settings.broker, settings.store, settings.triton
    servers = broker.bootstrap_servers
    yield "broker", broker.kind, servers, logins.broker_answers(settings)
    yield "store", store.kind, logins.store_address(settings), logins.store_answers(settings)
    if triton.kind == "in_process":
        yield "models", triton.kind, "-", True
    else:
        ready = answers_http(f"http://{triton.http_address}/v2/health/ready")
        yield "models", triton.kind, triton.grpc_address, ready


def _service_table(records: list[state.ServiceRecord]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("process", "phase", "pid", "restarts", "up for"):
        table.add_column(column)
    for record in records:
        age = f"{time.time() - record.started_s:.0f} s" if record.started_s else "-"
        phase = Text(record.phase, PHASE_STYLE.get(record.phase, ""))
        table.add_row(record.name, phase, str(record.pid or "-"), str(record.restarts), age)
    return table


def _update_table(settings: Settings) -> Table:
    """Each scheduled update: what it does now, when it is due, how the last one ended."""
    from models.release.store import ReleaseStore
    from models.training.update_report import update_reports

    table = Table(box=None, pad_edge=False)
    for column in ("update", "scheduled", "phase", "because", "last"):
        table.add_column(column, overflow="fold")
    reports = update_reports(ReleaseStore(settings.releases_dir))
    for model, schedule in settings.updates.items():
        report = reports.get(model, {"phase": "waiting", "why": "the updater is starting"})
        last = report.get("last") or {"ending": "", "phase": "none", "reasons": []}
        ended = ": ".join([last["ending"] or last["phase"], *last["reasons"][:1]])
        why = report.get("problem") or report.get("step") or report["why"]
        phase = Text(report["phase"], "red" if report.get("problem") else "")
        table.add_row(model, schedule.in_words(), phase, Text(why), Text(ended))
    return table
