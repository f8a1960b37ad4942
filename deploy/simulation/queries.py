"""The queries that the crowd types and clicks, made from titles, genres and eras.

Knows the process by which a user's need becomes a query. All queries are simulated:
MovieLens has none. Does not know when a query is asked (`deploy.simulation.history`, `deploy.simulation.reactions`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.simulation.config import QueriesConfig
from deploy.simulation.movielens import Film

SYNONYMS: dict[str, tuple[str, ...]] = {
    "Action": ("action movies", "fight scenes", "explosive action"),
    "Adventure": ("adventure movies", "epic journey", "quest films"),
    "Animation": ("animated movies", "cartoons", "animation classics"),
    "Children's": ("kids movies", "films for children", "family night"),
    "Comedy": ("funny movies", "comedies", "laugh out loud"),
    "Crime": ("crime movies", "gangster films", "heist stories"),
    "Documentary": ("documentaries", "true stories", "real life films"),
    "Drama": ("drama films", "moving stories", "serious cinema"),
    "Fantasy": ("fantasy movies", "magic worlds", "fairy tales"),
    "Film-Noir": ("film noir", "black and white detectives", "noir classics"),
    "Horror": ("scary movies", "horror films", "haunted stories"),
    "Musical": ("musicals", "song and dance", "movies with singing"),
    "Mystery": ("mystery films", "whodunit", "detective stories"),
    "Romance": ("love stories", "romantic movies", "date night"),
    "Sci-Fi": ("sci fi movies", "space films", "future worlds"),
    "Thriller": ("thrillers", "suspense films", "edge of your seat"),
    "War": ("war movies", "battle films", "soldier stories"),
    "Western": ("westerns", "cowboy films", "wild west"),
    "unknown": ("hidden gems", "rare films", "lost movies"),
}
GENRES: tuple[str, ...] = tuple(SYNONYMS)
DIALECTS = 3
_SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "at",
        "by",
        "de",
        "for",
        "from",
        "in",
        "la",
        "le",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
    ]
)


@dataclass(frozen=True)
class Speaker:
    """How one user words queries. Part of the planted truth."""

    kind_mix: np.ndarray  # float64 [kinds], on the simplex
    dialect: int  # index into a genre's synonyms
    genre_taste: np.ndarray  # float64 [len(GENRES)]


def title_words(film: Film) -> str:
    """The first three significant words of a title, lower case."""
    words = re.findall(r"[a-z0-9']+", film.title.lower())
    significant = [word for word in words if word not in _SMALL_WORDS]
    return " ".join((significant or words or [film.video_id])[:3])


def phrase(kind: str, film: Film, genre: str, dialect: int) -> str:
    """The query of one kind under one film."""
    if kind == "title":
        return title_words(film)
    if kind == "like":
        return f"movies like {title_words(film)}"
    synonym = SYNONYMS[genre][dialect]
    if kind == "era" and film.year:
        return f"{film.year % 100 // 10 * 10:02d}s {synonym}"
    return synonym


def legal(film: Film, kinds: Sequence[str]) -> list[str]:
    """Every query that may be shown under a film, in a fixed order without repeats."""
    genres = [genre for genre in film.genres if genre in SYNONYMS] or ["unknown"]
    phrases = (
        phrase(kind, film, genre, dialect)
        for kind in kinds
        for genre in genres
        for dialect in range(DIALECTS)
    )
    return list(dict.fromkeys(phrases))


def wanted(speaker: Speaker, film: Film, rules: QueriesConfig) -> dict[str, float]:
    """P(query | user, film): the distribution that `ask` draws from."""
    odds: dict[str, float] = {}
    for kind, p_kind in zip(rules.kinds, speaker.kind_mix, strict=True):
        for genre, p_genre in _genres_of(speaker, film, rules).items():
            for dialect in range(DIALECTS):
                own = rules.dialect * (dialect == speaker.dialect)
                p_dialect = own + (1 - rules.dialect) / DIALECTS
                words = phrase(kind, film, genre, dialect)
                odds[words] = odds.get(words, 0.0) + float(p_kind) * p_genre * p_dialect
    return odds


def ask(speaker: Speaker, film: Film, rules: QueriesConfig, rng: np.random.Generator) -> str:
    """One query, drawn from `wanted`."""
    kind = rules.kinds[int(np.searchsorted(np.cumsum(speaker.kind_mix), rng.random() * 0.999999))]
    genre = _pick(_genres_of(speaker, film, rules), rng.random())
    own = rng.random() < rules.dialect
    return phrase(kind, film, genre, speaker.dialect if own else int(rng.integers(DIALECTS)))


def _genres_of(speaker: Speaker, film: Film, rules: QueriesConfig) -> dict[str, float]:
    genres = [genre for genre in film.genres if genre in SYNONYMS] or ["unknown"]
    pull = rules.taste_sharpness * speaker.genre_taste[[GENRES.index(genre) for genre in genres]]
    odds = np.exp(pull - pull.max())
    return dict(zip(genres, (odds / odds.sum()).tolist(), strict=True))


def _pick(odds: Mapping[str, float], draw: float) -> str:
    names = list(odds)
    edges = np.cumsum(list(odds.values()))
    return names[min(int(np.searchsorted(edges, draw)), len(names) - 1)]
