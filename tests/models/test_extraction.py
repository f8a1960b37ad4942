"""Laws of the rivals' layers: the same shapes as PLE, sharing what their names say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.ranking.ple.network import Architecture, Ple, Size, extraction, split_last

SIZE = Size(9, 9, 9, user_x=2, video_x=2, genres=3, kinds=4, tasks=3, expert=8)


def touched(architecture: Architecture) -> list[set[str]]:
    """Per task the parameters that its tower's gradient reaches."""
    layers = extraction(6, replace(SIZE, architecture=architecture))
    found = []
    for task in range(SIZE.tasks):
        layers.zero_grad()
        layers(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))[
            ..., task, :
        ].sum().backward()
        named = layers.named_parameters()
        found.append({n for n, p in named if p.grad is not None and bool(p.grad.abs().sum() > 0)})
    return found


def test_what_is_served_is_ple() -> None:
    assert isinstance(extraction(6, SIZE), Ple)


@pytest.mark.parametrize("architecture", ["ple", "shared_bottom", "single_task"])
def test_every_architecture_gives_each_task_its_tower(architecture: Architecture) -> None:
    layers = extraction(6, replace(SIZE, architecture=architecture))
    assert layers(torch.randn(4, 7, 6)).shape == (4, 7, SIZE.tasks, SIZE.expert)


def test_tasks_share_everything_something_or_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bottom, single, ple = (touched(a) for a in ("shared_bottom", "single_task", "ple"))
    assert bottom[0] == bottom[1] == bottom[2]
    assert not single[0] & single[1]
    assert ple[0] & ple[1]
    assert ple[0] - ple[1]


def test_ple_starts_close_to_a_shared_bottom() -> None:
    """Before anything is learned every task reads the shared experts' sum, and little else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = Ple(6, SIZE)
        x = torch.randn(50, 6)
        gates, out = split_last(layers.gates_1(x)[:, : SIZE.tasks * 3], 3).detach(), layers(x)
    shares = gates.softmax(-1) * layers.gain
    assert (shares[..., 0] < 0.5).all(), "own experts have yet to earn their part"
    assert float(shares[..., 1:].mean()) == pytest.approx(1.0, abs=0.1), "the sum, not the mean"
    apart = (out - out.mean(1, keepdim=True)).std()
    assert apart < 0.5 * out.std(), "tasks read nearly the same"


def test_weights_stored_without_a_gain_mean_what_they_meant() -> None:
    layers = Ple(6, SIZE)
    stored = {k: v for k, v in layers.state_dict().items() if k != "gain"}
    again = Ple(6, SIZE)
    again.load_state_dict(stored)
    layers.gain.fill_(1.0)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again(x), layers(x))
    assert float(Ple(6, SIZE).gain) == SIZE.shared_experts
