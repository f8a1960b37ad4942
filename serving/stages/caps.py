"""Caps: how many slots of one slate an author or a provenance may take.

Knows authors, provenance and the items chosen so far. Does not know scores or how a slot
is drawn (`serving.stages.selectors` consults the caps before each slot).

A cap is hard: a slate that cannot be filled within its caps is shorter. A candidate
without catalogue data counts toward no author and no provenance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.pipeline.query import Candidate
from streams.contract.events import Provenance


class Cap(Protocol):
    """A business constraint on a slate."""

    @property
    def name(self) -> str: ...

    def exclusion_reasons(
        self, chosen: Sequence[Candidate], rest: Sequence[Candidate], k: int
    ) -> Sequence[str | None]:
        """Per candidate of `rest` the reason it may not join `chosen` in a slate of k, or None."""


@dataclass(frozen=True)
class AuthorCap:
    """At most `at_most` items of one author."""

    at_most: int
    name: str = "author_cap"

    def exclusion_reasons(
        self, chosen: Sequence[Candidate], rest: Sequence[Candidate], k: int
    ) -> Sequence[str | None]:
        del k
        used = Counter(c.item.author_id for c in chosen if c.item is not None)
        full = {author for author, count in used.items() if count >= self.at_most and author}
        return [self._reason(c, full) for c in rest]

    def _reason(self, candidate: Candidate, full: set[str]) -> str | None:
        author = candidate.item.author_id if candidate.item is not None else ""
        return f"author {author} already has {self.at_most}" if author in full else None


@dataclass(frozen=True)
class ProvenanceCap:
    """At most `share` of the slots, rounded down, for items of one provenance."""

    provenance: Provenance
    share: float
    name: str = "provenance_cap"

    def exclusion_reasons(
        self, chosen: Sequence[Candidate], rest: Sequence[Candidate], k: int
    ) -> Sequence[str | None]:
        allowed = int(self.share * k + 1e-9)
        if sum(self._matches(c) for c in chosen) < allowed:
            return [None] * len(rest)
        reason = f"{self.provenance} already has {allowed} of {k} slots"
        return [reason if self._matches(c) else None for c in rest]

    def _matches(self, candidate: Candidate) -> bool:
        return candidate.item is not None and candidate.item.provenance == self.provenance


def first_reasons(
    caps: Sequence[Cap], chosen: Sequence[Candidate], rest: Sequence[Candidate], k: int
) -> list[tuple[str, str] | None]:
    """Per candidate of `rest` the first cap that excludes it and its reason, or None."""
    found: list[tuple[str, str] | None] = [None] * len(rest)
    for cap in caps:
        for at, reason in enumerate(cap.exclusion_reasons(chosen, rest, k)):
            if reason is not None and found[at] is None:
                found[at] = (cap.name, reason)
    return found


def caps_of(author_cap: int | None, provenance_caps: Mapping[Provenance, float]) -> tuple[Cap, ...]:
    """The caps that the settings configure; none by default."""
    authors: tuple[Cap, ...] = () if author_cap is None else (AuthorCap(author_cap),)
    return authors + tuple(ProvenanceCap(kind, share) for kind, share in provenance_caps.items())
