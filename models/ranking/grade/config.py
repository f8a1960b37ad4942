"""Settings of the fusion policy's training.

Knows numbers. Does not know data or tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_SESSION = 6  # earlier, a user's own feedback is too little to learn from


@dataclass(frozen=True)
class GroupTraining:
    """Settings of the group-relative stage.

    prior, posterior: weights of the rewards. engaged: the prior is predicted engagement alone,
    as where no posterior feedback exists. kl: weight of KL(policy || first stage).
    """

    steps: int = 400
    batch: int = 192
    group: int = 16
    rate: float = 1.5e-3
    clip: float = 0.2
    kl: float = 0.002
    prior: float = 1.0
    posterior: float = 0.02
    engaged: bool = False
    first: int = FIRST_SESSION


@dataclass(frozen=True)
class FusionTraining:
    """Settings of the served policy. `pull`: weight of the KL to the declared start, stage one."""

    listwise_steps: int = 80
    prior_steps: int = 120
    pull: float = 0.02
    rate: float = 1e-3
    group: GroupTraining = field(
        default_factory=lambda: GroupTraining(
            steps=80, batch=128, rate=1e-3, kl=0.02, prior=1.0, posterior=1.0
        )
    )
    threads: int = 1
