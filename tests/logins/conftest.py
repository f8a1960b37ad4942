"""Certificates made by openssl, a Kafka that demands logins, a token server."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from deploy.services import process
from deploy.services.kafka import Kafka
from deploy.services.process import LOOPBACK, ServiceUnavailable, free_port
from streams.bus.kafka.login import KafkaLogin
from streams.contract.declaration import contract
from streams.contract.schema import event_schema

Build = Callable[[list[dict[str, object]]], pa.Table]

USER, PASSWORD = "tidemill", 's,e"c=ret 1'


@pytest.fixture
def event_table() -> Build:
    """Plays: a batch of the events' schema from rows that name what matters."""

    def build(rows: list[dict[str, object]]) -> pa.Table:
        time_ms = {"event_time_ms": 1_700_000_000_000, "ingested_at_ms": 1_700_000_000_000}
        plain = {"surface": "feed", "origin": "live", "late": False, "duplicate": False}
        full = []
        for number, row in enumerate(rows):
            own = {"event_id": f"e{number}", "source_partition": 0, "source_offset": number}
            kind = {"kind": contract().signals.number["play"]}
            empty = dict.fromkeys(event_schema().names)
            full.append({**empty, **time_ms, **plain, **own, **kind, **row})
        return pa.Table.from_pylist(full, schema=event_schema())

    return build


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and NAME.pem and NAME.key for `server` and `client`; PKCS#8."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj")
    openssl(*new, "/CN=ca", "-x509", "-keyout", "ca.key", "-out", "ca.pem", cwd=folder)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    for name in ("server", "client"):
        request, key = f"{name}.csr", f"{name}.key"
        openssl(*new, f"/CN={name}", "-keyout", key, "-out", request, cwd=folder)
        (folder / "names").write_text(names)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        form = ("x509", "-req", "-in", request, *signed, "-extfile", "names")
        openssl(*form, "-out", f"{name}.pem", cwd=folder)
    both = (folder / "server.key").read_text() + (folder / "server.pem").read_text()
    (folder / "keystore.pem").write_text(both)
    return folder


def _part(body: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")


@dataclass
class TokenServer:
    """Gives unsigned tokens for the one right client id and secret."""

    url: str = ""
    granted: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def tokens() -> Iterator[TokenServer]:
    found = TokenServer()
    right = "Basic " + base64.b64encode(b"shop:token-secret").decode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            granted = self.headers.get("authorization") == right
            now = int(time.time())
            claims = {"sub": USER, "iat": now, "exp": now + 600}
            token = f"{_part({'alg': 'none'})}.{_part(claims)}."
            body = {"access_token": token, "expires_in": 600} if granted else {"error": "no"}
            if granted:
                found.granted.append(str(self.headers.get("user-agent")))
            self.send_response(200 if granted else 401)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    found.url = f"http://{LOOPBACK}:{server.server_address[1]}/token"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()


@dataclass(frozen=True)
class SecureBroker:
    """Logins of the one user, and the addresses that take them."""

    addresses: Mapping[str, str]  # by the name of the login
    logins: Mapping[str, KafkaLogin]


def _login_modules() -> dict[str, str]:
    """JAAS settings of each mechanism, on both listeners that take passwords."""
    quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    plain = (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{quoted}";'
    )
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    token = (
        "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";'
    )
    modules = {"plain": plain, "scram-sha-512": scram, "oauthbearer": token}
    return {
        f"listener.name.{listener}.{mechanism}.sasl.jaas.config": text.replace("\\", "\\\\")
        for mechanism, text in modules.items()
        for listener in ("sasl", "clear")
    }


@pytest.fixture(scope="session")
def secure_broker(
    certificates: Path, tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureBroker]:
    """An Apache Kafka 4.4 whose clients must log in."""
    ports = {name: free_port() for name in ("SASL", "MUTUAL", "CLEAR")}
    folder = tmp_path_factory.mktemp("secure-kafka")
    own, controller = free_port(), free_port()
    protocols = {"SASL": "SASL_SSL", "MUTUAL": "SSL", "CLEAR": "SASL_PLAINTEXT"}
    listeners = ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())
    inside = f"PLAINTEXT://{LOOPBACK}:{own}"
    handler = (
        "org.apache.kafka.common.security.oauthbearer.internals.unsecured."
        "OAuthBearerUnsecuredValidatorCallbackHandler"
    )
    properties = {
        "listeners": f"{inside},{listeners},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"{inside},{listeners}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates / "keystore.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.sasl.oauthbearer.sasl.server.callback.handler.class": handler,
    }
    properties |= _login_modules()
    broker = Kafka(
        folder,
        folder / "data",
        port=own,
        controller_port=controller,
        properties=properties,
        users={USER: "scram-secret"},
    )
    try:
        child = process.start(broker, 120.0)
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))
    logins = _logins(certificates, tokens)
    of_protocol = {protocol: name for name, protocol in protocols.items()}
    yield SecureBroker(
        {
            each: f"{LOOPBACK}:{ports[of_protocol[login.protocol]]}"
            for each, login in logins.items()
        },
        logins,
    )
    child.stop()


def _logins(certificates: Path, tokens: TokenServer) -> dict[str, KafkaLogin]:
    encrypted = KafkaLogin("SASL_SSL", ca_file=str(certificates / "ca.pem"), username=USER)
    token = {"username": "shop", "password": "token-secret", "token_url": tokens.url}
    return {
        "plain": replace(encrypted, password=PASSWORD),
        "clear": KafkaLogin("SASL_PLAINTEXT", username=USER, password=PASSWORD),
        "scram": replace(encrypted, mechanism="SCRAM-SHA-512", password="scram-secret"),
        "token": replace(encrypted, mechanism="OAUTHBEARER", **token),
        "certificate": replace(
            encrypted,
            protocol="SSL",
            username="",
            certificate_file=str(certificates / "client.pem"),
            key_file=str(certificates / "client.key"),
        ),
    }
