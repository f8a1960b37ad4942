"""An arm's slate: which releases answer a query, and two policies that share one slate.

Knows assignments (`models.experiments`) as values. Does not know stages nor how a pipeline is run.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any

from models.alignment.interleaving import Draft, team_draft
from models.experiments.definition import POPULARITY, Arm, Assignment, release_of
from serving.pipeline.query import Candidate, Query, Release, Slate
from streams.contract.impression import POPULARITY_ARM

NamedRelease = Callable[[str], Release | None]


@dataclass(frozen=True)
class ArmQueries:
    """What to run for an arm. query: with the arm's name. second: team b's, if interleaved."""

    query: Query
    first: Query
    second: Query | None = None


def arm_queries(
    query: Query, assigned: Assignment | None, named_release: NamedRelease, can: Set[str]
) -> ArmQueries:
    """The query as its arm's policy answers it.

    can: kinds of policies that the surface serves. A user whose arm it cannot serve, or names a
    release that is unknown here, belongs to no arm: the live models answer.
    """
    if assigned is None or not assigned.arm.kinds <= can:
        return ArmQueries(query, query)
    arm = assigned.arm
    marked = replace(query, arm=arm.name, experiment=assigned.experiment)
    if arm.teams is None:
        pinned = _pinned(marked, arm.policy, named_release)
        return ArmQueries(query, query) if pinned is None else ArmQueries(pinned, pinned)
    a, b = (_team(marked, arm, policy, named_release) for policy in arm.teams)
    return ArmQueries(query, query) if a is None or b is None else ArmQueries(marked, a, b)


def _pinned(query: Query, policy: str, named_release: NamedRelease) -> Query | None:
    name = release_of(policy)
    release = query.release if name is None else named_release(name)
    return None if release is None else replace(query, release=release)


def _team(query: Query, arm: Arm, policy: str, named_release: NamedRelease) -> Query | None:
    """One team's query. No weights are drawn: one density could not state two draws."""
    name = POPULARITY_ARM if policy == POPULARITY else arm.name
    return _pinned(replace(query, arm=name, explore=False, memo={}), policy, named_release)


def interleaved(query: Query, a: Slate, b: Slate) -> Slate:
    """Both slates drafted into one; each item carries its team, release and the draft's chance.

    The reply explains itself by a's weights and removals, and has the fallbacks of both.
    """
    found = {"a": _by_id(a), "b": _by_id(b)}
    draft = team_draft(tuple(found["a"]), tuple(found["b"]), query.k, seed=query.seed)
    chances = draft_chances(draft, tuple(found["a"]), tuple(found["b"]))
    releases = {"a": a.query.release.release_id, "b": b.query.release.release_id}
    items = tuple(
        replace(found[team][item], team=team, release=releases[team], propensity=chance)
        for item, team, chance in zip(draft.items, draft.teams, chances, strict=True)
    )
    # What hydrators have read belongs to the query; its name and release stay.
    read = replace(a.query, arm=query.arm, release=query.release, explore=query.explore)
    stale = a.query.stale or b.query.stale
    return replace(
        a,
        query=replace(read, stale=stale),
        items=items,
        fallbacks=tuple(dict.fromkeys((*a.fallbacks, *b.fallbacks))),
        stage_ms={**b.stage_ms, **a.stage_ms},
        candidate_count=max(a.candidate_count, b.candidate_count),
        ranker_inputs=None,
        log_density=None,
        pool=None,
    )


def _by_id(slate: Slate) -> dict[Any, Candidate]:
    return {(each.item_id, each.query): each for each in slate.items}


def draft_chances(draft: Draft[Any], a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[float, ...]:
    """P(item in its slot | both rankings, slots above).

    A coin decides where the teams want different items and nothing above shows whose turn it is:
    at the beginning of a round, and after a pick that both wanted.
    """
    found, taken, opened, shared = [], set[Any](), False, False
    for item in draft.items:
        wanted = [next((x for x in ranking if x not in taken), None) for ranking in (a, b)]
        both = None not in wanted
        free = both and wanted[0] != wanted[1] and (not opened or shared)
        found.append(0.5 if free else 1.0)
        opened = both and not opened  # two picks make a round
        shared = opened and wanted[0] == wanted[1]
        taken.add(item)
    return tuple(found)
