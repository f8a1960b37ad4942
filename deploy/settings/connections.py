"""Settings of the servers: `[broker]`, `[store]`, `[triton]`, and the logins of the first two.

Knows keys, files and which values belong together. Does not know clients
(`streams.bus.kafka.login`, `features.online.connection`). Secrets come from the environment or
from a file; no message holds one.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from deploy.settings.values import Address, Addresses, Section, Url

Value = str | int | float | bool
# What exactness rests on, and what has a setting of its own.
_OWN = ("sasl.", "ssl.ca.", "ssl.certificate.", "ssl.key.", "security.protocol", "oauthbearer")
_RESERVED = frozenset(
    [
        "auto.offset.reset",
        "bootstrap.servers",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "error_cb",
        "group.id",
        "group.instance.id",
        "isolation.level",
        "logger",
        "max.in.flight.requests.per.connection",
        "partitioner",
        "session.timeout.ms",
        "transactional.id",
        "transaction.timeout.ms",
    ]
)
_FAUST_RESERVED = frozenset(
    [
        "auto_offset_reset",
        "bootstrap_servers",
        "enable_auto_commit",
        "group_id",
        "group_instance_id",
        "isolation_level",
        "key_deserializer",
        "loop",
        "partition_assignment_strategy",
        "sasl_mechanism",
        "sasl_plain_password",
        "sasl_plain_username",
        "sasl_oauth_token_provider",
        "security_protocol",
        "session_timeout_ms",
        "ssl_context",
        "value_deserializer",
    ]
)


class _TlsSection(Section):
    """Certificates in PEM."""

    ca_file: str = ""  # "": the system's certificates
    certificate_file: str = ""  # with key_file: mutual TLS
    key_file: str = ""
    key_password: str = Field("", repr=False)

    @field_validator("ca_file", "certificate_file", "key_file")
    @classmethod
    def _is_file(cls, path: str) -> str:
        if path and not Path(path).is_file():
            raise ValueError(f"there is no file {path!r} (looked from {Path.cwd()})")
        return str(Path(path).resolve()) if path else ""

    @model_validator(mode="after")
    def _key_has_certificate(self) -> Self:
        if self.key_file and not self.certificate_file:
            raise ValueError("key_file is set without certificate_file: set both for mutual TLS")
        return self


class BrokerSecuritySettings(_TlsSection):
    """How all clients log in to an external broker."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    username: str = ""  # OAUTHBEARER: the client id
    password: str = Field("", repr=False)  # OAUTHBEARER: the client secret
    password_file: str = ""  # read at each start of a process; instead of password
    token_url: Url = ""  # OAUTHBEARER
    librdkafka: dict[str, Value] = {}  # further properties of most clients
    aiokafka: dict[str, Value] = {}  # and of the workers that fold and log

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL"):
            needed = {"username": self.username, "password": self.password or self.password_file}
            if self.mechanism == "OAUTHBEARER":
                needed["token_url"] = self.token_url
            for name, value in needed.items():
                if not value:
                    raise ValueError(f"{self.protocol} with {self.mechanism} needs {name}")
        elif self.username or self.password or self.password_file:
            raise ValueError(
                f"a username or password is set and the protocol {self.protocol} sends none: set "
                "protocol to SASL_SSL (or SASL_PLAINTEXT)"
            )
        if self.ca_file and not self.protocol.endswith("SSL"):
            raise ValueError(f"ca_file is set and the protocol {self.protocol} is not encrypted")
        _one_secret(self.password, self.password_file)
        return self

    @field_validator("librdkafka")
    @classmethod
    def _librdkafka_knows(cls, properties: dict[str, Value]) -> dict[str, Value]:
        if properties:
            from streams.bus.kafka.login import is_property

            for name, value in properties.items():
                if name in _RESERVED or name.startswith(_OWN):
                    raise ValueError(f"{name!r} is set by tidemill or has a setting of its own")
                if not is_property(name, value):
                    raise ValueError(f"librdkafka has no property {name!r}")
        return properties

    @field_validator("aiokafka")
    @classmethod
    def _aiokafka_knows(cls, properties: dict[str, Value]) -> dict[str, Value]:
        if properties:
            from inspect import signature

            from aiokafka import AIOKafkaConsumer

            known = set(signature(AIOKafkaConsumer).parameters) - _FAUST_RESERVED
            for name in properties:
                if name in _FAUST_RESERVED:
                    raise ValueError(f"{name!r} is set by tidemill or has a setting of its own")
                if name not in known:
                    raise ValueError(f"aiokafka has no property {name!r}{_near(name, known)}")
        return properties

    def values(self) -> dict[str, Any]:
        """The arguments of `streams.bus.kafka.login.KafkaLogin`, the secret read from its file."""
        names = ("protocol", "mechanism", "username", "token_url", "ca_file", "certificate_file")
        return {name: getattr(self, name) for name in (*names, "key_file", "key_password")} | {
            "password": self.secret(),
            "properties": self.librdkafka,
            "faust_properties": self.aiokafka,
        }

    def secret(self) -> str:
        return _secret(self.password, self.password_file)


