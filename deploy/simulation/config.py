"""The world's constants, read from one TOML file.

Knows names, types and bounds. Values and their reasons are in `config.toml`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_PATH = Path(__file__).with_name("config.toml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplayConfig(_Section):
    share: float = Field(default=1.0, gt=0, le=1)
    gap_ms: int = Field(ge=0)
    duration_min_ms: int = Field(gt=0)
    duration_max_ms: int = Field(gt=0)
    price_base_cents: int = Field(ge=0)
    price_step_cents: int = Field(ge=0)
    price_steps: int = Field(ge=1)
    price_decade_cents: int = Field(ge=0)
    studio_films: int = Field(ge=1)


class HistoryConfig(_Section):
    watched_share: tuple[float, float, float, float, float]
    watched_noise: float = Field(ge=0, le=1)
    long_view_from: int = Field(ge=1, le=6)
    like_from: int = Field(ge=1, le=6)
    follow_rate: float = Field(ge=0, le=1)
    order_rate: float = Field(ge=0, le=1)
    order_rate_four: float = Field(ge=0, le=1)
    query_click_rate: float = Field(ge=0, le=1)
    search_rate: float = Field(ge=0, le=1)


class QueriesConfig(_Section):
    kinds: tuple[str, ...]
    kind_mix: tuple[float, ...]
    dialect: float = Field(ge=0, le=1)
    taste_sharpness: float = Field(ge=0)


class TraitsConfig(_Section):
    follow_shape: float = Field(gt=0)
    order_shape: float = Field(gt=0)
    curiosity_shape: float = Field(gt=0)


PerTask = tuple[float, float, float, float, float]
"""One value each for play, long_view, like, follow, order."""


class TasteConfig(_Section):
    factors: int = Field(ge=1)
    sweeps: int = Field(ge=1)
    ridge: float = Field(gt=0)
    heterogeneity: float = Field(ge=0)
    hidden: float = Field(default=0.0, ge=0, le=1)
    hidden_factors: int = Field(default=4, ge=1)
    neighbourhoods: float = Field(default=0.0, ge=0, le=1)
    neighbours: int = Field(default=20, ge=1)
    moods: float = Field(default=0.0, ge=0, le=1)
    authors: float = Field(default=0.0, ge=0, le=1)

    @property
    def fitted(self) -> float:
        """The share of the personal part that is the factorisation of the ratings."""
        return 1.0 - self.hidden - self.neighbourhoods - self.moods - self.authors

    @model_validator(mode="after")
    def _shares_fit(self) -> TasteConfig:
        if self.fitted < -1e-9:
            raise ValueError("hidden + neighbourhoods + moods + authors must be at most 1")
        return self


class RatesConfig(_Section):
    play: float = Field(gt=0, lt=1)
    long_view: float = Field(gt=0, lt=1)
    like: float = Field(gt=0, lt=1)
    follow: float = Field(gt=0, lt=1)
    order: float = Field(gt=0, lt=1)


class EffectsConfig(_Section):
    main: PerTask
    taste: PerTask
    appeal: PerTask
    fatigue: float = Field(ge=0)


class PositionConfig(_Section):
    slots: int = Field(ge=1)
    bias: float = Field(ge=0)
    skip_ms: int = Field(ge=0)


class UtilityConfig(_Section):
    base: PerTask
    link: float = Field(ge=0)
    spread: float = Field(ge=0)


class SessionConfig(_Section):
    continue_base: float
    continue_gain: float
    dormant_base: float
    dormant_gain: float
    dormant_share: float = Field(ge=0, le=1)
    ask_rate: float = Field(ge=0, le=1)
    ask_near: float = Field(ge=0, le=1)
    order_after_query: float = Field(0.0, ge=0, le=1)
    return_base: float
    return_gain: float
    max_slates: int = Field(ge=1)


class CrowdConfig(_Section):
    requests_per_s: float = Field(gt=0)
    reactivation_share: float = Field(ge=0, le=1)
    sessions_at_once: int = Field(ge=1)
    slate_k: int = Field(ge=1, le=100)
    queries_k: int = Field(ge=1, le=20)
    trajectory_k: int = Field(ge=1, le=20)
    timeout_s: float = Field(gt=0)
    random_slates: float = Field(ge=0, le=1)


class DemoConfig(_Section):
    clock_rate: float = Field(gt=0)
    window_ms: int = Field(gt=0)
    gather_s: float = Field(ge=0)
    after_s: float = Field(ge=0)
    popularity_share: float = Field(default=0.5, ge=0, le=1)


class WorldConfig(_Section):
    replay: ReplayConfig
    history: HistoryConfig
    queries: QueriesConfig
    traits: TraitsConfig
    taste: TasteConfig
    rates: RatesConfig
    effects: EffectsConfig
    position: PositionConfig
    utility: UtilityConfig
    session: SessionConfig
    crowd: CrowdConfig
    demo: DemoConfig

    def null(self) -> WorldConfig:
        """The same world with equal tastes, traits and utilities for all users and no position
        bias. No personalised method may gain anything in it."""
        even = {"follow_shape": 1e9, "order_shape": 1e9, "curiosity_shape": 1e9}
        return self.model_copy(
            update={
                "traits": self.traits.model_copy(update=even),
                "taste": self.taste.model_copy(update={"heterogeneity": 0.0}),
                "position": self.position.model_copy(update={"bias": 0.0}),
                "utility": self.utility.model_copy(update={"link": 0.0, "spread": 0.0}),
            }
        )

    @classmethod
    def load(cls, path: Path = DEFAULT_PATH) -> WorldConfig:
        """The world of a TOML file.

        With `extends = "default"` at its top, the file states only what differs from
        `config.toml`.

        Raises:
            ValueError: a constant is missing, unknown or out of bounds; the message names it.
            OSError: the file cannot be read.
        """
        stated = _read(path)
        base = stated.pop("extends", None)
        if base is None:
            return cls.model_validate(stated)
        if base != "default":
            raise ValueError(f'{path}: extends must be "default", not {base!r}')
        default = _read(DEFAULT_PATH)
        names = default.keys() | stated.keys()
        return cls.model_validate(
            {name: default.get(name, {}) | stated.get(name, {}) for name in names}
        )


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as source:
        return tomllib.load(source)
