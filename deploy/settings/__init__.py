"""Settings of a stack: defaults < settings.toml < environment (TIDEMILL_*).

Knows every setting, its default and what values it takes. Does not start anything
(`deploy.stack`) and does not know old or misspelled names (`deploy.renamed`,
`deploy.settings.names`).
Nested keys use a double underscore in the environment: TIDEMILL_GATEWAY__PORT=8080.
A section by itself sets its kind: TIDEMILL_BROKER=kafka is TIDEMILL_BROKER__KIND=kafka.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from deploy import renamed
from deploy.settings import names
from deploy.settings.access import OidcSettings, Rate, ScopeName
from deploy.settings.connections import BrokerSettings as BrokerSettings
from deploy.settings.connections import StoreSettings as StoreSettings
from deploy.settings.connections import TritonSettings as TritonSettings
from deploy.settings.declared import DeclaredSignals, FeaturesSettings, ItemsSettings, UsersSettings
from deploy.settings.feed import BlendSettings, ExperimentSettings, ExploreSettings
from deploy.settings.serving_models import ModelsSettings
from deploy.settings.updates import UpdatesSettings
from deploy.settings.values import Host, Milliseconds, Port, Section, Url

FILES = ("settings.toml", "tidemill.toml")  # the first that exists in the current folder
HOME = Path(os.environ.get("TIDEMILL_HOME", ".tidemill"))


INSTANCE = "[A-Za-z0-9_.]{1,64}"  # no dash: it separates a process's kind from its instance


class SettingsError(ValueError):
    """A setting is wrong; the message names its key and how to set it."""


class IngestSettings(Section):
    replicas: int = Field(1, ge=1)  # batcher processes; more than one needs Apache Kafka


class RequestsSettings(Section):
    # Processes that answer `recommendation.requests`, at most one for each of the topic's
    # partitions; more than one needs Apache Kafka.
    replicas: int = Field(1, ge=1)


class GatewaySettings(Section):
    host: Host = "127.0.0.1"
    port: Port = 0  # 0: the stack chooses a free one
    workers: int = Field(1, ge=1, le=64)  # processes that answer on the port
    # Origins whose pages may call the API from a browser, e.g. ["https://shop.example"].
    cors_origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]] = []

    @property
    def url(self) -> str:
        """The address on this machine: a host that stands for every interface is the loopback's."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class ClockSettings(Section):
    """Rate 1 and equal origins give the wall clock."""

    origin_wall_ms: Milliseconds = 0
    origin_ms: Milliseconds = 0
    rate: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)


class AdmissionSettings(Section):
    lateness_ms: Milliseconds = 3_600_000  # older events are admitted and marked late
    horizon_ms: Milliseconds = 400 * 86_400_000  # older events become dead letters, cause "ancient"
    future_ms: Milliseconds = 300_000  # events further ahead: cause "future"
    duplicate_horizon_ms: Milliseconds = 86_400_000  # (user_id, event_id) counts once within it
    # Kinds that a user can state of an item only once within that horizon; further ones are marked
    # as duplicates. A person's deliberate actions in one minute, beyond which they are, too.
    idempotent: tuple[Literal["like", "follow", "share"], ...] = ("like", "follow", "share")
    actions_a_minute: int | None = Field(120, ge=1)


class LogSettings(Section):
    """Retention of the event log and feedback, in whole hours of arrival (UTC), and logged pools."""

    retention_days: int | None = Field(None, ge=1)  # stack clock; None: no limit
    # Share of feed requests whose whole scored pool is logged beside the served features; 0: none.
    pools_share: float = Field(0.1, ge=0, le=1)


class SupervisionSettings(Section):
    """When a part that runs counts as frozen and is killed and started again; 0: never."""

    unanswered_s: float = Field(10.0, ge=0, le=86_400)  # without an answer to a probe
    stopped_s: float = Field(1.0, ge=0, le=86_400)  # stopped by a signal, as by kill -STOP


PROCESS_NAMES = ("batcher", "log-writer", "features", "gateway", "kafka-requests", "updater")
TASKS = ("play", "long_view", "like", "follow", "order", "query_click", "skip")


class FeedbackSettings(Section):
    """Attribution window of each task, in ms of the stack clock. The longest is the maturity.

    Declared signals state theirs in `[signals.NAME]`.
    """

    windows_ms: dict[str, Annotated[int, Field(ge=1, le=2**53)]] = {
        "play": 600_000,
        "long_view": 1_800_000,
        "like": 3_600_000,
        "follow": 3_600_000,
        "order": 86_400_000,
        "query_click": 600_000,
    }

    # Tasks that are also credited to the impression of another item whose token they carry, within
    # the task's window: an order that follows a query click or a similar item. Others are rejected.
    across_items: list[str] = []

    @field_validator("windows_ms")
    @classmethod
    def _name_tasks(cls, windows: dict[str, int]) -> dict[str, int]:
        for name in windows:
            if name not in TASKS:
                raise ValueError(f"{name!r} is none of the tasks {', '.join(TASKS)}")
        return windows


class SecuritySettings(Section):
    """Keys from the environment, or created in the home at the first start."""

    api_keys: dict[Annotated[str, Field(min_length=1)], list[ScopeName]] = Field({}, repr=False)
    oidc: OidcSettings = OidcSettings()
    rate_limits: dict[ScopeName, Rate] = {}  # of each key, token subject or address
    # Hex; created at the first start if empty.
    impression_key: str = Field("", repr=False)

    @field_validator("impression_key")
    @classmethod
    def _is_hex(cls, key: str) -> str:
        if key and not re.fullmatch("([0-9A-Fa-f]{2}){16,}", key):
            raise ValueError("must be 32 or more hex digits, an even number (openssl rand -hex 32)")
        return key


