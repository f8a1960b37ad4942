"""The fold, compiled: a row's bytes and its new events in, the new row's bytes out.

Knows the layout of a row's bytes (`features.kernels.layout`) and how an event adds to a row, as
tables of numbers (`features.kernels.fold_inputs`). Does not know declarations. Each row is read
once and written once, part by part (`features.kernels.merge`): flat arrays of every part of
every row cost more than merging them. Importing takes a second, so readers do not.
"""

from __future__ import annotations

import numpy as np

from features.kernels.fold_inputs import Events, FoldOutput, Origin, RowBuffers, Rules
from features.kernels.layout import (
    DIGEST_BYTES,
    ENTRY_BYTES,
    HEAD_BYTES,
    NARROW_TILE_BYTES,
    RECENT_BYTES,
    SOURCE_OFFSET_BYTES,
    TILE_BYTES,
    VERSION,
)
from features.kernels.merge import (
    OldRow,
    Scratch,
    add_tiles,
    merged_lists,
    merged_recent,
    merged_tiles,
    newest_events,
    recent_at,
)
from features.kernels.packing import copied, xxh64
from streams.kernels.arrays import Int64s, MutableInt64s
from streams.kernels.compile import borrowing, compile_now, compiled
from streams.kernels.raw import prefetch, put_word, signed, word_at

SOURCE_OFFSETS_KEPT = 8  # per row; a fenced writer's topic id and partition are among the last
SAME_EVENT_MS = 86_400_000  # an id used again further apart in event time is another event
_AHEAD, _LINE = 4, 64  # rows whose memory is asked for while another is folded; bytes
_VERSION, _FIRST_SOURCE = np.uint64(VERSION), HEAD_BYTES // 8
_HALF, _QUARTER = np.uint64(32), np.uint64(16)
_LOW, _SHORT = np.uint64(2**32 - 1), np.uint64(2**16 - 1)


@compiled
def fold_rows(stored: RowBuffers, events: Events, rules: Rules, origin: Origin) -> FoldOutput:
    """The rows that change, in the order of `stored`."""
    count = len(stored.place)
    most, longest, room = _bounds(stored, events, rules)
    scratch = _scratch(most, longest, len(events.order), rules)
    out, offsets = np.empty(room, np.uint8), np.zeros(count + 1, np.int64)
    changed, newest_ms = np.empty(count, np.int64), np.empty(count, np.int64)
    before = np.empty(count, np.uint64)
    done = foreign = 0
    for k in range(count):
        r = stored.place[k]
        _ask_ahead(stored, k + _AHEAD)
        old, is_foreign = _old_row(stored, k, rules, origin)
        foreign += is_foreign
        if events.first[r] == events.first[r + 1]:
            continue
        n = _fresh(old, events, r, origin, scratch)
        if not n:
            continue
        stop, newest_ms[done] = _folded_row(
            old, events, rules, origin, scratch, n, out, offsets[done]
        )
        changed[done], offsets[done + 1] = k, stop
        before[done] = _digest(old, stored.size[k])
        done += 1
    bounds = offsets[: done + 1]
    return FoldOutput(
        changed[:done], out[: bounds[done]], bounds, before[:done], newest_ms[:done], foreign
    )