class StoreSecuritySettings(_TlsSection):
    """How all clients log in to an external store."""

    username: str = ""  # "": the server's default user
    password: str = Field("", repr=False)
    password_file: str = ""  # read at each start of a process; instead of password
    tls: bool = False
    sentinels: Addresses = ""  # then the store's address is asked of these
    sentinel_service: str = "mymaster"  # the name under which they watch it

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.ca_file and not self.tls:
            raise ValueError("ca_file is set and tls is false: set tls to true")
        if self.username and not (self.password or self.password_file):
            raise ValueError("a username needs password (or password_file)")
        _one_secret(self.password, self.password_file)
        return self

    def values(self) -> dict[str, Any]:
        """The arguments of `features.online.connection.StoreLogin`, the secret from its file."""
        names = ("username", "tls", "ca_file", "certificate_file", "key_file", "key_password")
        return {name: getattr(self, name) for name in names} | {
            "password": self.secret(),
            "sentinels": self.sentinels,
            "sentinel_service": self.sentinel_service,
        }

    def secret(self) -> str:
        return _secret(self.password, self.password_file)


def _one_secret(password: str, path: str) -> None:
    if password and path:
        raise ValueError("password and password_file are both set: keep one")
    if path and not Path(path).is_file():
        raise ValueError(f"password_file: there is no file {path!r} (looked from {Path.cwd()})")


def _secret(password: str, path: str) -> str:
    return Path(path).read_text(encoding="utf-8").rstrip("\r\n") if path else password


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


_S = TypeVar("_S", bound=Section)


def _addressed(section: _S, kind: str, key: str, value: str) -> _S:
    if kind == "external" and not value:
        raise ValueError(f"kind is external, so {key} must name the server (host:port)")
    return section


class BrokerSettings(Section):
    # auto: Apache Kafka where Java and its jars can be had, else the embedded broker.
    kind: Literal["auto", "embedded", "kafka", "external"] = "auto"
    bootstrap_servers: Addresses = ""  # chosen by the stack unless kind is external
    partitions: int = Field(4, ge=1, le=256)
    security: BrokerSecuritySettings = BrokerSecuritySettings()

    @model_validator(mode="after")
    def _external_has_an_address(self) -> Self:
        if self.kind != "external" and self.security != BrokerSecuritySettings():
            raise ValueError("security is for a broker of your own: set kind to external")
        return _addressed(self, self.kind, "bootstrap_servers", self.bootstrap_servers)

    @property
    def transactional(self) -> bool:
        """The embedded broker's transactions leak; consumers there are idempotent instead.

        False as long as the stack has not chosen (`auto`).
        """
        return self.kind in ("kafka", "external")


class StoreSettings(Section):
    kind: Literal["valkey", "external"] = "valkey"
    address: Address = ""  # host:port,  filled by the stack unless kind is external
    db: int = Field(0, ge=0)  # one for each project: a tear-down flushes it
    security: StoreSecuritySettings = StoreSecuritySettings()

    @model_validator(mode="after")
    def _external_has_an_address(self) -> Self:
        if self.kind != "external" and self.security != StoreSecuritySettings():
            raise ValueError("security is for a store of your own: set kind to external")
        return _addressed(self, self.kind, "address", self.address or self.security.sentinels)


class TritonSettings(Section):
    kind: Literal["wheel", "external", "in_process"] = "wheel"
    grpc_address: Address = ""
    http_address: Address = ""
    metrics_address: Address = ""

    @model_validator(mode="after")
    def _external_has_an_address(self) -> Self:
        return _addressed(self, self.kind, "grpc_address", self.grpc_address)
