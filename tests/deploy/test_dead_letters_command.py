"""`tidemill replay --dead-letters` on a real broker: what it repairs, sends and prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import renamed, state
from deploy.cli.main import build
from deploy.services import process
from deploy.services.tansu import Tansu
from deploy.settings import load
from streams.bus.kafka.bus import KafkaBus
from streams.bus.polled import Record
from streams.contract.topics import BEHAVIOUR, topic_specs
from streams.ingest import dead_letters

REPAIRS = """
def plays(dead):
    return (dead.record.value or b"").replace(b"plya", b"play")
"""


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaBus]:
    """A running stack's broker, as far as the command can see one."""
    broker = Tansu(tmp_path, name="broker")
    child = process.start(broker, 30.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repairs.py").write_text(REPAIRS)
    renamed.warn.cache_clear()
    settings = load().model_copy(deep=True)
    settings.home = tmp_path / "home"
    settings.broker.bootstrap_servers = broker.bootstrap_servers
    monkeypatch.setattr(state, "home_in_use", lambda _: settings.home)
    monkeypatch.setattr(state, "read_settings", lambda _: settings)
    bus = KafkaBus(broker.bootstrap_servers)
    bus.ensure_topics(topic_specs(settings.broker.partitions))
    yield bus
    child.kill()


def _refuse(bus: KafkaBus, value: bytes, cause: str, offset: int) -> None:
    record = Record(BEHAVIOUR, 0, offset, b"k", value, (("h", b"1"),))
    bus.producer().send([dead_letters.dead_letter_message(record, cause, "why", "topic-id", 1)])


def _sent(bus: KafkaBus) -> list[Record]:
    ends = bus.ends(BEHAVIOUR).items()
    return [record for p, (start, stop) in ends for record in bus.scan(BEHAVIOUR, p, start, stop)]


def _run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(build(), ["replay", *arguments], env={**os.environ, "COLUMNS": "200"})
    return done.exit_code, done.output


@pytest.mark.parametrize("option", ["--repair", "--mend"])  # private-word
def test_repaired_dead_letters_of_one_cause_are_sent_with_key_and_headers(
    bus: KafkaBus, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    _refuse(bus, b'{"kind": "plya"}', "unknown_kind", 0)
    _refuse(bus, b"garbage", "not_json", 1)
    code, said = _run("--dead-letters", option, "repairs:plays", "--cause", "unknown_kind")
    assert code == 0, said
    assert "1 dead letters sent again, 1 skipped" in said
    assert ("--mend is now --repair" in caplog.text) == (option == "--mend")  # private-word
    (record,) = _sent(bus)
    assert (record.key, record.value, record.headers) == (
        b"k",
        b'{"kind": "play"}',
        (("h", b"1"),),
    )


def test_without_repair_a_dead_letter_is_sent_unchanged_unless_truncated(bus: KafkaBus) -> None:
    _refuse(bus, b"early", "future", 0)
    _refuse(bus, b"x" * 500_000, "too_large", 1)
    code, said = _run("--dead-letters")
    assert code == 0, said
    assert "1 were truncated" in said
    assert [record.value for record in _sent(bus)] == [b"early"]


@pytest.mark.parametrize("place", ["repairs", "repairs:absent", "absent_module:repair"])
def test_a_repair_function_that_is_not_found_is_an_error_before_anything_is_sent(
    bus: KafkaBus, place: str
) -> None:
    _refuse(bus, b"early", "future", 0)
    code, said = _run("--dead-letters", "--repair", place)
    assert (code, place in said) == (2, True)
    assert _sent(bus) == []
