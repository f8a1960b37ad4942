"""The world's oracle: the most clicks that a slate can be expected to get.

Knows the planted truth and what each user has played. It is the ceiling that the demo and its
page show beside the arms; nothing that serves or trains reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.simulation.history import History
from deploy.simulation.truth import Truth


class Oracle:
    """Ranks by the true P(play). Like the served feed, it never repeats a film that was played."""

    def __init__(self, truth: Truth, past: History) -> None:
        self._truth = truth
        self._played = np.zeros((len(truth.people.user_ids), len(truth.data.films)), dtype=bool)
        plays = past.frame.filter(past.frame["kind"] == "play")
        users, films = truth.user_row, truth.film_row
        for user_id, video_id in plays.select("user_id", "video_id").iter_rows():
            self._played[users[user_id], films[video_id]] = True

    def play(self, user: int, films: Sequence[int]) -> None:
        """Films that the user has played now."""
        self._played[user, list(films)] = True

    def expected_clicks(
        self, user: int, k: int, seen: np.ndarray, hour: int | None = None
    ) -> float:
        """The expected plays of the user's best slate of `k` films.

        seen: int64 [V], earlier exposures of each film; `hour` of the user's day.
        """
        films = np.flatnonzero(~self._played[user])
        play = self._truth.odds(user, films, seen[films], hour)[:, 0]
        best = np.sort(play)[::-1][:k]
        return float(self._truth.attention(np.arange(len(best))) @ best)
