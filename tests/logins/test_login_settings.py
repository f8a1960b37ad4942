"""Logins in the settings: what fits together, what is refused, and that no secret is shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy import logins, wiring
from deploy.settings import SettingsError, from_stored
from deploy.settings.connections import BrokerSecuritySettings

SERVERS = "kafka.example:9093"
SASL = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": "shop"}


def settings(security: dict[str, Any], section: str = "broker") -> Any:
    address = {"broker": "bootstrap_servers", "store": "address"}[section]
    return from_stored({section: {"kind": "external", address: SERVERS, "security": security}})


def test_the_password_is_read_from_its_file_at_each_use(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("first\n")
    found = settings({**SASL, "password_file": str(path)})
    assert wiring.kafka_login(found).password == "first"
    path.write_text("second")
    assert wiring.kafka_login(found).password == "second"
    assert "second" not in found.model_dump_json() + repr(wiring.kafka_login(found))


@pytest.mark.parametrize(
    ("security", "says"),
    [
        (SASL, "password"),
        ({**SASL, "password": "p", "mechanism": "OAUTHBEARER"}, "token_url"),
        ({"username": "shop", "password": "p"}, "SASL_SSL"),
        ({"protocol": "TLS"}, "SASL_PLAINTEXT"),
        ({"protocol": "SSL", "ca_file": "/nowhere.pem"}, "/nowhere.pem"),
        ({"protocol": "SSL", "key_file": __file__}, "certificate_file"),
        ({"ca_file": __file__}, "not encrypted"),
        ({**SASL, "password": "p", "password_file": __file__}, "keep one"),
        ({**SASL, "password_file": "/nowhere"}, "/nowhere"),
        ({"librdkafka": {"client.rock": "a"}}, "client.rock"),
        ({"librdkafka": {"group.id": "a"}}, "group.id"),
        ({"librdkafka": {"socket.timeout.ms": "soon"}}, "socket.timeout.ms"),
        ({"aiokafka": {"client_rock": "a"}}, "client_rack"),
        ({"aiokafka": {"group_id": "a"}}, "group_id"),
        ({"pasword": "hunter2"}, "is not a setting"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(security: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(security)
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("security", "says"),
    [
        ({"ca_file": __file__}, "tls"),
        ({"username": "shop"}, "password"),
        ({"sentinels": "no address"}, "host:port"),
    ],
)
def test_the_store_s_too(security: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        settings(security, "store")


@pytest.mark.parametrize(
    ("section", "security"),
    [("broker", {**SASL, "password": "p"}), ("store", {"password": "p"})],
)
def test_a_stack_s_own_servers_take_no_logins(section: str, security: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="external"):
        from_stored({section: {"security": security}})


def test_further_properties_reach_their_clients() -> None:
    found = settings({"librdkafka": {"client.rack": "a"}, "aiokafka": {"client_rack": "a"}})
    login = wiring.kafka_login(found)
    assert login.client_config() == {"client.rack": "a"}
    assert login.faust_properties == {"client_rack": "a"}


def test_a_process_and_a_stack_end_at_once_where_the_broker_refuses(
    secure_broker: Any, tmp_path: Path
) -> None:
    right = secure_broker.logins["scram"]
    security = BrokerSecuritySettings(
        protocol="SASL_SSL",
        mechanism="SCRAM-SHA-512",
        username=right.username,
        password="hunter2",
        ca_file=right.ca_file,
    )
    servers = secure_broker.addresses["scram"]
    broker = {"kind": "external", "bootstrap_servers": servers, "security": security.model_dump()}
    found = from_stored({"home": str(tmp_path), "broker": broker})
    ((part, refusal),) = logins.refusals(found)
    assert part == "broker"
    assert "broker.security" in refusal
    (tmp_path / "settings.toml").write_text(
        f'home = "{tmp_path}"\n[broker]\nkind = "external"\nbootstrap_servers = "{servers}"\n'
        "[broker.security]\n"
        + "".join(f'{k} = "{v}"\n' for k, v in security.model_dump().items() if v)
    )
    for command in (["-m", "deploy.process", "batcher"], ["-m", "deploy.cli.main", "up"]):
        ended = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode != 0
        output = ended.stdout + ended.stderr
        assert "does not accept the login" in output.replace("\n", " ")
        assert "hunter2" not in output
        assert "Traceback" not in output