class TelemetrySettings(Section):
    otlp_endpoint: Url = ""  # e.g. http://127.0.0.1:4318; empty: no export
    sample_ratio: float = Field(1.0, ge=0, le=1)
    metrics_host: Host = "127.0.0.1"
    metrics_ports: dict[str, Port] = {}  # process -> port of its /metrics; chosen by the stack
    log_format: Literal["json", "text"] = "json"  # of the processes' logs

    @field_validator("metrics_ports")
    @classmethod
    def _name_processes(cls, ports: dict[str, int]) -> dict[str, int]:
        for name in ports:
            if not any(name == each or name.startswith(f"{each}-") for each in PROCESS_NAMES):
                raise ValueError(f"{name!r} is none of the processes {', '.join(PROCESS_NAMES)}")
        return ports


class _Environment(EnvSettingsSource):
    """TIDEMILL_BROKER=kafka: a section that is one word names its kind."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        if isinstance(value, str) and not value.lstrip().startswith(("{", "[")):
            return {"kind": value}
        return super().decode_complex_value(field_name, field, value)


class _Renamed(PydanticBaseSettingsSource):
    """Another source, its old keys under their present names."""

    def __init__(
        self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        return renamed.current_settings(self._source())


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TIDEMILL_", env_nested_delimiter="__", extra="forbid"
    )

    home: Path = HOME
    # Needed where several processes of one kind run: unique among them, the same over restarts.
    instance: str = Field("", pattern=f"^({INSTANCE})?$")
    broker: BrokerSettings = BrokerSettings()
    ingest: IngestSettings = IngestSettings()
    requests: RequestsSettings = RequestsSettings()
    store: StoreSettings = StoreSettings()
    triton: TritonSettings = TritonSettings()
    gateway: GatewaySettings = GatewaySettings()
    blend: BlendSettings = BlendSettings()
    explore: ExploreSettings = ExploreSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    models: ModelsSettings = ModelsSettings()
    updates: UpdatesSettings = {}
    clock: ClockSettings = ClockSettings()
    admission: AdmissionSettings = AdmissionSettings()
    log: LogSettings = LogSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    items: ItemsSettings = ItemsSettings()
    users: UsersSettings = UsersSettings()
    signals: DeclaredSignals = {}
    features: FeaturesSettings = FeaturesSettings()
    security: SecuritySettings = SecuritySettings()
    supervision: SupervisionSettings = SupervisionSettings()
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
        if _stored.get():
            return (_Renamed(settings_cls, init_settings),)
        sources = (
            init_settings,
            _Environment(settings_cls),
            TomlConfigSettingsSource(settings_cls, toml_file=_settings_file()),
        )
        return tuple(_Renamed(settings_cls, source) for source in sources)

    @model_validator(mode="after")
    def _embedded_has_one_replica(self) -> Self:
        for section, count in (
            ("ingest", self.ingest.replicas),
            ("requests", self.requests.replicas),
        ):
            if not self.broker.transactional and count > 1:
                raise ValueError(
                    f"{section}.replicas is {count}, and the embedded broker (which auto may choose) "
                    f"cannot divide a topic's work among several: set {section}.replicas to 1, or "
                    "broker.kind to kafka or external"
                )
        return self

    @property
    def log_dir(self) -> Path:
        """The event log, from which every other store can be rebuilt."""
        return self.home / "log"

    @property
    def erasures_path(self) -> Path:
        """The erasure journal."""
        return self.log_dir / "erasures.jsonl"

    @property
    def blocked_queries_path(self) -> Path:
        """The queries that are taken down."""
        return self.home / "blocked-queries.json"

    @property
    def rules_path(self) -> Path:
        """The standing rules."""
        return self.home / "rules.json"

    @property
    def experiments_path(self) -> Path:
        """The experiments; their last evaluation lies beside it."""
        return self.home / "experiments.json"

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


_stored: ContextVar[bool] = ContextVar("stored", default=False)


@contextmanager
def _without_sources() -> Iterator[None]:
    token = _stored.set(True)
    try:
        yield
    finally:
        _stored.reset(token)


def from_stored(values: Mapping[str, Any]) -> Settings:
    """The settings that a stack has written down; environment and files do not count.

    Raises:
        SettingsError: a key is unknown or its value does not fit.
    """
    with _without_sources():
        return _checked(lambda: Settings(**values))


def load(**overrides: Any) -> Settings:
    """The settings of this process; errors name the key and how to set it, and no secret.

    Raises:
        SettingsError: a key is unknown or its value does not fit, or the settings file is missing.
    """
    if problems := [*names.unknown_variables(os.environ, Settings), *_missing_file()]:
        raise SettingsError("\n".join(problems))
    return _checked(lambda: Settings(**overrides))


def _settings_file() -> str:
    named = os.environ.get("TIDEMILL_SETTINGS")
    return named or next(filter(os.path.exists, FILES), FILES[0])


def _missing_file() -> Iterator[str]:
    path = os.environ.get("TIDEMILL_SETTINGS")
    if path is not None and not Path(path).is_file():
        yield (
            f"TIDEMILL_SETTINGS names {path!r}, and there is no such file (looked in {Path.cwd()}): "
            "correct the path, or unset the variable"
        )


def _checked(read: Callable[[], Settings]) -> Settings:
    try:
        return read()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        text = "\n".join(names.explain(e["loc"], e["type"], e["msg"], Settings) for e in problems)
    except tomllib.TOMLDecodeError as error:
        text = f"{_settings_file()}: {error}"
    except ValueError as error:  # a variable's JSON cannot be parsed
        text = "\n".join(names.broken_json(os.environ)) or str(error)
    raise SettingsError(text)
