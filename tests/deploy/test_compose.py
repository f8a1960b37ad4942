"""docker-compose.yml agrees with the settings; checked without a Docker engine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.processes import PROCESSES
from deploy.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {"kafka", "valkey", "triton", "otel-collector", "prometheus", "grafana"}
SECRETS = {"TIDEMILL_IMPRESSION_KEY": "ab" * 32, "TIDEMILL_API_KEY": "cd" * 16}


def _filled_in(text: str) -> str:
    """The text with its variables substituted; an unknown one is an error."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: SECRETS[found[1]], text)


@pytest.fixture(params=sorted(PROCESSES))
def process_settings(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Settings:
    """The settings that a process reads inside its container."""
    monkeypatch.chdir(tmp_path)
    for name, value in SERVICES[request.param]["environment"].items():
        monkeypatch.setenv(name, _filled_in(value))
    return load(home=Path(SERVICES[request.param]["environment"]["TIDEMILL_HOME"]))


def test_every_process_and_every_server_is_a_service() -> None:
    assert set(SERVICES) == set(PROCESSES) | SERVERS
    for name in PROCESSES:
        assert SERVICES[name]["command"] == [name]


def test_settings_are_valid_and_addresses_name_services(
    process_settings: Settings,
) -> None:
    addresses = [
        process_settings.broker.bootstrap_servers,
        process_settings.store.address,
        process_settings.triton.grpc_address,
        process_settings.triton.http_address,
        process_settings.telemetry.otlp_endpoint.removeprefix("http://"),
    ]
    assert {address.split(":")[0] for address in addresses} <= set(SERVICES)
    assert process_settings.broker.transactional
    assert bytes.fromhex(process_settings.security.impression_key)


def test_a_listener_off_loopback_demands_keys(process_settings: Settings) -> None:
    assert process_settings.gateway.host == "0.0.0.0"
    assert process_settings.security.api_keys == {"cd" * 16: ["events", "recommend", "admin"]}


def test_published_ports_are_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in SECRETS:
        assert f"${{{name}:?" in text
        assert f"${{{name}:-" not in text


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values()]
    for path in (ROOT / "deploy" / "compose").glob("*Dockerfile"):
        images += re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_mounted_and_copied_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source
    for path in (ROOT / "deploy" / "compose").glob("*Dockerfile"):
        for line in re.findall(r"^COPY (.+)$", path.read_text(), re.MULTILINE):
            assert all((ROOT / name).exists() for name in shlex.split(line)[:-1]), line


def test_services_wait_only_for_services() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", [])) <= set(SERVICES)


def test_kafka_is_the_version_of_the_tests() -> None:
    from deploy.services.kafka import KAFKA_VERSION

    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_prometheus_scrapes_ports_that_are_opened(process_settings: Settings) -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    targets = [
        t for job in config["scrape_configs"] for c in job["static_configs"] for t in c["targets"]
    ]
    opened = {f"{n}:{p}" for n, p in process_settings.telemetry.metrics_ports.items()}
    opened |= {f"gateway:{process_settings.gateway.port}", process_settings.triton.metrics_address}
    assert set(targets) == opened


def test_prometheus_may_read_the_gateways_metrics() -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    secret = Path(jobs["gateway"]["authorization"]["credentials_file"]).name
    assert secret in SERVICES["prometheus"]["secrets"]
    assert COMPOSE["secrets"][secret]["environment"] in SECRETS


def test_the_collector_listens_where_spans_are_sent(process_settings: Settings) -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/otel-collector.yml").read_text())
    endpoint = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert process_settings.telemetry.otlp_endpoint.endswith(endpoint.split(":")[1])
