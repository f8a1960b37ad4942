"""`tidemill ask` and `tidemill status` say why something is missing or down."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy import state
from deploy.cli import ask, stack
from deploy.console import TextConsole
from deploy.settings import Settings

REPLY: dict[str, Any] = {
    "surface": "feed",
    "user_id": "u1",
    "release": "r0001",
    "cold_start": False,
    "stale": False,
    "candidates": 4,
    "removed_total": 3,
    "removed": [
        {"video_id": "v1", "stage": "already_engaged", "reason": "already engaged: like"},
        {"video_id": "v2", "stage": "already_engaged", "reason": "already engaged: like"},
        {"video_id": "v3", "stage": "unavailable", "reason": "taken down"},
    ],
    "fallbacks": [{"stage": "ranker", "reason": "no answer within 400 ms"}],
    "items": [
        {
            "slot": 0,
            "title": "[b]Title[/]",
            "score": 1.0,
            "source": "popular",
            "p": {},
            "video_id": "v",
        }
    ],
}


class Answering:
    """An HTTP server with one reply to every request."""

    def __init__(self) -> None:
        self.body: Any = {}
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                data = json.dumps(outer.body).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def gateway() -> Iterator[Answering]:
    made = Answering()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def settings(gateway: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
    found = Settings(home=tmp_path)
    found.gateway.port = gateway.server.server_port
    monkeypatch.setattr(state, "home_in_use", lambda home: home)
    monkeypatch.setattr(state, "home_is_locked", lambda _: True)
    monkeypatch.setattr(state, "read_settings", lambda _: found)
    monkeypatch.setattr(state, "read_services", lambda _: [])
    wide = TextConsole(width=200)
    monkeypatch.setattr(ask, "out", wide)
    monkeypatch.setattr(stack, "out", wide)
    return found


def asked(reply: dict[str, Any], gateway: Answering, k: int = 5) -> str:
    gateway.body = reply
    done = CliRunner().invoke(ask.app, ["u1", "--k", str(k)])
    assert done.exit_code == 0, done.output
    return str(done.output)


def test_a_short_reply_says_what_was_removed_and_why(
    settings: Settings, gateway: Answering
) -> None:
    del settings
    text = asked(REPLY, gateway)
    assert "1 of 5 items: 4 candidates were found" in text
    assert "2 removed by already_engaged: already engaged: like" in text
    assert "1 removed by unavailable: taken down" in text
    assert "ranker: no answer within 400 ms" in text
    assert "of 1 items" not in asked(REPLY, gateway, k=1)


def test_a_short_path_says_that_it_is_whole_or_lacks_its_goal(
    settings: Settings, gateway: Answering
) -> None:
    del settings
    goal = {"video_id": "v9", "title": "The goal", "shown": True}
    whole = REPLY | {"goal": goal, "removed": [], "removed_total": 0}
    assert "the path to its goal takes no more steps" in asked(whole, gateway)
    cut = REPLY | {"goal": goal | {"shown": False}}
    assert "its goal, The goal, cannot be shown" in asked(cut, gateway)


def status(monkeypatch: pytest.MonkeyPatch, down: str = "") -> Any:
    answers = ((name, "kind", "address", name != down) for name in ("broker", "store", "models"))
    monkeypatch.setattr(stack, "_answers", lambda _: answers)
    return CliRunner().invoke(stack.app, ["status"])


@pytest.mark.parametrize("down", ["broker", "store", "models"])
def test_status_exits_1_while_a_component_does_not_answer(
    settings: Settings, gateway: Answering, monkeypatch: pytest.MonkeyPatch, down: str
) -> None:
    del settings
    gateway.body = {"parts": {name: {"status": "up"} for name in ("broker", "store", "models")}}
    assert status(monkeypatch).exit_code == 0
    done = status(monkeypatch, down)
    assert done.exit_code == 1
    assert "no: it does not answer" in done.output


def test_status_exits_1_while_the_gateway_reports_an_unhealthy_model(
    settings: Settings, gateway: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    del settings
    reason = "queries: answers its canary with NaN"
    gateway.body = {"parts": {"models": {"status": "down", "reason": reason}}}
    done = status(monkeypatch)
    assert done.exit_code == 1
    assert f"no: {reason}" in done.output


def test_status_exits_1_while_the_gateway_does_not_answer(
    settings: Settings, gateway: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    del settings
    gateway.body = "no health"
    assert status(monkeypatch).exit_code == 1
    gateway.server.shutdown()
    gateway.server.server_close()
    assert status(monkeypatch).exit_code == 1


@pytest.mark.usefixtures("settings")
def test_an_empty_catalogue_and_a_stack_without_models_say_what_to_do(gateway: Answering) -> None:
    empty = REPLY | {"items": [], "candidates": 0, "removed": [], "removed_total": 0, "models": {}}
    text = asked(empty, gateway)
    assert "PUT /v1/catalogue/{item_id}" in text
    assert "tidemill replay" in text
    assert "tidemill models train, then tidemill models promote" in text
    assert "models train" not in asked(REPLY | {"models": {"ranker": 1}}, gateway)


def test_a_gateway_that_does_not_answer_says_how_to_start_one(settings: Settings) -> None:
    settings.gateway.port = 1
    done = CliRunner().invoke(ask.app, ["u1"])
    assert done.exit_code == 1
    assert "`tidemill up` starts a stack" in done.output
