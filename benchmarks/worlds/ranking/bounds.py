"""Upper bounds in a ranking world: the best static weights and the ceiling's regressor.

Knows the truth; used only for evaluation.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.worlds.ranking.pools import PoolEvaluator


def best_static(
    evaluator: PoolEvaluator, start: torch.Tensor, trials: int, seed: int
) -> torch.Tensor:
    """float32 [T]: searched on true utility by narrowing Dirichlet steps, always on the same pools,
    since a noisy search would lower this baseline by 1 to 4 %."""
    generator = torch.Generator().manual_seed(seed)
    best, value = start, float(evaluator.utility(start).mean())
    for trial in range(trials):
        concentration = 30.0 * 40.0 ** (trial / max(trials - 1, 1))
        gammas = torch._standard_gamma(best * concentration + 0.1, generator=generator)
        step = gammas / gammas.sum()
        found = float(evaluator.utility(step).mean())
        if found > value:
            best, value = step, found
    return best


def regress_truth(
    observed: torch.Tensor, truth: torch.Tensor, steps: int, seed: int
) -> nn.Sequential:
    """A regression of w* on the observables: observed [N, D], truth [N, T]; returns logits."""
    torch.manual_seed(seed)
    last = nn.Linear(128, truth.shape[1])
    net = nn.Sequential(
        nn.Linear(observed.shape[1], 128), nn.GELU(),
        nn.Linear(128, 128), nn.GELU(), last,
    )  # fmt: skip
    with torch.no_grad():
        last.bias.copy_(truth.mean(0).log())
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(observed), (512,))
        loss = (net(observed[rows]).softmax(-1) - truth[rows]).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return net


def explained(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """R^2 of vectors; 0 where the truth does not vary."""
    total = (truth - truth.mean(0)).square().sum()
    return float(1 - (predicted - truth).square().sum() / total) if total > 1e-9 else 0.0
