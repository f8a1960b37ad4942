"""How clients log in to Kafka: TLS, mutual TLS and SASL, in librdkafka's words.

Knows protocols, mechanisms, certificates and where secrets come from. Does not know Faust's client
(`streams.workers.faust.credentials`) nor where the values are set (`deploy.settings.connections`).
No message and no `repr` of this module holds a secret.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, admin

from streams.bus.contract import BusError

_ADMIN: Any = admin  # untyped
_REFUSED = {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED}
_TLS_ALERT = " alert "  # what TLS 1.3 says of a certificate arrives after the handshake
_STEP_S = 0.1
_log = logging.getLogger(f"{__name__}.check")
_log.setLevel(logging.CRITICAL)  # what it finds is raised


class LoginRefused(BusError):
    """The broker refuses this client's login or certificate; to try again changes nothing."""


@dataclass(frozen=True)
class KafkaLogin:
    """One client's identity.

    protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL. mechanism: PLAIN, SCRAM-SHA-256,
    SCRAM-SHA-512 or OAUTHBEARER; with the last, `username` and `password` are the client id and
    secret with which `token_url` gives a token (OAuth 2.0's client credentials). Files are PEM;
    without `ca_file` the system's certificates are trusted. A certificate and its key make TLS
    mutual. `properties` are further ones of librdkafka, `faust_properties` of aiokafka.
    """

    protocol: str = "PLAINTEXT"
    mechanism: str = "PLAIN"
    username: str = ""
    password: str = field(default="", repr=False)
    token_url: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)
    properties: Mapping[str, Any] = field(default_factory=dict, repr=False)
    faust_properties: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def encrypted(self) -> bool:
        return self.protocol.endswith("SSL")

    @property
    def authenticated(self) -> bool:
        return self.protocol.startswith("SASL")

    def client_config(self) -> dict[str, Any]:
        """librdkafka's properties."""
        config: dict[str, Any] = dict(self.properties)
        if self.protocol != "PLAINTEXT":
            config["security.protocol"] = self.protocol
        if self.encrypted:
            config |= _given(
                {
                    "ssl.ca.location": self.ca_file,
                    "ssl.certificate.location": self.certificate_file,
                    "ssl.key.location": self.key_file,
                    "ssl.key.password": self.key_password,
                }
            )
        if self.authenticated:
            config |= {"sasl.mechanism": self.mechanism} | self._sasl()
        return config

    def _sasl(self) -> dict[str, Any]:
        if self.mechanism != "OAUTHBEARER":
            return {"sasl.username": self.username, "sasl.password": self.password}
        return {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": self.username,
            "sasl.oauthbearer.client.secret": self.password,
            "sasl.oauthbearer.token.endpoint.url": self.token_url,
        }

    def ssl_context(self) -> ssl.SSLContext | None:
        """The same for clients in Python; None without TLS.

        Raises:
            OSError, ssl.SSLError: a file cannot be read or is not PEM.
        """
        if not self.encrypted:
            return None
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.certificate_file:
            context.load_cert_chain(
                self.certificate_file, self.key_file or None, self.key_password or None
            )
        return context


PLAIN_TEXT = KafkaLogin()


def _given(config: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in config.items() if value}


def refuse_bad_login(bootstrap_servers: str, login: KafkaLogin, timeout_s: float = 10.0) -> None:
    """Asks the broker once. A broker that is only down passes: clients wait for it.

    Raises:
        LoginRefused: it refuses the login, or TLS fails. The message names what to correct.
    """
    refusals: list[Any] = []

    def keep(error: Any) -> None:
        if error.code() in _REFUSED or _TLS_ALERT in error.str():
            refusals.append(error)

    quiet = {"bootstrap.servers": bootstrap_servers, "error_cb": keep, "logger": _log}
    try:
        client = _ADMIN.AdminClient(login.client_config() | quiet)
    except KafkaException as error:  # a file that is missing or not PEM
        raise LoginRefused(_explained(bootstrap_servers, login, error.args[0].str())) from None
    for _ in range(max(1, round(timeout_s / (2 * _STEP_S)))):
        try:
            client.list_topics(timeout=_STEP_S)
            return
        except KafkaException:
            client.poll(_STEP_S)
        if refusals:
            reason = refusals[0].str()
            raise LoginRefused(_explained(bootstrap_servers, login, reason))


def _explained(bootstrap_servers: str, login: KafkaLogin, reason: str) -> str:
    mechanism = f" with {login.mechanism}" if login.authenticated else ""
    settings = ["protocol"]
    if login.authenticated:
        settings += ["mechanism", "username", "password (or password_file)"]
    if login.encrypted:
        settings += ["ca_file", "certificate_file"]
    return (
        f"the broker at {bootstrap_servers} does not accept the login over {login.protocol}"
        f"{mechanism}: {reason.split(' (after ')[0]}. Correct broker.security: {', '.join(settings)}"
    )


def is_property(name: str, value: Any) -> bool:
    """Whether librdkafka knows the property and takes the value."""
    quiet = {"group.id": "check", "log_level": 0, name: value}
    try:
        _ADMIN.AdminClient(quiet)
    except KafkaException as error:
        unknown: bool = "No such configuration property" not in error.args[0].str()
        if not unknown:
            return False
        raise ValueError(error.args[0].str()) from None
    return True