@compiled
def _scratch(most: int, longest: int, events: int, rules: Rules) -> Scratch:
    """For rows of up to `longest` bytes, with up to `most` events each and `events` together."""
    most_rules = 0
    for k in range(len(rules.first) - 1):
        most_rules = max(most_rules, rules.first[k + 1] - rules.first[k])
    table_size = 1
    while table_size < 2 * events:
        table_size *= 2
    tiles, entries = most * most_rules, rules.list_keeps.sum()
    return Scratch(
        np.zeros(table_size, np.int64),
        np.empty(max(1, most), np.int64),
        np.empty(tiles, np.uint64),
        np.empty(tiles, np.int64),
        np.empty(2 * tiles + longest // 8 + 2, np.uint64),
        np.empty(max(rules.recent, entries) + 1, np.int64),
        np.empty((2 * entries + 2, 3), np.int64),
    )


@borrowing
def _ask_ahead(stored: RowBuffers, k: int) -> None:
    start = stored.start
    if k < len(start) and start[k] < len(stored.cached):
        for line in range(start[k], start[k] + stored.size[k], _LINE):
            prefetch(stored.cached, line)


@borrowing
def _bounds(stored: RowBuffers, events: Events, rules: Rules) -> tuple[int, int, int]:
    """The most events of one row, the longest row's bytes, and what all new ones take at most."""
    most, longest, room = 0, 0, 0
    for k in range(len(stored.place)):
        r, size = stored.place[k], stored.size[k]
        begin, end = events.first[r], events.first[r + 1]
        room += size + HEAD_BYTES + SOURCE_OFFSET_BYTES + DIGEST_BYTES
        most, longest = max(most, end - begin), max(longest, size)
        for i in range(begin, end):
            e = events.order[i]
            kind = events.kind[e]
            room += RECENT_BYTES + TILE_BYTES * (rules.first[kind + 1] - rules.first[kind])
            for chosen in range(len(events.text_bytes)):
                room += ENTRY_BYTES + max(0, events.text_bytes[chosen, e])
    return most, longest, room


@compiled
def _old_row(stored: RowBuffers, k: int, rules: Rules, origin: Origin) -> tuple[OldRow, int]:
    """The row, empty where its bytes are no whole row of this rebuild; and 1 for a row of this
    rebuild and other declarations."""
    data, at, size = stored.read, stored.start[k] - len(stored.cached), stored.size[k]
    if at < 0:
        data, at = stored.cached, stored.start[k]
    words = data[at : at + max(0, size) // 8 * 8].view(np.uint64)
    none = OldRow(data, words[:0], at, 0, 0, 0, 0, 0, 0, 0, 0)
    if size < HEAD_BYTES + DIGEST_BYTES or words[0] & _SHORT != _VERSION:
        return none, 0
    source_offsets, tiles = signed(words[0] >> _QUARTER & _SHORT), signed(words[1] >> _HALF)
    entries, recent = signed(words[2] & _LOW), signed(words[2] >> _HALF)
    text_bytes, wide = signed(words[3] & _LOW), signed(words[3] >> _HALF)
    newest_ms, erased_ms = signed(words[4]), signed(words[5])
    parts = SOURCE_OFFSET_BYTES * source_offsets + NARROW_TILE_BYTES * tiles + TILE_BYTES * wide
    parts += ENTRY_BYTES * entries + RECENT_BYTES * recent + text_bytes
    if HEAD_BYTES + parts + DIGEST_BYTES != size:
        return none, 0
    if words[1] & _LOW != origin.rebuild_id:
        return OldRow(data, words[:0], at, 0, 0, 0, 0, 0, 0, 0, erased_ms), 0
    row = OldRow(
        data,
        words,
        at,
        source_offsets,
        tiles,
        wide,
        entries,
        recent,
        text_bytes,
        newest_ms,
        erased_ms,
    )
    return row, int(words[0] >> _HALF != rules.fingerprint)


@borrowing
def _digest(old: OldRow, size: int) -> np.uint64:
    """The last 8 of the stored bytes, whether or not they are a row; 0 for fewer bytes."""
    if size < DIGEST_BYTES:
        return np.uint64(0)
    return word_at(old.data, old.at + size - DIGEST_BYTES)


@borrowing
def _fresh(old: OldRow, events: Events, r: int, origin: Origin, scratch: Scratch) -> int:
    """How many of the row's events count, their places in `fresh`: those of messages that the
    row has not seen, after its erasure, and neither among its recent ids nor earlier here."""
    time, hashes = events.time, events.hash
    begin, end = events.first[r], events.first[r + 1]
    seen = _seen_until(old, origin.topic_id, events.partition[events.order[begin]])
    ids = recent_at(old)
    n = 0
    for i in range(begin, end):
        e = events.order[i]
        if events.offset[e] <= seen or time[e] <= old.erased_ms:
            continue
        known, when = False, 0
        for j in range(old.recent - 1, -1, -1):
            if word_at(old.data, ids + RECENT_BYTES * j + 8) == hashes[e]:
                known, when = True, signed(word_at(old.data, ids + RECENT_BYTES * j))
                break
        if end - begin > 1:
            earlier = _earlier(scratch.table, events, e)
            if earlier >= 0:
                known, when = True, time[earlier]
        if not (known and abs(time[e] - when) <= SAME_EVENT_MS):
            scratch.fresh[n] = e
            n += 1
    return n


@borrowing
def _earlier(table: np.ndarray, events: Events, e: int) -> int:
    """The last event before `e` of the same id and row, -1 for none; `e` takes its place."""
    hashes, row = events.hash, events.row
    place = np.int64(hashes[e] & np.uint64(len(table) - 1))
    while table[place]:
        other: int = table[place] - 1
        if hashes[other] == hashes[e] and row[other] == row[e]:
            table[place] = e + 1
            return other
        place = (place + 1) & (len(table) - 1)
    table[place] = e + 1
    return -1


@borrowing
def _is_source(words: np.ndarray, source: int, topic_id: np.uint64, partition: np.uint64) -> bool:
    at = _FIRST_SOURCE + 3 * source
    return bool(words[at] == topic_id and words[at + 1] == partition)


@borrowing
def _seen_until(old: OldRow, topic_id: np.uint64, partition: np.uint64) -> int:
    """The last offset of this partition that the row has counted, -1 for none."""
    for source in range(old.source_offsets):
        if _is_source(old.words, source, topic_id, partition):
            return signed(old.words[_FIRST_SOURCE + 3 * source + 2])
    return -1


@borrowing
def _folded_row(
    old: OldRow, events: Events, rules: Rules, origin: Origin,
    scratch: Scratch, n: int, out: np.ndarray, to: int,
) -> tuple[int, int]:  # fmt: skip
    """Writes the row with its n fresh events to `out[to:]`; where it ends, and its newest
    event's time (ms)."""
    newest_ms, until = old.newest_ms, -1
    for i in range(n):
        e = scratch.fresh[i]
        newest_ms, until = max(newest_ms, events.time[e]), max(until, events.offset[e])
    made = out[to : to + (len(out) - to) // 8 * 8].view(np.uint64)
    partition = events.partition[scratch.fresh[0]]
    source_offsets = _advanced(old, origin.topic_id, partition, until, made)
    added = add_tiles(events, rules, scratch, n)
    place = _FIRST_SOURCE + 3 * source_offsets
    tiles, wide = merged_tiles(old, scratch, added, newest_ms, rules, made, place)
    place += tiles
    for i in range(2 * wide):
        made[place + i] = scratch.wide[i]
    stop = to + 8 * (place + 2 * wide)
    stop, entries, ran = merged_lists(old, events, rules, scratch, n, out, stop)
    count = newest_events(events, scratch, n, rules.recent)
    stop, recent = merged_recent(old, events, scratch, count, rules.recent, out, stop)
    text_from, runs = stop, scratch.runs
    for i in range(ran):
        source = events.text if runs[i, 0] else old.data
        stop, _ = copied(out, stop, source, runs[i, 1], runs[i, 2])
    made[0] = _VERSION | np.uint64(source_offsets) << _QUARTER | rules.fingerprint << _HALF
    made[1] = origin.rebuild_id | np.uint64(tiles) << _HALF
    made[2] = np.uint64(entries) | np.uint64(recent) << _HALF
    made[3] = np.uint64(stop - text_from) | np.uint64(wide) << _HALF
    made[4], made[5] = np.uint64(newest_ms), np.uint64(old.erased_ms)
    put_word(out, stop, xxh64(out, to, stop))
    return stop + DIGEST_BYTES, newest_ms


@borrowing
def _advanced(
    old: OldRow, topic_id: np.uint64, partition: np.uint64, until: int, made: np.ndarray
) -> int:
    """Writes the row's source offsets without the oldest, and `until` for this topic id and
    partition as the last; how many there are."""
    others = 0
    for source in range(old.source_offsets):
        others += not _is_source(old.words, source, topic_id, partition)
    skipped, kept = max(0, others + 1 - SOURCE_OFFSETS_KEPT), 0
    for source in range(old.source_offsets):
        if _is_source(old.words, source, topic_id, partition):
            continue
        if skipped:
            skipped -= 1
            continue
        for part in range(3):
            made[_FIRST_SOURCE + 3 * kept + part] = old.words[_FIRST_SOURCE + 3 * source + part]
        kept += 1
    last = _FIRST_SOURCE + 3 * kept
    made[last], made[last + 1], made[last + 2] = topic_id, partition, np.uint64(until)
    return kept + 1


@compiled
def by_row(row: Int64s, rows: int) -> tuple[MutableInt64s, MutableInt64s]:
    """(first, order): row r's events are `order[first[r]:first[r + 1]]`, as they came."""
    first = np.zeros(rows + 1, np.int64)
    for e in range(len(row)):
        first[row[e] + 1] += 1
    for r in range(rows):
        first[r + 1] += first[r]
    after, order = first[:-1].copy(), np.empty(len(row), np.int64)
    for e in range(len(row)):
        order[after[row[e]]] = e
        after[row[e]] += 1
    return first, order


compile_now(fold_rows, by_row)
