"""Laws of the expert layers: one shape for all architectures, sharing as their names say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.layers.experts import Architecture, Ple, build_experts, split_last
from models.ranking.ple.config import RankerSize

TASKS, EXPERT, SHARED = 3, 8, 2


def ple() -> Ple:
    return Ple(6, tasks=TASKS, expert=EXPERT, shared_experts=SHARED)


def build(architecture: Architecture) -> nn.Module:
    return build_experts(architecture, 6, tasks=TASKS, expert=EXPERT, shared_experts=SHARED)


def trained_by_task(architecture: Architecture) -> list[set[str]]:
    """Per task the parameters that its tower's gradient reaches."""
    layers = build(architecture)
    found = []
    for task in range(TASKS):
        layers.zero_grad()
        layers(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))[
            ..., task, :
        ].sum().backward()
        named = layers.named_parameters()
        found.append({n for n, p in named if p.grad is not None and bool(p.grad.abs().sum() > 0)})
    return found


def test_the_served_architecture_is_ple() -> None:
    assert isinstance(build(RankerSize.architecture), Ple)


@pytest.mark.parametrize("architecture", ["ple", "shared_bottom", "single_task"])
def test_every_architecture_gives_each_task_its_view(architecture: Architecture) -> None:
    assert build(architecture)(torch.randn(4, 7, 6)).shape == (4, 7, TASKS, EXPERT)


def test_tasks_share_everything_something_or_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bottom, single, both = (trained_by_task(a) for a in ("shared_bottom", "single_task", "ple"))
    assert bottom[0] == bottom[1] == bottom[2]
    assert not single[0] & single[1]
    assert both[0] & both[1]
    assert both[0] - both[1]


def test_ple_starts_close_to_a_shared_bottom() -> None:
    """Before training every task reads the shared experts' sum, and little else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = ple()
        x = torch.randn(50, 6)
        gates, out = split_last(layers.gates_1(x)[:, : TASKS * 3], 3).detach(), layers(x)
    shares = gates.softmax(-1) * layers.gain
    assert (shares[..., 0] < 0.5).all(), "own experts start small"
    assert float(shares[..., 1:].mean()) == pytest.approx(1.0, abs=0.1), "the sum, not the mean"
    difference = (out - out.mean(1, keepdim=True)).std()
    assert difference < 0.5 * out.std(), "tasks start nearly equal"


def test_weights_stored_without_a_gain_keep_their_meaning() -> None:
    layers = ple()
    stored = {k: v for k, v in layers.state_dict().items() if k != "gain"}
    again = ple()
    again.load_state_dict(stored)
    layers.gain.fill_(1.0)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again(x), layers(x))
    assert float(ple().gain) == SHARED
