"""Prints a digest of what each kernel makes of random inputs: `kernel_outputs.py SEED…`.

Run as a process of its own, since `NUMBA_DISABLE_JIT` counts when kernels are imported.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.kernels import labels, packing
from features.online.feast_keys import RowFormat
from features.rows.aggregate import fold_events, group_by_entity
from features.rows.byte_slices import ByteSlices, readonly_bytes, readonly_view
from features.rows.finalize import finalize_rows
from streams.bus.contract import Stamp
from streams.codec.json import scan_events
from streams.contract.clock import DAY_MS
from streams.contract.events import KIND_CODE, KINDS
from streams.contract.schema import EVENT_SCHEMA
from streams.kernels.recent_keys import RecentKeys
from streams.kernels.xxh3 import hashes, joined_hashes

T0 = 1_750_000_000_000


def json_columns(rng: np.random.Generator) -> Any:
    values = [
        orjson.dumps(
            {"event_id": f"e{i}", "user_id": f"u{i}é", "kind": KINDS[i % len(KINDS)],
             "event_time_ms": T0 + i, "video_id": 'v\n"' * int(rng.integers(1, 4)), "query": "a b",
             "dwell_ms": int(rng.integers(0, 10**8)), "new": [1, {"of": None}, -2.5e7]}
        )[: rng.integers(200, 400)]
        for i in range(60)
    ]  # fmt: skip
    rows, columns = scan_events(values, np.array(list(map(len, values))))
    return rows.tolist(), {name: column.to_pylist() for name, column in columns.items()}


def xxh3(rng: np.random.Generator) -> Any:
    words = [rng.bytes(size) for size in range(0, 300, 3)]
    pairs = (pa.chunked_array([some], pa.binary()) for some in (words, words[::-1]))
    return hashes(pa.array(words, pa.binary())).tolist(), joined_hashes(*pairs).tolist()


def recent_keys(rng: np.random.Generator) -> Any:
    memory = RecentKeys(horizon_ms=2)
    batches = rng.integers(0, 5000, (5, 2000)).astype(np.uint64)
    return [memory.see(keys, now).tolist() for now, keys in enumerate(batches)]


def point_in_time(rng: np.random.Generator) -> Any:
    row, time = np.sort(rng.integers(0, 9, 100)), rng.integers(0, 99, 100)
    time = time[np.lexsort((time, row))]
    asked = rng.integers(0, 9, 50), rng.integers(0, 99, 50)
    found = labels.first_from(row, time, *asked), labels.largest_so_far(row, time)
    order = labels.sorted_by_row(row, np.argsort(time)), *labels.spread(asked[0], sum(asked))
    keys = rng.integers(0, 900, 50).astype(np.uint64)
    return [column.tolist() for column in (*found, *order)], bool(labels.repeats(keys))


def moved_slices(rng: np.random.Generator) -> Any:
    data, start = rng.integers(0, 256, 500).astype(np.uint8), rng.integers(0, 400, 20)
    length = rng.integers(0, 100, 20)
    out, offsets = packing.gathered(readonly_bytes(data), start, length)
    room = np.zeros(2100, np.uint8)
    packing.move(readonly_bytes(data), start, length, room, 100 + offsets[:-1])
    packing.scatter(readonly_bytes(out), offsets, room, offsets[:-1].copy())
    digests = packing.hashes(readonly_bytes(out), readonly_view(offsets))
    table, keys = np.zeros(64, np.int64), np.unique(rng.integers(1, 99, 30)).astype(np.uint64)
    packing.enter(table, keys, 1)
    return room.tolist(), digests.tolist(), packing.found_slots(table, keys, keys).tolist()


def event_table(rng: np.random.Generator, n: int) -> pa.Table:
    columns = {
        "event_id": [f"e{x}" for x in rng.integers(0, 300, n)],
        "user_id": [f"u{x}" for x in rng.integers(0, 6, n)],
        "video_id": [f"v{x}" for x in rng.integers(0, 5, n)],
        "author_id": [f"a{x}" for x in rng.integers(0, 3, n)],
        "query": [f"q {x}" for x in rng.integers(0, 9, n)],
        "kind": rng.choice([KIND_CODE[kind] for kind in KINDS], n),
        "event_time_ms": T0 + rng.integers(0, 40 * DAY_MS, n),
        "dwell_ms": rng.integers(0, 2**31, n),
        "duplicate": np.zeros(n, bool),
    }
    return pa.Table.from_arrays(
        [
            pa.array(columns[field.name]).cast(field.type)
            if field.name in columns
            else pa.nulls(n, field.type)
            for field in EVENT_SCHEMA
        ],
        names=EVENT_SCHEMA.names,
    )


def rows(rng: np.random.Generator) -> Any:
    outputs: list[Any] = []
    for definition in DEFINITIONS.values():
        stored: dict[str, bytes] = {}
        for offset in range(4):
            batch = group_by_entity(definition, event_table(rng, 80))
            old = ByteSlices.from_list([stored.get(name) for name in batch.ids])
            folded = fold_events(
                definition, old, batch, Stamp(f"t{offset // 2}", offset % 2, offset)
            )
            for place, blob in zip(folded.changed, folded.rows.to_list(), strict=True):
                stored[batch.ids[place]] = blob
        ids, blobs = sorted(stored), [stored[name] for name in sorted(stored)]
        frame = finalize_rows(definition, ids, blobs, T0 + 30 * DAY_MS)
        names, layout = ByteSlices.from_list([i.encode() for i in ids]), RowFormat(definition, "p")
        packed = layout.packed_sets(names, ByteSlices.from_list(blobs), T0 + np.arange(len(ids)))
        outputs += [blobs, [column.tolist() for column in frame.columns.values()], bytes(packed)]
        outputs.append(layout.packed_keys(names))
    return outputs


def main(seed: int) -> None:
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy says where a uint64 wraps around
    for made in (json_columns, xxh3, recent_keys, point_in_time, moved_slices, rows):
        output = repr(made(np.random.default_rng(seed)))
        print(seed, made.__name__, hashlib.sha256(output.encode()).hexdigest())


if __name__ == "__main__":
    for seed in sys.argv[1:]:
        main(int(seed))
