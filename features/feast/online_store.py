"""Feast's online store class for these rows: plain Feast clients read, push and delete safely.

Knows Feast's interface; importing it imports Feast (seconds). Does not fold:
`features.online.redis_store` writes rows.

Differences from Feast's `RedisOnlineStore`:
- A Lua script compares and sets in one step, and of two rows with the same event time the
  greater bytes win. Feast's read-then-write loses corrections of the same time and lets
  concurrent writers leave stale rows.
- Deletes touch only this project's keys. Feast's pattern for `prod` also matches `preprod`.
- A read puts the declaration of the view's tag in force, so that a client of the registry knows an
  owner's columns without settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from feast import Entity, FeatureView, RepoConfig, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key_prefix
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from features.definitions import DEFINITIONS
from features.online.feast_keys import DECLARATION_TAG, lease_key, view_name
from features.stored_declaration import Declaration, adopt

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]

# KEYS: the row, and the lease, which this write invalidates. ARGV: time field, serialised time,
# then field/value pairs. No field holds a sortable time, so the stored Timestamp is decoded here
# (two varints). Replies with 0 if the stored row is newer.
_WRITE_IF_NEWER_SCRIPT = """
local function varint(s, i)
  local value, scale = 0, 1
  while true do
    local b = string.byte(s, i)
    value = value + (b % 128) * scale
    i, scale = i + 1, scale * 128
    if b < 128 then return value, i end
  end
end
local function instant(s)
  local seconds, nanos, i = 0, 0, 1
  while i <= #s do
    local tag = string.byte(s, i)
    local value
    value, i = varint(s, i + 1)
    if tag == 8 then seconds = value else nanos = value end
  end
  return seconds, nanos
end
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored then
  local s0, n0 = instant(stored)
  local s1, n1 = instant(ARGV[2])
  if s1 < s0 or (s1 == s0 and n1 < n0) then return 0 end
  if s1 == s0 and n1 == n0 then
    for i = 3, #ARGV, 2 do
      local old = redis.call('HGET', KEYS[1], ARGV[i]) or ''
      if ARGV[i + 1] < old then return 0 end
      if ARGV[i + 1] > old then break end
    end
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV))
redis.call('UNLINK', KEYS[2])
return 1
"""


class TilesOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """Feast's Redis settings; the type names this class."""

    type: Any = "features.feast.online_store.TilesOnlineStore"


class TilesOnlineStore(RedisOnlineStore):  # type: ignore[misc]
    """Feast's Redis store with atomic writes and deletes that stay in their project."""

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Any]:
        _adopt_declaration(table)
        rows: list[Any] = super().online_read(config, table, entity_keys, requested_features)
        return rows

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Any]:
        _adopt_declaration(table)
        return list(await super().online_read_async(config, table, entity_keys, requested_features))

    def _read_features_per_fv(
        self, config: RepoConfig, grouped_refs: Any, *others: Any, **named: Any
    ) -> None:
        for table, _ in grouped_refs:
            _adopt_declaration(table)
        super()._read_features_per_fv(config, grouped_refs, *others, **named)

    async def _read_features_per_fv_async(
        self, config: RepoConfig, grouped_refs: Any, *others: Any, **named: Any
    ) -> None:
        for table, _ in grouped_refs:
            _adopt_declaration(table)
        await super()._read_features_per_fv_async(config, grouped_refs, *others, **named)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        client = self._get_client(config.online_store)
        script = client.register_script(_WRITE_IF_NEWER_SCRIPT)
        with client.pipeline(transaction=False) as pipe:
            for entity_key, values, time, _ in data:
                keys = [_key(config, entity_key), lease_key(config.project, table.name)]
                script(keys=keys, args=_fields(table.name, values, time), client=pipe)
            pipe.execute()
        if progress:
            progress(len(data))

    def delete_entity_values(self, config: RepoConfig, join_keys: list[str]) -> None:
        client = self._get_client(config.online_store)
        leases = [lease_key(config.project, view_name(d)) for d in DEFINITIONS.values()]
        for key in _project_keys(client, config, join_keys):
            client.unlink(key, *leases)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        client = self._get_client(config.online_store)
        fields = [_mmh3(f"{table.name}:{feature.name}") for feature in table.features]
        for key in _project_keys(client, config, table.join_keys):
            with client.pipeline(transaction=True) as pipe:
                pipe.hdel(key, f"_ts:{table.name}", *fields)
                pipe.unlink(lease_key(config.project, table.name)).execute()

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],
        entities: Sequence[Entity],  # noqa: ARG002  Feast's signature
    ) -> None:
        for table in tables:
            self.delete_entity_values(config, table.join_keys)


def _adopt_declaration(table: FeatureView) -> None:
    """Puts the registry's declaration in force, unless this process has declared by itself: the
    on-demand view that finalizes the rows needs it."""
    if stored := table.tags.get(DECLARATION_TAG):
        adopt(_declaration(stored))


@lru_cache(maxsize=4)
def _declaration(stored: str) -> Declaration:
    return Declaration.from_json(stored)


def _key(config: RepoConfig, entity_key: EntityKey) -> bytes:
    version = config.entity_key_serialization_version
    serialised: bytes = serialize_entity_key(entity_key, entity_key_serialization_version=version)
    return serialised + config.project.encode()


def _fields(view: str, values: dict[str, Value], time: datetime) -> list[bytes | str]:
    stamp = Timestamp()
    stamp.FromDatetime(utils.make_tzaware(time))
    fields: list[bytes | str] = [f"_ts:{view}", stamp.SerializeToString()]
    for name in sorted(values):
        fields += [_mmh3(f"{view}:{name}"), values[name].SerializeToString()]
    return fields


def _project_keys(client: Any, config: RepoConfig, join_keys: list[str]) -> Iterator[bytes]:
    """The row keys of these join keys whose project is exactly this one."""
    prefix = _redis_key_prefix(join_keys)
    for key in client.scan_iter(prefix + b"*", count=1000):
        if _project(key, len(prefix), len(join_keys)) == config.project.encode():
            yield key


def _project(key: bytes, at: int, values: int) -> bytes:
    """The key's part after the entity's values; each value is a type, a length and its bytes."""
    for _ in range(values):
        at += 8 + int.from_bytes(key[at + 4 : at + 8], "little")
    return key[at:]
