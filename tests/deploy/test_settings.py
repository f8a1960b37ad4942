"""Laws of the settings: three sources in one order, and errors that name the key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from deploy import renamed, wiring
from deploy.processes import PROCESSES
from deploy.settings import PROCESS_NAMES, TASKS, Settings, SettingsError, from_stored, load
from deploy.settings.names import unknown_variables
from streams.catalogue import CatalogueLog
from streams.contract.declaration import contract, declared
from streams.contract.items import CATALOGUE_EVENT
from streams.feedback.outcomes import FEEDBACK_TASKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TIDEMILL_BROKER", "TIDEMILL_SETTINGS", "TIDEMILL_HOME"):
        monkeypatch.delenv(name, raising=False)
    renamed.warn.cache_clear()


def test_the_environment_beats_the_file_and_the_file_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("settings.toml").write_text("[broker]\npartitions = 8\n[gateway]\nport = 8080\n")
    monkeypatch.setenv("TIDEMILL_GATEWAY__PORT", "9090")
    settings = load()
    assert (settings.broker.partitions, settings.gateway.port) == (8, 9090)
    assert settings.store == Settings().store


@pytest.mark.parametrize("extra", [{}, {"TIDEMILL_BROKER__PARTITIONS": "2"}])
def test_one_word_names_a_sections_kind(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, str]
) -> None:
    monkeypatch.setenv("TIDEMILL_BROKER", "kafka")
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    broker = load().broker
    assert broker.kind == "kafka"
    assert broker.partitions == int(extra.get("TIDEMILL_BROKER__PARTITIONS", 4))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TIDEMILL_BROKER", "rabbit", r"broker\.kind \(TIDEMILL_BROKER__KIND.*'embedded'"),
        ("TIDEMILL_GATEWAY__PORT", "http", r"gateway\.port \(TIDEMILL_GATEWAY__PORT"),
        ("TIDEMILL_GATEWAY__PROT", "80", r"GATEWAY__PROT is not.*mean TIDEMILL_GATEWAY__PORT\?"),
        ("TIDEMILL_GATEWAY_PORT", "8080", r"GATEWAY_PORT is not.*mean TIDEMILL_GATEWAY__PORT\?"),
        ("TIDEMILL_BROKR", "kafka", r"TIDEMILL_BROKR is not .*mean TIDEMILL_BROKER\?"),
        ("TIDEMILL_NOTHING_LIKE_IT", "1", r"NOTHING_LIKE_IT is not .*deploy/settings/__init__.py"),
        ("TIDEMILL_SETTINGS", "absent.toml", r"TIDEMILL_SETTINGS names 'absent.toml'.*no such"),
        ("TIDEMILL_STORE__ADDRESS", "localhost", r"TIDEMILL_STORE__ADDRESS.*must be host:port"),
        ("TIDEMILL_GATEWAY__HOST", "[::1]:80", r"TIDEMILL_GATEWAY__HOST.*without port"),
        ("TIDEMILL_TELEMETRY__OTLP_ENDPOINT", "host:1", r"OTLP_ENDPOINT.*must be http://"),
        ("TIDEMILL_TELEMETRY__METRICS_PORTS", '{"batchr": 1}', r"'batchr' is none of"),
        (
            "TIDEMILL_FEEDBACK__WINDOWS_MS",
            '{"plays": 1}',
            r"feedback\.windows_ms .*'plays' is none",
        ),
        ("TIDEMILL_CLOCK__RATE", "inf", r"clock\.rate"),
        ("TIDEMILL_ADMISSION__FUTURE_MS", "-1", r"admission\.future_ms"),
        ("TIDEMILL_SECURITY", "open", r"security has no kind: set its keys"),
        ("TIDEMILL_INGEST__REPLICAS", "2", r"ingest\.replicas is 2.*broker\.kind to kafka"),
        ("TIDEMILL_STORE", "external", r"store .*address must name the server"),
    ],
)
def test_an_error_names_its_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=says):
        load()


OLD_FILE = """
[broker]
kind = "kafka"
doors = 2  # private-word
[telemetry.metrics_ports]
facts = 9101
edge-2 = 9102
"""


def test_old_names_in_the_file_work_and_warn(caplog: pytest.LogCaptureFixture) -> None:
    Path("settings.toml").write_text(OLD_FILE)
    settings = load()
    assert settings.ingest.replicas == 2
    assert settings.telemetry.metrics_ports == {"log-writer": 9101, "kafka-requests-2": 9102}
    load()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3, "one warning a name"
    assert "(TIDEMILL_BROKER__DOORS) is now ingest.replicas" in warnings[0]  # private-word
    assert "facts is now log-writer" in warnings[1]


def test_old_names_in_the_environment_work_and_warn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TIDEMILL_BROKER__KIND", "kafka")
    monkeypatch.setenv("TIDEMILL_BROKER__DOORS", "3")  # private-word
    monkeypatch.setenv("TIDEMILL_TELEMETRY__METRICS_PORTS", '{"edge": 9100}')
    settings = load()
    assert settings.ingest.replicas == 3
    assert settings.telemetry.metrics_ports == {"kafka-requests": 9100}
    assert "TIDEMILL_INGEST__REPLICAS" in caplog.text


def test_sources_keep_their_order_over_a_renamed_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("settings.toml").write_text('broker.kind = "kafka"\ningest.replicas = 4\n')
    monkeypatch.setenv("TIDEMILL_BROKER__DOORS", "2")  # private-word
    assert load().ingest.replicas == 2
    monkeypatch.setenv("TIDEMILL_INGEST__REPLICAS", "3")
    assert load().ingest.replicas == 3


def test_settings_survive_being_written_down() -> None:
    settings = load(broker={"kind": "kafka", "bootstrap_servers": "127.0.0.1:9"})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_an_error_in_the_file_suggests_the_nearest_key() -> None:
    Path("settings.toml").write_text('[gateway]\nprot = 80\n[brokr]\nkind = "kafka"\n')
    with pytest.raises(SettingsError, match=r"(?s)gateway\.prot .*mean gateway\.port.*mean broker"):
        load()


def test_a_file_that_is_no_toml_is_named() -> None:
    Path("settings.toml").write_text("gateway = {port =\n")
    with pytest.raises(SettingsError, match=r"settings\.toml: .*line 1"):
        load()


SECRET = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIDEMILL_SECURITY__API_KEYS", f'{{"{SECRET}": ["evnts"]}}'),
        ("TIDEMILL_SECURITY__API_KEYS", f'{{"{SECRET}": "'),
        ("TIDEMILL_SECURITY__API_KEYS", SECRET),
        (f"TIDEMILL_SECURITY__API_KEYS__{SECRET}", '["evnts"]'),
        (f"TIDEMILL_SECURTY__API_KEYS__{SECRET}", '["events"]'),
        ("TIDEMILL_SECURITY", SECRET),
        ("TIDEMILL_SECURITY", f'{{"api_keys": {{"{SECRET}": ["evnts"]}}}}'),
        ("TIDEMILL_SECURITY__IMPRESSION_KEY", f"{SECRET}xyz"),
        ("TIDEMILL_SECURITY__IMPRESSION_KEY", SECRET),
    ],
)
def test_no_message_holds_a_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"(?i)SECUR") as found:
        load()
    assert SECRET not in "".join(traceback.format_exception(found.value))


def test_shown_settings_hold_no_secret() -> None:
    settings = load(security={"api_keys": {SECRET: ["events"]}, "impression_key": "ab" * 32})
    assert SECRET not in repr(settings)
    assert "abab" not in repr(settings)


def test_every_variable_that_the_repository_reads_is_accepted() -> None:
    """Also in tests and benchmarks, since `load` runs there under the same environment."""
    folders = ("streams", "features", "models", "serving", "deploy", "benchmarks", "tests")
    read = re.compile(r'(?:environ(?:\.get\(|\[)|getenv\()\s*"(TIDEMILL_\w+)"')
    names = {
        name
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in read.findall(path.read_text(encoding="utf-8"))
    }
    assert "TIDEMILL_SEED" in names
    assert list(unknown_variables(names, Settings)) == []


def test_stored_settings_depend_on_no_variable_and_no_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = load(broker={"kind": "kafka"}).model_dump(mode="json")
    Path("settings.toml").write_text("broken")
    monkeypatch.setenv("TIDEMILL_GATEWAY__PORT", "9090")
    monkeypatch.setenv("TIDEMILL_SETTINGS", "absent.toml")
    monkeypatch.setenv("TIDEMILL_BROKR", "kafka")
    assert from_stored(stored).model_dump(mode="json") == stored


def test_a_wrong_setting_ends_any_command_with_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", "up"],
        env=os.environ | {"TIDEMILL_GATEWAY_PORT": "8080", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean TIDEMILL_GATEWAY__PORT?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_settings_know_every_process_and_task() -> None:
    assert set(PROCESS_NAMES) == set(PROCESSES)
    assert set(TASKS) == set(FEEDBACK_TASKS)


DECLARED = """
[items]
undeclared = "mark"
[items.attributes]
colour = "label"
look = { type = "vector", length = 64 }
"""


def test_attributes_are_declared_in_the_settings() -> None:
    Path("tidemill.toml").write_text(DECLARED)
    found = load().items.declarations()
    assert (found.declared["colour"].type, found.declared["look"].length) == ("label", 64)
    assert found.undeclared == "mark"
    assert from_stored(load().model_dump(mode="json")).items.declarations() == found


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('order = "number"', "SQL"),
        ('event_timestamp = "number"', "Feast"),
        ('title = "text"', "contract"),
        ('"my colour" = "label"', "underscores"),
        ('colour = "colour"', "'number', 'text', 'label'"),
        ('look = "vector"', "length"),
        ('look = { type = "vector", length = 0 }', "greater than or equal to 1"),
    ],
)
def test_an_attribute_that_cannot_be_declared_is_named(line: str, named: str) -> None:
    Path("tidemill.toml").write_text(f"[items.attributes]\n{line}\n")
    with pytest.raises(SettingsError, match=named):
        load()


@pytest.mark.parametrize("of", ["items", "users"])
def test_10_000_declared_attributes_are_refused(of: str) -> None:
    lines = "\n".join(f'a{n} = "number"' for n in range(10_000))
    Path("tidemill.toml").write_text(f"[{of}.attributes]\n{lines}\n")
    with pytest.raises(SettingsError, match="10,000 attributes are declared"):
        load()


def test_a_declaration_that_stored_items_contradict_is_refused_at_the_start(tmp_path: Path) -> None:
    item = {"item_id": "p1", "title": "Shoe", "attributes": {"colour": 7}}
    event = {"kind": "item_added", "event_id": "e", "event_time_ms": 1_700_000_000_000}
    log = CatalogueLog(tmp_path / "log")
    log.append([CATALOGUE_EVENT.validate_python({**event, "item": item})])
    settings = Settings(home=tmp_path, items={"attributes": {"colour": "label"}})
    with pytest.raises(SettingsError, match=r"items\.attributes\.colour does not fit 1 .* p1"):
        wiring.refuse_contradictions(settings)
    wiring.refuse_contradictions(
        Settings(home=tmp_path, items={"attributes": {"colour": "number"}})
    )


def test_attributes_of_users_are_declared_likewise(tmp_path: Path) -> None:
    Path("tidemill.toml").write_text(DECLARED.replace("items", "users"))
    found = load(home=tmp_path)
    with declared(contract()):
        wiring.declare(found)
        assert contract().users == found.users.declarations()
        assert contract().users.undeclared == "mark"
        assert contract().signals.kinds[-1] == "profile"
        Path("tidemill.toml").unlink()
        wiring.declare(load(home=tmp_path))
        assert contract().users.declared == {}
        assert "profile" not in contract().signals.kinds


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ('users.attributes]\nuser = "label"', "SQL"),
        ('users.attributes]\nttl = "number"', "Feast"),
        ('users.attributes]\nuser_id = "label"', "contract"),
        ('users.attributes]\nPlan = "label"', "underscores"),
        ('users.attributes]\ntaste = "vector"', "length"),
        ('users]\nundeclared = "drop"', "'keep', 'mark' or 'reject'"),
        ('signals.profile]\nrole = "engagement"', "name of the contract"),
        ('signals.select]\nrole = "engagement"', "SQL"),
        ('signals.event_timestamp]\nrole = "engagement"', "Feast"),
        ('signals.video_id]\nrole = "engagement"', "name of the contract"),
        ('signals.rating]\nrole = "praise"', "'exposure', 'engagement', 'dislike' or 'conversion'"),
        ('signals.rating]\nrole = "engagement"\npayload = ["price"]', "'dwell', 'amount', 'value'"),
    ],
)
def test_what_cannot_be_declared_of_users_is_named(section: str, named: str) -> None:
    Path("tidemill.toml").write_text(f"[{section}\n")
    with pytest.raises(SettingsError, match=named):
        load()
