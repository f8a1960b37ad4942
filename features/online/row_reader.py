"""Reads of stored rows: bytes by id, and every id that has a row.

Knows Feast's keys and fields, and that each read carries the project's rebuild id. Does not
know what a row means, nor writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from features.definitions import DEFINITIONS
from features.online.connection import Connection, pack_hget
from features.online.feast_keys import REBUILD_ID_FIELD, RowFormat, metadata_key, unwrap_bytes
from features.store import EntityName

T = TypeVar("T")


class RowReader:
    """Rows of one Feast project. Every method raises `StoreDown` if the store does not answer."""

    def __init__(self, connection: Connection, project: str) -> None:
        self.connection = connection
        self.metadata_key = metadata_key(project)
        self.formats: dict[EntityName, RowFormat] = {
            name: RowFormat(definition, project) for name, definition in DEFINITIONS.items()
        }

    def read(self, entity: EntityName, ids: Sequence[str]) -> tuple[list[bytes | None], int | None]:
        """(rows in the order of `ids`, None where there is none; the rebuild id in the store,
        None for an empty one), in one exchange."""
        reads = map(self.formats[entity].packed_read, ids)
        packed = b"".join((pack_hget(self.metadata_key, REBUILD_ID_FIELD), *reads))
        rebuild_id, *values = self.connection.exchange([packed], 1 + len(ids))
        return [unwrap_bytes(v) for v in values], None if rebuild_id is None else int(rebuild_id)

    def ids(self, entity: EntityName) -> Iterator[str]:
        """Every id that has a row, tombstones included, unordered; SCAN may repeat some."""
        layout = self.formats[entity]
        with self.connection.errors_as_store_down():
            for key in self.connection.client.scan_iter(layout.pattern(), count=1000):
                entity_id = layout.entity_id(key)
                if entity_id is not None:
                    yield entity_id

    def lease_keys(self) -> list[bytes]:
        return [layout.lease_key for layout in self.formats.values()]


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter (`itertools.batched` of 3.12)."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
