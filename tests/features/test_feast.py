"""Stored rows are Feast's rows: the same bytes, read and written by plain Feast clients."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from types import ModuleType

import pandas as pd
import pytest
import redis

from features.definitions import DEFINITIONS
from features.feast import on_demand
from features.feast.registry import RegisteredFeatureStore, feast_objects, open_store
from features.kernels.packing import packed_values
from features.online.connection import bulk_string
from features.online.feast_keys import (
    BYTES_TAG,
    RowFormat,
    encode_timestamp,
    unwrap_bytes,
    view_name,
)
from features.online.redis_store import FeastFeatureStore
from features.rows.byte_slices import ByteSlices, readonly_bytes
from features.store import Status
from streams.bus.contract import Stamp

NOW = 1_700_000_000_123
ENTITIES = list(DEFINITIONS)
IDS = {"user": "u", "video": "v", "author": "a", "query": "q € 電影"}


@pytest.fixture(scope="module")
def registered(valkey, tmp_path_factory) -> RegisteredFeatureStore:
    registry = tmp_path_factory.mktemp("registry") / "registry.db"
    store = open_store(registry_path=registry, address=valkey, db=3, project="prod")
    store.apply()
    yield store
    store.tear_down()


@pytest.fixture(scope="module")
def client(registered):
    return registered.feast_client()


@pytest.fixture
def batch(event_table):
    def build(n=30, **more):
        kinds = ["play", "like", "query_click", "shown"]
        return event_table(
            [
                {
                    "kind": kinds[i % 4],
                    "event_time_ms": NOW - i * 777_777,
                    "event_id": f"{more}{i}",
                    "video_id": IDS["video"],
                    "author_id": IDS["author"],
                    "query": IDS["query"],
                    "dwell_ms": i,
                }
                | more
                for i in range(n)
            ]
        )

    return build


@pytest.fixture
def raw(valkey):
    host, port = valkey.split(":")
    with redis.Redis(host=host, port=int(port), db=3) as connection:
        yield connection


@pytest.mark.parametrize("entity", ENTITIES)
@pytest.mark.parametrize("writer", ["push", "write_to_online_store"])
def test_keys_fields_and_values_equal_feast_s_byte_for_byte(
    registered, client, batch, raw, entity, writer
):
    registered.fold(entity, batch(), Stamp("one", 0, 0))
    layout = RowFormat(DEFINITIONS[entity], "prod")
    key = layout.key(IDS[entity])
    ours = raw.hgetall(key)
    raw.delete(key)
    blob = unwrap_bytes(ours[layout.row_field])
    frame = pd.DataFrame(
        {
            DEFINITIONS[entity].id_column: [IDS[entity]],
            "row": [blob],
            "event_timestamp": [datetime.fromtimestamp(NOW / 1000, UTC)],
            "event_time": [datetime.fromtimestamp(NOW / 1000, UTC)],
        }
    )
    view = view_name(DEFINITIONS[entity])
    if writer == "push":
        client.push(f"{view}_push", frame)
    else:
        client.write_to_online_store(view, frame)
    assert raw.hgetall(key) == ours


@pytest.mark.parametrize("entity", ENTITIES)
@pytest.mark.parametrize("later_ms", [0, 3_600_000, 9 * 86_400_000])
def test_a_plain_feast_client_reads_finalized_features(registered, client, batch, entity, later_ms):
    registered.fold(entity, batch(), Stamp("one", 0, 0))
    id_column, now = DEFINITIONS[entity].id_column, NOW + later_ms
    asked = [IDS[entity], "unknown", IDS[entity]]
    answer = client.get_online_features(
        features=client.get_feature_service(entity),
        entity_rows=[{id_column: entity_id, "now_ms": now} for entity_id in asked],
    ).to_dict()
    frame = registered.read(entity, asked, now)
    assert frame.status.tolist() == [Status.PRESENT, Status.ABSENT, Status.PRESENT]
    for name, column in frame.columns.items():
        assert list(answer[name]) == column.tolist(), name


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_plain_feast_client_tells_absent_and_expired_rows_from_empty_ones(
    registered, client, batch, entity
):
    registered.fold(entity, batch(), Stamp("one", 0, 0))
    id_column, now = DEFINITIONS[entity].id_column, NOW + 1
    far = now + DEFINITIONS[entity].ttl_ms + 1
    answer = client.get_online_features(
        features=client.get_feature_service(entity),
        entity_rows=[
            {id_column: IDS[entity], "now_ms": now},
            {id_column: "unknown", "now_ms": now},
            {id_column: IDS[entity], "now_ms": far},
        ],
    ).to_dict()
    assert answer[on_demand.status_feature(entity)] == ["present", "absent", "expired"]


@pytest.mark.parametrize(
    ("now_ms", "fix"),
    [(NOW // 1_000, "seconds: multiply by 1000"), (NOW * 1_000, "microseconds"), (None, "now_ms"),
     (0, "milliseconds"), (-1, "milliseconds")],
)  # fmt: skip
@pytest.mark.parametrize("entity_id", [IDS["user"], "unknown"])
def test_a_time_in_another_unit_is_an_error_that_names_the_unit(
    registered, client, batch, now_ms, fix, entity_id
):
    registered.fold("user", batch(), Stamp("one", 0, 0))
    with pytest.raises(ValueError, match=fix):
        client.get_online_features(
            features=client.get_feature_service("user"),
            entity_rows=[{"user_id": entity_id, "now_ms": now_ms}],
        )


def test_apply_replaces_the_functions_of_an_older_release(valkey, tmp_path, monkeypatch):
    """A registry stores code, which may import a module that no longer exists."""
    scope: dict[str, object] = {}
    text = "def finalize(inputs):\n    import older\n    return older.finalize(inputs)\n"
    exec(text, scope)
    older = ModuleType("older")
    store = open_store(registry_path=tmp_path / "r.db", address=valkey, db=3, project="older")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "older", older)

        def feast_function(entity):
            older.finalize = on_demand.FINALIZERS[entity]
            return scope["finalize"], text

        patch.setattr(on_demand, "feast_function", feast_function)
        for entity in DEFINITIONS:  # apply calls each function, which needs its own entity
            store.feast_client().apply(feast_objects(DEFINITIONS[entity]))
    store.apply()
    client = store.feast_client()
    answer = client.get_online_features(
        features=client.get_feature_service("user"),
        entity_rows=[{"user_id": "u", "now_ms": NOW}],
    ).to_dict()
    assert answer["like_count_all"] == [0]
    store.tear_down()


def test_feast_writes_are_compared_and_set(client, raw):
    """Of rows with the same time the greater bytes win, in any order of writes."""
    layout = RowFormat(DEFINITIONS["user"], "prod")

    def write(blob: bytes, at_s: int) -> bytes:
        frame = pd.DataFrame(
            {"user_id": ["cas"], "row": [blob], "event_time": [datetime.fromtimestamp(at_s, UTC)]}
        )
        client.write_to_online_store("user_tiles", frame)
        return unwrap_bytes(raw.hget(layout.key("cas"), layout.row_field))

    assert write(b"bbb", 1000) == b"bbb"
    assert write(b"aaa", 1000) == b"bbb"
    assert write(b"ccc", 1000) == b"ccc"
    assert write(b"old", 999) == b"ccc"
    assert write(b"new", 1001) == b"new"
    raw.delete(layout.key("cas"))


def test_tearing_down_one_project_leaves_the_other(registered, client, valkey, batch):
    """Feast's own pattern for `prod` also matches `preprod`; neither deletion here does."""
    other = FeastFeatureStore(valkey, 3, "preprod")
    other.fold("user", batch(), Stamp("one", 0, 0))
    registered.fold("user", batch(), Stamp("one", 0, 0))
    config = client.config
    online = client._get_provider().online_store
    online.delete_entity_values(config, ["user_id"])
    assert registered.read("user", ["u"], NOW).status[0] == Status.ABSENT
    registered.tear_down()
    registered.fold("user", batch(), Stamp("one", 0, 0))
    assert other.read("user", ["u"], NOW).status[0] == Status.PRESENT
    assert other.tear_down() == 1
    assert registered.read("user", ["u"], NOW).status[0] == Status.PRESENT


