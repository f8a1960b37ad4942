"""Marginals of the real KuaiRand tables: the ranking world's base rates and profiles.

Knows aggregates only; no row of any table is shipped. `measure` makes the small table
`marginals.json` from the public user table; rates of exposure come from published
aggregates (KuaiRand, arXiv 2208.08696) and were not measured here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

PATH = Path(__file__).with_name("marginals.json")
COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
LEVELS = ("full_active", "high_active", "middle_active")
_GRID = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class Marginals:
    """quantiles float64 [len(COUNTS), 21] of log(1 + count); correlation [4, 4] of those;
    levels [3]: shares of LEVELS (the rest is lower activity); author_share: of users who
    upload; ctr_random, ctr_standard: plays per exposure; users: rows behind the table."""

    quantiles: np.ndarray
    correlation: np.ndarray
    levels: np.ndarray
    author_share: float
    ctr_random: float
    ctr_standard: float
    users: int


def measure(users_csv: Path) -> dict[str, object]:
    """The aggregates of one `user_features_*.csv`; what `marginals.json` holds.

    Raises:
        OSError: the table cannot be read.
    """
    table = pl.read_csv(users_csv)
    logs = np.log1p(table.select(COUNTS).to_numpy().clip(0))
    shares = [float(np.mean((table["user_active_degree"] == level).to_numpy())) for level in LEVELS]
    return {
        "source": "KuaiRand-Pure user table (CC BY-SA 4.0 as its authors state), aggregates only",
        "users": table.height,
        "quantiles": np.quantile(logs, _GRID, axis=0).T.round(4).tolist(),
        "correlation": np.corrcoef(logs.T).round(4).tolist(),
        "levels": [round(share, 4) for share in shares],
        "author_share": round(float(np.mean((table["is_video_author"] == 1).to_numpy())), 4),
        "ctr_random": 0.1762,
        "ctr_standard": 0.3787,
        "ctr_source": "KuaiRand-27K aggregates over 322,278,385 exposures, second-hand",
    }


@cache
def load(path: Path = PATH) -> Marginals:
    body = json.loads(path.read_text())
    return Marginals(
        quantiles=np.asarray(body["quantiles"]),
        correlation=np.asarray(body["correlation"]),
        levels=np.asarray(body["levels"]),
        author_share=body["author_share"],
        ctr_random=body["ctr_random"],
        ctr_standard=body["ctr_standard"],
        users=body["users"],
    )


def profiles(marginals: Marginals, n: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [n, 8]: users drawn by a Gaussian copula over the real marginals.

    Columns: standardised log counts in the order of COUNTS, one column a level, author.
    """
    normal = rng.multivariate_normal(np.zeros(len(COUNTS)), marginals.correlation, n)
    ranks = normal.argsort(axis=0).argsort(axis=0) / max(n - 1, 1)
    counts = np.stack(
        [np.interp(ranks[:, i], _GRID, q) for i, q in enumerate(marginals.quantiles)], axis=1
    )
    level = rng.choice(len(LEVELS) + 1, n, p=[*marginals.levels, 1 - marginals.levels.sum()])
    flags = np.c_[np.eye(len(LEVELS) + 1)[level][:, :-1], rng.random(n) < marginals.author_share]
    raw = np.c_[counts, flags]
    return np.asarray((raw - raw.mean(0)) / np.maximum(raw.std(0), 1e-6), dtype=np.float32)
