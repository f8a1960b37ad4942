"""Settings of the feed: its limits, its exploration and its experiment.

Knows what each is worth. Does not know how a slate is chosen (`serving.stages.selectors`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deploy.settings.values import Section


class BlendSettings(Section):
    """Constraints on the feed's slates; a slate that cannot be filled within them is shorter."""

    author_cap: int | None = Field(None, ge=1)  # items of one author in a slate; None: no cap
    # The largest share of a slate's slots by provenance, e.g. {"aigc" = 0.2}; rounded down.
    provenance_caps: dict[Literal["human", "aigc"], Annotated[float, Field(ge=0, le=1)]] = {}


class ExploreSettings(Section):
    """Exploration in the feed: what it costs is the value of what would have been shown."""

    # Share of slots given to a random fresh item, so that new items gather feedback at all. 0.03
    # is one fresh item in about three slates of ten. In the simulated world 0.08, drawn evenly,
    # cost 7 % of a slate's value, and 0.03, those that fit first, 2 to 3 %.
    slots_share: float = Field(0.03, ge=0, le=1)
    # Of the draw by score, in standard deviations of the score among the candidates: 0.05 keeps
    # the order of items that differ by more than 0.2, so propensities of near ties stay above 0.
    temperature: float = Field(0.05, gt=0, le=10)
    # Share of replies ranked by fusion weights drawn from the user's Dirichlet, with their density
    # logged, instead of by its mean. 0.1 is close to the share of explored slots.
    weights_share: float = Field(0.1, ge=0, le=1)


class ExperimentSettings(Section):
    """Arms of the feed, compared at the same time: users hashed by their id."""

    # Share of users whose feed is ranked by popularity instead of by the live ranker; 0: none.
    popularity_share: float = Field(0.0, ge=0, le=1)
    # Salts the hash and marks the feedback: another name draws the arms anew.
    name: str = Field("popularity", pattern="^[A-Za-z0-9._-]{1,32}$")
    # Share of users whose feed no model ranks, whatever experiment runs: what all models together
    # are worth. A larger share keeps those that are held out; 0: none.
    holdout_share: float = Field(0.0, ge=0, le=1)