@pytest.mark.parametrize("time_ms", [0, 1, 999, 1000, 1001, NOW, 4_102_444_800_000])
def test_timestamps_equal_protobuf_s_bytes(time_ms):
    from google.protobuf.timestamp_pb2 import Timestamp

    stamp = Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)
    assert encode_timestamp(time_ms) == stamp.SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_values_equal_protobuf_s_bytes(size):
    from feast.protos.feast.types.Value_pb2 import Value

    blob = b"\xff" * size
    value = Value(bytes_val=blob).SerializeToString()
    rows = ByteSlices.from_list([blob, b"next"])
    packed = packed_values(readonly_bytes(rows.data), rows.offsets, BYTES_TAG).tobytes()
    assert packed == bulk_string(value) + bulk_string(Value(bytes_val=b"next").SerializeToString())
    assert unwrap_bytes(value) == blob
    assert unwrap_bytes(Value(string_val="x").SerializeToString()) is None


def test_keys_give_their_ids_back():
    layout = RowFormat(DEFINITIONS["user"], "prod")
    for entity_id in ("u", "ü*?[x]", "prod", "a" * 500):
        assert layout.entity_id(layout.key(entity_id)) == entity_id
        assert RowFormat(DEFINITIONS["user"], "od").entity_id(layout.key(entity_id)) is None
        assert RowFormat(DEFINITIONS["video"], "prod").entity_id(layout.key(entity_id)) is None


def test_folding_and_reading_import_no_feast():
    light = "features.store, features.definitions, features.feast.registry, features.live.worker"
    code = f"import sys, {light}; assert 'feast' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
