"""The role of an item in a session: a hidden Markov model over five roles.

Knows observations as small integers. Numpy only. Does not know items or users. Fitted by EM;
each channel (position, kind, gap, novelty) is emitted independently given the role. Roles have
names because the fit starts from, and is held near, a stated prior (`_PRIOR_COUNTS`): a trigger
opens, a converter ends in a strong action, a comparison stays close to the previous items, a
bridge leads on, noise is brief and far off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.reasoning.inputs import ROLES
from models.reasoning.sessions import CHANNELS, SIZES, UNSEEN

_PRIOR_COUNTS: dict[str, dict[str, tuple[float, ...]]] = {
    "trigger": {"position": (20, 2, 1, 1, 1), "gap": (1, 1, 1, 8, 8, 8)},
    "bridge": {"position": (1, 4, 4, 3, 2), "kind": (2, 6, 3, 1, 1, 1, 1), "novelty": (2, 4, 4, 2)},
    "comparison": {
        "position": (1, 3, 4, 4, 4),
        "novelty": (9, 4, 1, 1),
        "kind": (4, 6, 2, 1, 1, 1, 1),
    },
    "converter": {"position": (1, 2, 3, 3, 3), "kind": (0.2, 0.5, 3, 4, 8, 10, 12)},
    "noise": {"kind": (12, 1, 0.2, 0.2, 0.2, 0.2, 0.2), "novelty": (1, 1, 3, 6)},
}


@dataclass(frozen=True)
class RoleModel:
    """start: [R]; move: [R, R], from -> to; emit: per channel [R, size]. Rows sum to 1."""

    start: np.ndarray
    move: np.ndarray
    emit: tuple[np.ndarray, ...]

    def emission(self, seen: np.ndarray) -> np.ndarray:
        """log P(observation | role) [..., R] of int64 [..., 4]; UNSEEN channels contribute 0."""
        total = np.zeros((*seen.shape[:-1], len(self.start)))
        for channel, table in enumerate(self.emit):
            value = seen[..., channel]
            log = np.log(table.T)[np.maximum(value, 0)]
            total += np.where((value == UNSEEN)[..., None], 0.0, log)
        return total

    def decode(self, seen: np.ndarray, last: str | None = None) -> list[str]:
        """The most likely roles (Viterbi) of one session's observations, int64 [T, 4].

        last: the final role, where it is given.
        """
        if not len(seen):
            return []
        emission, move = self.emission(seen), np.log(self.move)
        score, back = np.log(self.start) + emission[0], []
        for row in emission[1:]:
            reach = score[:, None] + move
            back.append(reach.argmax(axis=0))
            score = reach.max(axis=0) + row
        path = [int(score.argmax()) if last is None else ROLES.index(last)]
        for best in reversed(back):
            path.append(int(best[path[-1]]))
        return [ROLES[role] for role in reversed(path)]


def prior_role_model() -> RoleModel:
    """EM's start and the source of its pseudo-counts."""
    roles = len(ROLES)
    start = np.array([12.0, 1, 1, 1, 1])
    move = np.ones((roles, roles)) + np.eye(roles)
    move[0, 1:3] += 2.0  # a trigger is followed by a bridge or a comparison
    move[1:3, 3] += 1.0  # which may lead to a conversion
    move[:, 0] = 0.2  # a session has one trigger
    emit = tuple(
        np.array([_PRIOR_COUNTS[role].get(channel, (1.0,) * SIZES[channel]) for role in ROLES])
        for channel in CHANNELS
    )
    return RoleModel(
        _normalised(start), _normalised(move), tuple(_normalised(table) for table in emit)
    )


def fit_roles(
    sessions: Sequence[np.ndarray], *, rounds: int = 15, strength: float = 0.5
) -> tuple[RoleModel, list[float]]:
    """EM over sessions, int64 [T, 4] each, and the log-likelihood before every round.

    strength: the prior's weight as a share of all steps; it keeps each role's meaning.
    """
    seen, mask = _padded(sessions)
    base = prior_role_model()
    model, history = base, []
    weight = strength * max(float(mask.sum()), 1.0)
    for _ in range(rounds):
        posterior, pairs, log_likelihood = _expect(model, seen, mask)
        history.append(log_likelihood)
        model = _maximise(base, seen, mask, posterior, pairs, weight)
    return model, history


def _padded(sessions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    length = max((len(session) for session in sessions), default=1)
    seen = np.full((len(sessions), length, len(CHANNELS)), UNSEEN, dtype=np.int64)
    mask = np.zeros((len(sessions), length), dtype=bool)
    for row, session in enumerate(sessions):
        seen[row, : len(session)], mask[row, : len(session)] = session, True
    return seen, mask


def _expect(
    model: RoleModel, seen: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Forward and backward, all sessions at once: P(role) [S, T, R], expected moves [R, R]."""
    log = model.emission(seen)
    top = log.max(axis=-1, keepdims=True)
    likely = np.where(mask[..., None], np.exp(log - top), 1.0)
    forward, scale = np.empty_like(likely), np.ones(mask.shape)
    for t in range(mask.shape[1]):
        ahead = model.start if t == 0 else forward[:, t - 1] @ model.move
        joint = ahead * likely[:, t]
        total = joint.sum(axis=-1)
        scale[:, t] = np.where(mask[:, t], total, 1.0)
        forward[:, t] = joint / total[:, None]
    backward = np.ones_like(likely)
    pairs = np.zeros_like(model.move)
    for t in range(mask.shape[1] - 2, -1, -1):
        later = likely[:, t + 1] * backward[:, t + 1] / scale[:, t + 1, None]
        live = mask[:, t + 1, None]
        pairs += model.move * ((forward[:, t] * live).T @ (later * live))
        backward[:, t] = np.where(live, later @ model.move.T, 1.0)
    posterior = forward * backward
    posterior = np.where(mask[..., None], posterior / posterior.sum(axis=-1, keepdims=True), 0.0)
    known = float((np.log(scale) + top[..., 0])[mask].sum())
    return posterior, pairs, known


def _maximise(
    base: RoleModel,
    seen: np.ndarray,
    mask: np.ndarray,
    posterior: np.ndarray,
    pairs: np.ndarray,
    weight: float,
) -> RoleModel:
    emit = []
    for channel, table in enumerate(base.emit):
        value, share = seen[..., channel][mask], posterior[mask]
        counts = np.stack(
            [np.bincount(value, share[:, r], table.shape[1]) for r in range(len(table))]
        )
        emit.append(_normalised(counts + weight * table))
    return RoleModel(
        _normalised(posterior[:, 0].sum(axis=0) + weight * base.start),
        _normalised(pairs + weight * base.move),
        tuple(emit),
    )


def _normalised(table: np.ndarray) -> np.ndarray:
    shares: np.ndarray = table / table.sum(axis=-1, keepdims=True)
    return shares
