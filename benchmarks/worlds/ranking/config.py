"""A ranking world's constants, read from one TOML file.

Knows names, types and bounds. The values and their reasons stand in `worlds/*.toml`;
what the worlds are for and what must be reached in them, in docs/worlds/ranking.md.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

WORLDS = Path(__file__).with_name("worlds")
WORLD_TASKS = ("play", "long_view", "like", "follow", "order")
PerTask = tuple[float, float, float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SizeConfig(_Section):
    train_users: int = Field(gt=0)
    valid_users: int = Field(gt=0)
    test_users: int = Field(gt=0)
    sessions: int = Field(ge=2)
    candidates: int = Field(ge=2)
    slate: int = Field(ge=1)

    @property
    def users(self) -> int:
        return self.train_users + self.valid_users + self.test_users

    @property
    def impressions(self) -> int:
        return self.users * self.sessions * self.slate


class UtilityConfig(_Section):
    base: PerTask
    spread: float = Field(ge=0)
    from_profile: float = Field(ge=0, le=1)
    segments: int = Field(ge=0)
    power: float = Field(gt=0, le=1)
    bait: float = Field(ge=0)


class CandidatesConfig(_Section):
    random_play_rate: float = Field(gt=0, lt=1)
    of_plays: tuple[float, float, float, float]
    deviation: float = Field(ge=0)
    correlation: float = Field(ge=0, le=1)
    habit: float = Field(ge=0)
    noise: float = Field(ge=0)


class PositionConfig(_Section):
    bias: float = Field(ge=0)


class FeedbackConfig(_Section):
    rate: float = Field(gt=0, lt=1)
    effect: float = Field(ge=0)


class DriftConfig(_Section):
    share: float = Field(ge=0, le=1)
    keep: float = Field(ge=0, le=1)
    first_session: int = Field(ge=0)
    last_session: int = Field(ge=0)


class LoggingConfig(_Section):
    weights: PerTask
    concentration: float = Field(gt=0)
    random_slots: float = Field(ge=0, le=1)


class BarsConfig(_Section):
    """What the fusion policy must reach here. None: reported, not gated."""

    gain: float | None = None
    share: float | None = None
    share_low: float | None = None
    loss: float | None = None
    above_static: bool = False


class RankingWorld(_Section):
    name: str
    size: SizeConfig
    utility: UtilityConfig
    candidates: CandidatesConfig
    position: PositionConfig
    feedback: FeedbackConfig
    drift: DriftConfig
    logging: LoggingConfig
    bars: BarsConfig

    def scaled(self, share: float) -> RankingWorld:
        """The same world with fewer users, for quick forms and tests."""
        users = ("train_users", "valid_users", "test_users")
        fewer = {name: max(40, int(getattr(self.size, name) * share)) for name in users}
        return self.model_copy(update={"size": self.size.model_copy(update=fewer)})

    @classmethod
    def load(cls, path: Path) -> RankingWorld:
        """Raises ValueError naming a constant that is missing, unknown or out of bounds."""
        with path.open("rb") as source:
            return cls.model_validate(tomllib.load(source))

    @classmethod
    def named(cls, name: str) -> RankingWorld:
        path = WORLDS / f"{name}.toml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in WORLDS.glob("*.toml")))
            raise ValueError(f"no ranking world {name!r}; there are: {known}")
        return cls.load(path)
