"""The doctor names what is missing and how to get it, and starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.doctor import machine
from deploy.services import tansu
from deploy.services.process import ServiceUnavailable


def test_every_component_is_checked_once() -> None:
    names = [finding.name for finding in machine.examine()]
    assert len(names) == len(set(names)) == 9


def test_a_missing_component_is_reported_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path))
    found = {finding.name: finding for finding in machine.examine()}
    assert "apt-get install maven" in found["Apache Kafka"].text
    assert "apt-get install chromium" in found["Chromium"].text
    assert not found["Docker"].ok
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded


def test_a_missing_required_component_is_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The embedded broker is needed where Apache Kafka cannot be had."""

    def none() -> Path:
        raise ServiceUnavailable("no binary; use TIDEMILL_BROKER=kafka")

    monkeypatch.setattr(tansu, "binary", none)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path))
    found = {finding.name: finding for finding in machine.examine()}
    broker = found["embedded broker"]
    assert (broker.ok, broker.needed) == (False, True)
    assert "TIDEMILL_BROKER=kafka" in broker.text
