"""Settings of a whole stack: defaults < settings.toml < environment (TIDEMILL_*).

Knows every knob and its default. Does not start anything (`deploy.stack`).
Nested keys use a double underscore in the environment: TIDEMILL_GATEWAY__PORT=8080.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

HOME = Path(os.environ.get("TIDEMILL_HOME", ".tidemill"))


class BrokerSettings(BaseModel):
    kind: Literal["embedded", "kafka", "external"] = "embedded"
    bootstrap_servers: str = ""  # filled by the stack unless kind is external
    partitions: int = Field(4, ge=1, le=256)


class StoreSettings(BaseModel):
    kind: Literal["valkey", "external"] = "valkey"
    address: str = ""  # host:port,  filled by the stack unless kind is external
    db: int = Field(0, ge=0)  # one database a project: a tear-down flushes it


class TritonSettings(BaseModel):
    kind: Literal["wheel", "external", "in_process"] = "wheel"
    grpc_address: str = ""
    http_address: str = ""
    metrics_address: str = ""


class GatewaySettings(BaseModel):
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)  # 0: a free one is chosen


class ClockSettings(BaseModel):
    """rate 1 from origin 0 is the wall clock."""

    origin_wall_ms: int = 0
    origin_ms: int = 0
    rate: float = Field(1.0, gt=0)


class AdmissionSettings(BaseModel):
    lateness_ms: int = 3_600_000  # older than this: admitted, marked late
    horizon_ms: int = 400 * 86_400_000  # older than this: dead letter "ancient"
    future_ms: int = 300_000  # further ahead than this: dead letter "future"
    duplicate_horizon_ms: int = 86_400_000  # the same (user_id, event_id) within it counts once


class FeedbackSettings(BaseModel):
    """Attribution window per task, in ms of the stack clock; maturity is their maximum."""

    windows_ms: dict[str, int] = {
        "play": 600_000,
        "long_view": 1_800_000,
        "like": 3_600_000,
        "follow": 3_600_000,
        "order": 86_400_000,
        "query_click": 600_000,
    }


class SecuritySettings(BaseModel):
    """Keys come from the environment or are made at first start under the stack's home, never from the repository."""

    api_keys: dict[str, list[Literal["events", "recommend", "admin"]]] = {}
    impression_key: str = ""  # hex; made on first start when empty


class TelemetrySettings(BaseModel):
    otlp_endpoint: str = ""  # e.g. http://127.0.0.1:4318; empty: no export
    sample_ratio: float = Field(1.0, ge=0, le=1)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TIDEMILL_", env_nested_delimiter="__", extra="forbid"
    )

    home: Path = HOME
    broker: BrokerSettings = BrokerSettings()
    store: StoreSettings = StoreSettings()
    triton: TritonSettings = TritonSettings()
    gateway: GatewaySettings = GatewaySettings()
    clock: ClockSettings = ClockSettings()
    admission: AdmissionSettings = AdmissionSettings()
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
            env_settings,
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
