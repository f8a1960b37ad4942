"""Logs of fusion, and the observables that the policy may use.

Knows served predictions, weights with their density, actions and satisfaction. Does not know
what users truly value: nothing here is computed from a planted truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

HALF_LIFE = 12.0  # sessions; beside the lifelong statistic, for tastes that change
PRIOR_SESSIONS = 4.0  # strength of the shrinkage of action rates
HALF_COUNT = 25.0  # number of sessions at which their column is 0


@dataclass(frozen=True)
class FusionLog:
    """U users, S sessions, C candidates, K slots, T tasks. Ratios are P(action) over the
    action's population rate, of the served predictions.

    profile float32 [U, D]; means float32 [U, S, T]: attention-weighted slate means of
    ratios; weights float32 [U, S, T] as served; log_density float32 [U, S] of them;
    satisfied float32 [U, S] in {0, 1}; acted float32 [U, S, T]: actions per slate;
    pools float16 [P, S, C, T], shown uint8 [P, S, K], labels bool [P, S, K, T]: of the
    first P users only, whose slates methods are trained on; attention float32 [K].
    """

    profile: torch.Tensor
    means: torch.Tensor
    weights: torch.Tensor
    log_density: torch.Tensor
    satisfied: torch.Tensor
    acted: torch.Tensor
    pools: torch.Tensor
    shown: torch.Tensor
    labels: torch.Tensor
    attention: torch.Tensor

    @property
    def learners(self) -> int:
        """P, the number of users whose slates methods are trained on."""
        return len(self.pools)

    @property
    def sessions(self) -> int:
        return self.satisfied.shape[1]


@dataclass(frozen=True)
class Observables:
    """What is known of each user before session s; the last row is what serving sees now.

    values float32 [U, S + 1, D]: the profile and the user's own earlier feedback.
    usual float32 [U, S + 1, T]: the user's own mean slate so far. Satisfaction is read
    against it: between users, predictions correlate with what they value, which would be
    mistaken for an effect of the slate. rates float32 [T]: mean actions a session.
    """

    values: torch.Tensor
    usual: torch.Tensor
    rates: torch.Tensor

    @classmethod
    def of(cls, log: FusionLog) -> Observables:
        """The observables of a log. Point in time: row s depends on sessions < s only."""
        users, sessions = log.satisfied.shape
        y, mean_rate = log.satisfied, log.satisfied.mean()
        centred = log.means - log.means.mean((0, 1))
        n = torch.arange(sessions + 1).float()
        count = n.clamp_min(1)[:, None]
        rate = (_sum_before(y) + PRIOR_SESSIONS * mean_rate) / (n + PRIOR_SESSIONS)
        link = _sum_before(y[..., None] * centred) - rate[..., None] * _sum_before(centred)
        weight = _decayed_sum_before(torch.ones_like(y))
        fresh_rate = (_decayed_sum_before(y) + PRIOR_SESSIONS * mean_rate) / (
            weight + PRIOR_SESSIONS
        )
        fresh = _decayed_sum_before(y[..., None] * centred) - fresh_rate[
            ..., None
        ] * _decayed_sum_before(centred)
        base = log.acted.mean((0, 1))
        acted = (_sum_before(log.acted) + PRIOR_SESSIONS * base) / ((count + PRIOR_SESSIONS) * base)
        scale = centred.std((0, 1)).clamp_min(1e-6) * float(y.std().clamp_min(1e-6))
        parts = [
            log.profile[:, None].expand(-1, sessions + 1, -1),
            link / scale / count.sqrt(),
            fresh / scale / weight.clamp_min(1).sqrt()[..., None],
            ((rate - mean_rate) * n.sqrt() / float(y.std().clamp_min(1e-6)))[..., None],
            acted.clamp_min(1e-3).log(),
            (n / HALF_COUNT - 1.0)[None, :, None].expand(users, -1, 1),
        ]
        usual = (_sum_before(log.means) + 2 * log.means.mean((0, 1))) / (count + 2)
        return cls(torch.cat(parts, -1).clamp(-8, 8), usual, base)

    @property
    def now(self) -> torch.Tensor:
        """float32 [U, D]: what serving sees."""
        return self.values[:, -1]

    @property
    def width(self) -> int:
        return self.values.shape[-1]


@dataclass(frozen=True)
class OwnStatistics:
    """Statistics of a user's own sessions per task, float32.

    link, fresh [..., T]: correlation of satisfaction with the slates' share of the task, in
    deviations, lifelong and recent; actions [..., T]: counts; sessions [..., 1], >= 1.
    """

    link: torch.Tensor
    fresh: torch.Tensor
    actions: torch.Tensor
    sessions: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, rates: torch.Tensor) -> OwnStatistics:
        """From `Observables.values` [..., D], whose last columns hold them, and its `rates`."""
        tasks = len(rates)
        last = values[..., -3 * tasks - 2 :]
        link, fresh, _, acted, count = torch.split(last, [tasks, tasks, 1, tasks, 1], -1)
        sessions = (HALF_COUNT * (count + 1)).clamp_min(0)
        relative = acted.exp() * (sessions + PRIOR_SESSIONS) - PRIOR_SESSIONS
        return cls(link, fresh, (relative * rates).clamp_min(0), sessions.clamp_min(1))


def _sum_before(x: torch.Tensor) -> torch.Tensor:
    """Sums over earlier sessions: [U, S, ...] -> [U, S + 1, ...]."""
    return torch.cat([torch.zeros_like(x[:, :1]), x.cumsum(1)], 1)


def _decayed_sum_before(x: torch.Tensor) -> torch.Tensor:
    """Like `_sum_before`, older sessions weighing half as much every HALF_LIFE."""
    keep, state = math.exp(-math.log(2) / HALF_LIFE), torch.zeros_like(x[:, 0])
    rows = [state]
    for s in range(x.shape[1]):
        state = keep * state + x[:, s]
        rows.append(state)
    return torch.stack(rows, 1)
