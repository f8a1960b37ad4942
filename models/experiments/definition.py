"""What an experiment is: arms with shares and policies, and which user belongs to which arm.

Knows names, shares and hashes. Does not know how an arm's slates are made (`serving.surfaces`), how
experiments are kept (`models.experiments.store`) nor how they are judged.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from streams.contract.impression import HOLDOUT_ARM, POPULARITY_ARM, RANKER_ARM

LIVE, POPULARITY, RELEASE, INTERLEAVE = "live", "popularity", "release", "interleave"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
_ARM = "write NAME=POLICY@SHARE, as in ranker=live@0.9 or challenger=release:r0007@0.1"


class ExperimentError(ValueError):
    """An experiment that cannot run; the message says what to change."""


@dataclass(frozen=True)
class Arm:
    """Users who are served alike.

    share: of the surface's users outside the holdout, in [0, 1].
    policy: `live`; `popularity`; `release:ID`, that release's models beside the live ones; or
    `interleave:POLICY+POLICY`, both policies in one slate, as teams a and b.
    """

    name: str
    share: float
    policy: str = LIVE

    @property
    def teams(self) -> tuple[str, str] | None:
        """The policies of teams a and b; None for an arm that is not interleaved."""
        kind, _, both = self.policy.partition(":")
        if kind != INTERLEAVE:
            return None
        a, _, b = both.partition("+")
        return a, b

    @property
    def kinds(self) -> frozenset[str]:
        """What a surface must be able to serve: `live`, `popularity`, `release`, `interleave`."""
        return frozenset(each.partition(":")[0] for each in (self.policy, *(self.teams or ())))

    @property
    def releases(self) -> tuple[str, ...]:
        """The releases that must be loaded beside the live one."""
        found = (release_of(policy) for policy in self.teams or (self.policy,))
        return tuple(release for release in found if release is not None)


@dataclass(frozen=True)
class Guard:
    """Stops the experiment once an arm is worse than the first arm.

    metric: the task whose rate per slate is watched. worse_by: the share of the first arm's rate
    that an arm may lose. level: the chance of ever stopping an arm that loses no more.
    """

    metric: str = "play"
    worse_by: float = 0.0
    level: float = 0.01


@dataclass(frozen=True)
class Experiment:
    """Arms of one surface that are served at the same time; the first arm is the control.

    reward: the task whose rate per slate is compared. level: the chance of ever calling equal arms
    different, over all looks. tight_at: slates at which the intervals are narrowest.
    started_ms, stopped_ms: Unix milliseconds; None: it runs. reason: why it was stopped.
    """

    name: str
    arms: tuple[Arm, ...]
    surface: str = "feed"
    reward: str = "play"
    guard: Guard | None = None
    level: float = 0.05
    tight_at: int = 20_000
    started_ms: int = 0
    stopped_ms: int | None = None
    reason: str = ""

    @property
    def running(self) -> bool:
        return self.stopped_ms is None

    def arm_of(self, user_id: str) -> Arm | None:
        """The user's arm; None for a user outside all shares. The same in every process."""
        place = hashed(f"{self.name}\0{self.surface}", user_id)
        above = 0.0
        for arm in self.arms:
            above += arm.share
            # Shares that add up to 1 leave no user out for the sake of a rounding.
            if place < above or (arm is self.arms[-1] and above > 1 - 1e-9):
                return arm
        return None

    def stopped(self, at_ms: int, reason: str) -> Experiment:
        return replace(self, stopped_ms=at_ms, reason=reason)


def hashed(salt: str, user_id: str) -> float:
    """Uniform in [0, 1): another salt places users independently of this one."""
    digest = hashlib.blake2b(user_id.encode(), key=_key(salt), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@lru_cache(maxsize=256)
def _key(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=32).digest()


def in_holdout(surface: str, user_id: str, share: float) -> bool:
    """Whether the user is held out. Independent of experiments; a larger share keeps the others."""
    return share > 0.0 and hashed(f"\0holdout\0{surface}", user_id) < share


def release_of(policy: str) -> str | None:
    """The release that a policy names; None for `live` and `popularity`."""
    kind, _, release = policy.partition(":")
    return release if kind == RELEASE else None


def popularity_experiment(share: float, name: str = "popularity") -> Experiment | None:
    """The feed's popularity beside the live ranker, as settings state it; None for a share of 0."""
    if share <= 0.0:
        return None
    arms = Arm(POPULARITY_ARM, share, POPULARITY), Arm(RANKER_ARM, 1.0 - share)
    return checked(Experiment(name, arms))


def read_arm(text: str) -> Arm:
    """An arm as the command line writes it: NAME=POLICY@SHARE. Raises `ExperimentError`."""
    name, _, rest = text.partition("=")
    policy, _, share = rest.rpartition("@")
    try:
        return Arm(name, float(share), policy or LIVE)
    except ValueError:
        raise ExperimentError(f"{text!r} is no arm: {_ARM}") from None


def checked(found: Experiment) -> Experiment:
    """The experiment itself. Raises `ExperimentError` where it states what cannot be served."""
    for what, name in (("experiment", found.name), *(("arm", arm.name) for arm in found.arms)):
        if not _NAME.fullmatch(name):
            raise ExperimentError(
                f"{what} {name!r}: 1 to 32 letters, digits, dots, dashes and underscores"
            )
    names = [arm.name for arm in found.arms]
    if not names or len(set(names)) < len(names):
        raise ExperimentError("an experiment needs arms with different names")
    if (
        not all(0.0 <= arm.share <= 1.0 for arm in found.arms)
        or math.fsum(arm.share for arm in found.arms) > 1.0 + 1e-9
    ):
        raise ExperimentError("shares lie in [0, 1] and add up to at most 1")
    for arm in found.arms:
        _check_arm(arm)
    rules = [found.level, *([found.guard.level] if found.guard else [])]
    if not all(0.0 < level < 1.0 for level in rules) or found.tight_at < 1:
        raise ExperimentError("levels lie between 0 and 1, and tight_at is at least 1")
    return found


def _check_arm(arm: Arm) -> None:
    if arm.name == HOLDOUT_ARM:
        raise ExperimentError("the arm `holdout` is set by experiment.holdout_share")
    # Learners know slates that no model ranked by the arm's name.
    if (arm.name == POPULARITY_ARM) != (arm.policy == POPULARITY):
        raise ExperimentError("the arm `popularity`, and no other, has the policy `popularity`")
    for policy in arm.teams or (arm.policy,):
        if policy not in (LIVE, POPULARITY) and not release_of(policy):
            raise ExperimentError(
                f"arm {arm.name}: {policy!r} is not live, popularity, release:ID or "
                "interleave:POLICY+POLICY"
            )


def to_json(found: Experiment) -> dict[str, Any]:
    return asdict(found)


def from_json(stated: Mapping[str, Any]) -> Experiment:
    """Fields that a later version added are ignored. Raises `ExperimentError`."""
    try:
        known = {name: stated[name] for name in Experiment.__dataclass_fields__ if name in stated}
        arms = tuple(Arm(**arm) for arm in stated["arms"])
        guard = stated.get("guard")
        return checked(
            Experiment(**known | {"arms": arms, "guard": Guard(**guard) if guard else None})
        )
    except (KeyError, TypeError) as error:
        raise ExperimentError(f"an experiment cannot be read: {error}") from error


@dataclass(frozen=True)
class Assignment:
    """What a user is served. experiment: None for the holdout, which outlives experiments."""

    arm: Arm
    experiment: str | None = None


HELD_OUT = Assignment(Arm(HOLDOUT_ARM, 0.0, POPULARITY))
