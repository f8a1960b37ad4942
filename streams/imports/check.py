"""What would become of rows: the admission's own verdict, without a broker.

Knows admission and the catalogue's contract. Does not send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pydantic import ValidationError

from streams.bus.polled import Record
from streams.codec.decode import RejectedMessage
from streams.contract.clock import DAY_MS
from streams.contract.declaration import contract
from streams.contract.events import CATALOGUE_EVENT
from streams.ingest.admission import REPLAY_HEADER, AdmissionLimits, admit

SHOWN = 10
_OLD_MS = (30 * DAY_MS, 400 * DAY_MS)


@dataclass
class Verdict:
    """Counts of rows. `shown`: the first messages as they would arrive, with their refusal."""

    rows: int = 0
    skipped: Counter[str] = field(
        default_factory=Counter
    )  # by the kind that the mapping leaves out
    refused: Counter[str] = field(default_factory=Counter)  # by cause and detail
    oldest_ms: int | None = None
    newest_ms: int | None = None
    older_than_ms: dict[int, int] = field(default_factory=lambda: dict.fromkeys(_OLD_MS, 0))
    shown: list[tuple[str, str]] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        return self.rows - self.skipped.total() - self.refused.total()

    def see(self, times: Sequence[int], now_ms: int) -> None:
        if not times:
            return
        self.oldest_ms = min(times[0] if self.oldest_ms is None else self.oldest_ms, *times)
        self.newest_ms = max(times[0] if self.newest_ms is None else self.newest_ms, *times)
        for age in self.older_than_ms:
            self.older_than_ms[age] += sum(time < now_ms - age for time in times)


Check = Callable[[pa.RecordBatch, Verdict], None]


def checker(target: str, now_ms: int, limits: AdmissionLimits) -> Check:
    """Adds one piece's rows to a verdict."""
    if target == "items":
        return lambda piece, verdict: _check_items(piece, verdict, now_ms)
    return lambda piece, verdict: _check_events(piece, verdict, now_ms, limits)


def kept(piece: pa.RecordBatch, verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Key and message of each row that the mapping does not leave out."""
    found = []
    columns = (piece["key"].to_pylist(), piece["kind"].to_pylist(), piece["body"].to_pylist())
    for row, (key, kind, body) in enumerate(zip(*columns, strict=True)):
        if kind is None:
            verdict.skipped[str(piece["raw_kind"][row].as_py())] += 1
        else:
            found.append(((key or "").encode(), body.encode()))
    verdict.rows += piece.num_rows
    return found


def _check_events(
    piece: pa.RecordBatch, verdict: Verdict, now_ms: int, limits: AdmissionLimits
) -> None:
    messages = [body for _, body in kept(piece, verdict)]
    headers = ((REPLAY_HEADER, b"1"),)
    records = [
        Record("import", 0, place, None, body, headers) for place, body in enumerate(messages)
    ]
    admission = admit(records, now_ms, limits)
    verdict.see(admission.table["event_time_ms"].to_pylist(), now_ms)
    refused = {each.row: each for each in admission.refused}
    verdict.refused.update(map(_cause, refused.values()))
    for place, body in enumerate(messages[: SHOWN - len(verdict.shown)]):
        verdict.shown.append((body.decode(), _cause(refused[place]) if place in refused else ""))


def _cause(refused: RejectedMessage) -> str:
    detail = refused.detail.split("\n")[0]
    return f"{refused.cause}: {detail}"[:200]


def _check_items(piece: pa.RecordBatch, verdict: Verdict, now_ms: int) -> None:
    for _, body in kept(piece, verdict):
        problem = ""
        try:
            stated = CATALOGUE_EVENT.validate_json(body, context=contract().items)
            verdict.see([stated.event_time_ms], now_ms)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            problem = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"[:200]
            verdict.refused[problem] += 1
        if len(verdict.shown) < SHOWN:
            verdict.shown.append((body.decode(), problem))
