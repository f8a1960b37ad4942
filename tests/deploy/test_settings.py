"""Laws of the settings: three sources in one order, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import renamed
from deploy.settings import Settings, SettingsError, load


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
        ("TIDEMILL_GATEWAY__PROT", "80", r"gateway\.prot .*not permitted"),
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
