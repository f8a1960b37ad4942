"""What a platform logs of fusion, and what the policy may observe of it.

Knows served predictions, weights with their density, actions and satisfaction. Does
not know what users truly value: nothing here is computed from a planted truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

HALF_LIFE = 12.0  # sessions; beside the lifelong statistic, for tastes that turn
PRIOR_SESSIONS = 4.0  # of shrinkage of action rates
HALF_COUNT = 25.0  # sessions at which the column of their number is 0


@dataclass(frozen=True)
class FusionLog:
    """U users, S sessions, C candidates, K slots, T tasks. Ratios are P(action) over the
    action's population rate, of the served predictions.

    profile float32 [U, D]; means float32 [U, S, T]: attention-weighted slate means of
    ratios; weights float32 [U, S, T] as served; log_density float32 [U, S] of them;
    satisfied float32 [U, S] in {0, 1}; acted float32 [U, S, T]: actions per slate;
    pools float16 [P, S, C, T], shown uint8 [P, S, K], labels bool [P, S, K, T]: of the
    first P users only, those that methods learn slates from; attention float32 [K].
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
        return len(self.pools)

    @property
    def sessions(self) -> int:
        return self.satisfied.shape[1]


@dataclass(frozen=True)
class Observables:
    """What is known of each user before session s; the last row is what serving sees now.

    values float32 [U, S + 1, D]: the profile and the user's own earlier feedback.
    usual float32 [U, S + 1, T]: the user's own mean slate so far. Satisfaction is read
    against it: between users, what is predicted of them goes with what they value, and
    would be taken for an effect of the slate. rates float32 [T]: actions a session, of
    everybody.
    """

    values: torch.Tensor
    usual: torch.Tensor
    rates: torch.Tensor

    @classmethod
    def of(cls, log: FusionLog) -> Observables:
        """Point in time by construction: row s holds sessions < s only."""
        users, sessions = log.satisfied.shape
        y, mean_rate = log.satisfied, log.satisfied.mean()
        centred = log.means - log.means.mean((0, 1))
        n = torch.arange(sessions + 1).float()
        known = n.clamp_min(1)[:, None]
        rate = (_before(y) + PRIOR_SESSIONS * mean_rate) / (n + PRIOR_SESSIONS)
        link = _before(y[..., None] * centred) - rate[..., None] * _before(centred)
        weight = _decay(torch.ones_like(y))
        fresh_rate = (_decay(y) + PRIOR_SESSIONS * mean_rate) / (weight + PRIOR_SESSIONS)
        fresh = _decay(y[..., None] * centred) - fresh_rate[..., None] * _decay(centred)
        base = log.acted.mean((0, 1))
        acted = (_before(log.acted) + PRIOR_SESSIONS * base) / ((known + PRIOR_SESSIONS) * base)
        scale = centred.std((0, 1)).clamp_min(1e-6) * float(y.std().clamp_min(1e-6))
        parts = [
            log.profile[:, None].expand(-1, sessions + 1, -1),
            link / scale / known.sqrt(),
            fresh / scale / weight.clamp_min(1).sqrt()[..., None],
            ((rate - mean_rate) * n.sqrt() / float(y.std().clamp_min(1e-6)))[..., None],
            acted.clamp_min(1e-3).log(),
            (n / HALF_COUNT - 1.0)[None, :, None].expand(users, -1, 1),
        ]
        usual = (_before(log.means) + 2 * log.means.mean((0, 1))) / (known + 2)
        return cls(torch.cat(parts, -1).clamp(-8, 8), usual, base)

    @property
    def now(self) -> torch.Tensor:
        return self.values[:, -1]

    @property
    def width(self) -> int:
        return self.values.shape[-1]


@dataclass(frozen=True)
class OwnStatistics:
    """What a user's own sessions say of each task, float32.

    link, fresh [..., T]: how satisfaction went with what slates held of the task, in
    deviations, lifelong and lately; actions [..., T]: how many; sessions [..., 1], >= 1.
    """

    link: torch.Tensor
    fresh: torch.Tensor
    actions: torch.Tensor
    sessions: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, rates: torch.Tensor) -> OwnStatistics:
        """From `Observables.values` [..., D], whose last columns they are, and its `rates`."""
        tasks = len(rates)
        last = values[..., -3 * tasks - 2 :]
        link, fresh, _, acted, count = torch.split(last, [tasks, tasks, 1, tasks, 1], -1)
        sessions = (HALF_COUNT * (count + 1)).clamp_min(0)
        told = acted.exp() * (sessions + PRIOR_SESSIONS) - PRIOR_SESSIONS
        return cls(link, fresh, (told * rates).clamp_min(0), sessions.clamp_min(1))


def _before(x: torch.Tensor) -> torch.Tensor:
    """Sums over earlier sessions: [U, S, ...] -> [U, S + 1, ...]."""
    return torch.cat([torch.zeros_like(x[:, :1]), x.cumsum(1)], 1)


def _decay(x: torch.Tensor) -> torch.Tensor:
    """Like `_before`, older sessions weighing half as much every HALF_LIFE."""
    keep, state = math.exp(-math.log(2) / HALF_LIFE), torch.zeros_like(x[:, 0])
    rows = [state]
    for s in range(x.shape[1]):
        state = keep * state + x[:, s]
        rows.append(state)
    return torch.stack(rows, 1)
