"""Settings of a whole stack: defaults < settings.toml < environment (TIDEMILL_*).

Knows every knob and its default. Does not start anything (`deploy.stack`).
Nested keys use a double underscore in the environment: TIDEMILL_GATEWAY__PORT=8080.
A section alone names its kind: TIDEMILL_BROKER=kafka is TIDEMILL_BROKER__KIND=kafka.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

HOME = Path(os.environ.get("TIDEMILL_HOME", ".tidemill"))


INSTANCE = "[A-Za-z0-9_.]{1,64}"  # no dash: it parts a process's kind from its instance


class SettingsError(ValueError):
    """A setting is wrong; the message names its key and where it can be set."""


class Section(BaseModel):
    """One part's settings. A misspelled key is an error, not a default."""

    model_config = ConfigDict(extra="forbid")


class BrokerSettings(Section):
    kind: Literal["embedded", "kafka", "external"] = "embedded"
    bootstrap_servers: str = ""  # filled by the stack unless kind is external
    partitions: int = Field(4, ge=1, le=256)
    doors: int = Field(1, ge=1)  # batcher processes beside each other

    @model_validator(mode="after")
    def _external_has_an_address(self) -> Self:
        return _addressed(self, self.kind, "bootstrap_servers", self.bootstrap_servers)

    @model_validator(mode="after")
    def _embedded_has_one_door(self) -> Self:
        if self.kind == "embedded" and self.doors > 1:
            raise ValueError(
                f"broker.doors is {self.doors}, and the embedded broker has no transactions, "
                "without which only one process may be the door: set broker.doors to 1, or "
                "broker.kind to kafka or external"
            )
        return self

    @property
    def transactional(self) -> bool:
        """The embedded broker's transactions leak; consumers there are idempotent instead."""
        return self.kind != "embedded"


class StoreSettings(Section):
    kind: Literal["valkey", "external"] = "valkey"
    address: str = ""  # host:port,  filled by the stack unless kind is external
    db: int = Field(0, ge=0)  # one database a project: a tear-down flushes it

    @model_validator(mode="after")
    def _external_has_an_address(self) -> Self:
        return _addressed(self, self.kind, "address", self.address)


class TritonSettings(Section):
    kind: Literal["wheel", "external", "in_process"] = "wheel"
    grpc_address: str = ""
    http_address: str = ""
    metrics_address: str = ""

    @model_validator(mode="after")
    def _external_has_an_address(self) -> Self:
        return _addressed(self, self.kind, "grpc_address", self.grpc_address)


class GatewaySettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)  # 0: a free one is chosen


class BlendSettings(Section):
    """The feed's business constraints; a slate that cannot be filled within them is shorter."""

    author_cap: int | None = Field(None, ge=1)  # items of one author in a slate; None: no cap
    # The largest share of a slate's slots by provenance, e.g. {"aigc" = 0.2}; rounded down.
    provenance_caps: dict[Literal["human", "aigc"], Annotated[float, Field(ge=0, le=1)]] = {}


class ExploreSettings(Section):
    """What the feed gives up to learn. Slots explore too; how is fixed by the selector."""

    # Of the feed's answers: ranked by fusion weights drawn from the user's own Dirichlet, with
    # their density logged, instead of by its mean. A tenth: near the share of slots that explore.
    weights_share: float = Field(0.1, ge=0, le=1)


class ClockSettings(Section):
    """rate 1 from origin 0 is the wall clock."""

    origin_wall_ms: int = 0
    origin_ms: int = 0
    rate: float = Field(1.0, gt=0)


class AdmissionSettings(Section):
    lateness_ms: int = 3_600_000  # older than this: admitted, marked late
    horizon_ms: int = 400 * 86_400_000  # older than this: dead letter "ancient"
    future_ms: int = 300_000  # further ahead than this: dead letter "future"
    duplicate_horizon_ms: int = 86_400_000  # the same (user_id, event_id) within it counts once


class LogSettings(Section):
    """How long the event log and feedback are kept; in whole hours of arrival, UTC."""

    retention_days: int | None = Field(None, ge=1)  # stack clock; None: everything is kept


class FeedbackSettings(Section):
    """Attribution window per task, in ms of the stack clock; maturity is their maximum."""

    windows_ms: dict[str, int] = {
        "play": 600_000,
        "long_view": 1_800_000,
        "like": 3_600_000,
        "follow": 3_600_000,
        "order": 86_400_000,
        "query_click": 600_000,
    }


class SecuritySettings(Section):
    """Keys come from the environment or are made at first start under the stack's home, never from the repository."""

    api_keys: dict[str, list[Literal["events", "recommend", "admin"]]] = {}
    impression_key: str = ""  # hex; made on first start when empty


class TelemetrySettings(Section):
    otlp_endpoint: str = ""  # e.g. http://127.0.0.1:4318; empty: no export
    sample_ratio: float = Field(1.0, ge=0, le=1)
    metrics_host: str = "127.0.0.1"
    metrics_ports: dict[str, int] = {}  # process -> port of its /metrics; filled by the stack


_S = TypeVar("_S", bound=Section)


def _addressed(section: _S, kind: str, key: str, value: str) -> _S:
    if kind == "external" and not value:
        raise ValueError(f"kind is external, so {key} must name the server (host:port)")
    return section


class _Environment(EnvSettingsSource):
    """TIDEMILL_BROKER=kafka: a section that is one word names its kind."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        if isinstance(value, str) and not value.lstrip().startswith(("{", "[")):
            return {"kind": value}
        return super().decode_complex_value(field_name, field, value)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TIDEMILL_", env_nested_delimiter="__", extra="forbid"
    )

    home: Path = HOME
    # Where several processes of one kind run: a name that this one keeps over restarts and shares
    # with no other of its kind.
    instance: str = Field("", pattern=f"^({INSTANCE})?$")
    broker: BrokerSettings = BrokerSettings()
    store: StoreSettings = StoreSettings()
    triton: TritonSettings = TritonSettings()
    gateway: GatewaySettings = GatewaySettings()
    blend: BlendSettings = BlendSettings()
    explore: ExploreSettings = ExploreSettings()
    clock: ClockSettings = ClockSettings()
    admission: AdmissionSettings = AdmissionSettings()
    log: LogSettings = LogSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    security: SecuritySettings = SecuritySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml_file = os.environ.get("TIDEMILL_SETTINGS", "settings.toml")
        return (
            init_settings,
            _Environment(settings_cls),
            TomlConfigSettingsSource(settings_cls, toml_file=toml_file),
        )

    @property
    def log_dir(self) -> Path:
        """The event log: Parquet, the only truth."""
        return self.home / "log"

    @property
    def feedback_dir(self) -> Path:
        return self.home / "feedback"

    @property
    def releases_dir(self) -> Path:
        """Bundles and manifests."""
        return self.home / "releases"

    @property
    def repository_dir(self) -> Path:
        """Triton's generated model repository."""
        return self.home / "repository"

    @property
    def registry_path(self) -> Path:
        return self.home / "registry.db"


def load(**overrides: Any) -> Settings:
    """The settings of this process; errors name the key and every place to set it.

    Raises:
        SettingsError: a key is unknown or its value does not fit.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_explain(e["loc"], e["msg"]) for e in error.errors())
        ) from None
    except ValueError as error:  # a settings file or a JSON value that does not parse
        raise SettingsError(str(error)) from error


def _explain(location: tuple[int | str, ...], message: str) -> str:
    keys = [str(key) for key in location]
    variable = "TIDEMILL_" + "__".join(keys).upper()
    return f"{'.'.join(keys)} ({variable}, or settings.toml): {message}"
