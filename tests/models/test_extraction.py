"""Laws of the rivals' layers: the same shapes as PLE, sharing what their names say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.ranking.network import Architecture, Ple, Size, extraction

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
