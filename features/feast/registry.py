"""Feast's objects from the declarations: entities, views, on-demand views, services.

Knows Feast by name and imports it only in `apply` and `feast_client`, because its import takes
seconds; `open_store` does not need it. Does not fold.

Each entity E has a view `E_tiles` with one Bytes feature `row`, a request source `reader` with
`now_ms`, an on-demand view `E_features` that finalizes the declared, typed features from both,
and a service `E` that returns them. The feature `E_row_status` tells an absent row from an empty
and an expired one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.declarations import ColumnType
from features.definitions import DEFINITIONS, EntityDefinition
from features.feast import repository
from features.online.connection import OPEN, StoreLogin
from features.online.feast_keys import DECLARATION_TAG, ROW_FEATURE, view_name
from features.online.redis_store import FeastFeatureStore
from features.stored_declaration import declaration_in_force

if TYPE_CHECKING:
    import feast

FINGERPRINT_TAG = "tidemill_fingerprint"


def open_store(
    *,
    registry_path: Path,
    address: str,
    db: int,
    project: str = "tidemill",
    timeout_s: float = 1.0,
    cached_rows: int = 0,
    login: StoreLogin = OPEN,
) -> RegisteredFeatureStore:
    """The store of a project, with its Feast registry. Connects at the first call.

    Folding processes set `cached_rows` (about 3 kB each).
    """
    return RegisteredFeatureStore(
        registry_path,
        address,
        db,
        project,
        timeout_s=timeout_s,
        cached_rows=cached_rows,
        login=login,
    )


class RegisteredFeatureStore(FeastFeatureStore):
    """A `FeastFeatureStore` that also offers a plain Feast client of the same rows."""

    def __init__(
        self,
        registry_path: Path,
        address: str,
        db: int,
        project: str,
        *,
        timeout_s: float,
        cached_rows: int,
        login: StoreLogin = OPEN,
    ) -> None:
        super().__init__(
            address, db, project, timeout_s=timeout_s, cached_rows=cached_rows, login=login
        )
        self.registry_path = registry_path

    def apply(self) -> None:
        """Writes the declarations into the Feast registry, over those of an older release.

        Raises `DefinitionChanged` when stored rows follow other declarations.
        """
        self.rebuild_id()
        apply(self.feast_client())

    def write_repository(self, folder: Path, log_dir: Path) -> Path:
        """Writes a Feast repository of this store and the event log into the folder."""
        return repository.write_repository(folder, self._config(log_dir))

    def _config(self, log_dir: Path) -> dict[str, Any]:
        connection = self.connection
        login = connection.login.feast_settings(connection.address, connection.db)
        return repository.repo_config(self.project, self.registry_path, login, log_dir)

    def feast_client(self) -> feast.FeatureStore:
        """A plain Feast client: `get_online_features(service, [{join key, now_ms}])`."""
        connection = self.connection
        login = connection.login.feast_settings(connection.address, connection.db)
        return feast_client(self.registry_path, login, self.project)


def feast_client(
    registry_path: Path, connection: Mapping[str, str], project: str
) -> feast.FeatureStore:
    """A plain Feast client of the project. Imports Feast (seconds).

    `connection`: what `StoreLogin.feast_settings` returns.
    """
    from feast import FeatureStore, RepoConfig

    registry_path.parent.mkdir(parents=True, exist_ok=True)
    config = RepoConfig(
        project=project,
        provider="local",
        registry=str(registry_path.absolute()),
        online_store={
            "type": "features.feast.online_store.TilesOnlineStore",
            **connection,
        },
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def apply(client: feast.FeatureStore) -> None:
    """Writes every declared object into the client's registry. Changes no rows."""
    client.apply(list(declared_objects().values()))


def declared_objects() -> dict[str, Any]:
    """Every object by a name of its own, in the order in which they refer to each other."""
    return {
        f"{definition.name}_{number}": each
        for definition in DEFINITIONS.values()
        for number, each in enumerate(feast_objects(definition))
    }


def feast_objects(definition: EntityDefinition) -> list[Any]:
    """One entity's Feast objects, in the order in which they refer to each other."""
    from feast import Entity, FeatureService, RequestSource, ValueType
    from feast import Field as FeastField
    from feast.types import Int64

    entity = Entity(
        name=definition.name, join_keys=[definition.id_column], value_type=ValueType.STRING
    )
    reader = RequestSource(name="reader", schema=[FeastField(name="now_ms", dtype=Int64)])
    tiles = _tiles_view(definition, entity)
    features = _on_demand_view(definition, tiles, reader)
    return [entity, tiles, features, FeatureService(name=definition.name, features=[features])]


def _tiles_view(definition: EntityDefinition, entity: feast.Entity) -> feast.FeatureView:
    from datetime import timedelta

    from feast import FeatureView, FileSource, PushSource
    from feast import Field as FeastField
    from feast.types import Bytes, String

    name = view_name(definition)
    tags = {FINGERPRINT_TAG: str(definition.fingerprint)}
    tags[DECLARATION_TAG] = declaration_in_force().to_json().decode()
    # Feast requires an offline source behind every push source. Rows are rebuilt from the event
    # log instead, so this file is never written.
    offline = FileSource(name=f"{name}_log", path=f"{name}.parquet", timestamp_field="event_time")
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(milliseconds=definition.ttl_ms),
        schema=[
            FeastField(name=definition.id_column, dtype=String),
            FeastField(name=ROW_FEATURE, dtype=Bytes),
        ],
        source=PushSource(name=f"{name}_push", batch_source=offline),
        online=True,
        tags=tags,
    )


def _on_demand_view(
    definition: EntityDefinition, tiles: feast.FeatureView, reader: feast.RequestSource
) -> feast.OnDemandFeatureView:
    from feast.on_demand_feature_view import OnDemandFeatureView

    from features.feast.on_demand import feast_function

    function, text = feast_function(definition.name)
    return OnDemandFeatureView(
        name=f"{definition.name}_features",
        schema=_schema(definition),
        sources=[tiles, reader],
        mode="python",
        udf=function,
        udf_string=text,
    )


def _schema(definition: EntityDefinition) -> list[feast.Field]:
    from feast import Field as FeastField
    from feast.types import Array, Float64, Int64, String

    from features.feast.on_demand import status_feature

    types: dict[ColumnType, Any] = {
        "integer": Int64,
        "number": Float64,
        "texts": Array(String),
        "integers": Array(Int64),
    }
    fields = [
        FeastField(name=name, dtype=types[column_type])
        for name, column_type in definition.column_types.items()
    ]
    return [*fields, FeastField(name=status_feature(definition.name), dtype=String)]
