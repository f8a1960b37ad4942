"""Expert layers of multi-task networks: PLE, one shared bottom, one bottom per task.

Knows tensors and layer sizes. Does not know features, losses or any one model. All three map
[.., D] to [.., T, E], one view of width E per task.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Architecture = Literal["ple", "shared_bottom", "single_task"]
_OWN_EXPERT_LOGIT = -2.0  # an own expert's initial log-odds beside a shared one


class Ple(nn.Module):
    """Progressive layered extraction, two levels (Tang et al., RecSys 2020).

    Each task owns one expert a level and shares the rest; a softmax gate mixes them. Training
    starts near a shared bottom: gates favour the shared experts (own ones weigh e^-2 beside
    them), and a gate's weights sum to the number of shared experts, so these enter as their sum.
    As a mean they would halve the signal, and the effect of an optimiser step, at each level;
    on few rows the features then learn more slowly than the ids memorise.
    """

    gain: Tensor

    def __init__(self, width: int, *, tasks: int, expert: int, shared_experts: int) -> None:
        super().__init__()
        self.tasks, self.shared, self.expert = tasks, shared_experts, expert
        every = tasks + shared_experts
        self.experts_1 = nn.Linear(width, every * expert)
        self.gates_1 = nn.Linear(width, tasks * (1 + self.shared) + every)
        self.own_2 = nn.ModuleList(nn.Linear(expert, expert) for _ in range(tasks))
        self.shared_2 = nn.Linear(expert, self.shared * expert)
        self.gates_2 = nn.ModuleList(nn.Linear(expert, 1 + self.shared) for _ in range(tasks))
        self.register_buffer("gain", torch.tensor(float(self.shared)))
        self._favour_shared_experts()

    @torch.no_grad()
    def _favour_shared_experts(self) -> None:
        split = self.tasks * (1 + self.shared)
        self.gates_1.bias[:split].view(self.tasks, -1)[:, 0] += _OWN_EXPERT_LOGIT
        self.gates_1.bias[split : split + self.tasks] += _OWN_EXPERT_LOGIT
        for gate in self.gates_2:
            gate.bias[0] += _OWN_EXPERT_LOGIT  # type: ignore[index,operator]

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Weights that were stored without a gain were trained with a gain of 1."""
        state.setdefault(f"{prefix}gain", torch.ones(()))
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """float32 [.., D] -> [.., T, E]."""
        experts = split_last(torch.relu(self.experts_1(x)), self.expert)
        gates = self.gates_1(x)
        split = self.tasks * (1 + self.shared)
        own_gates = self._shares(split_last(gates[..., :split], 1 + self.shared))
        shared_in = (self._shares(gates[..., split:]).unsqueeze(-1) * experts).sum(-2)
        shared_1 = experts[..., self.tasks :, :]
        shared_2 = split_last(torch.relu(self.shared_2(shared_in)), self.expert)
        views = []
        for task in range(self.tasks):
            own_1 = experts[..., task : task + 1, :]
            mixed = _mix(own_gates[..., task, :], own_1, shared_1)
            own_2 = torch.relu(self.own_2[task](mixed)).unsqueeze(-2)
            views.append(_mix(self._shares(self.gates_2[task](mixed)), own_2, shared_2))
        return torch.stack(views, -2)

    def _shares(self, gates: Tensor) -> Tensor:
        """Each expert's weight, `gain` in total; [.., N] -> [.., N]."""
        return gates.softmax(-1) * self.gain


class SharedBottom(nn.Module):
    """One bottom for every task (Caruana 1997); the T views are the same.

    Two levels like `Ple`, as wide as all of its experts for one task.
    """

    def __init__(self, width: int, *, tasks: int, expert: int, shared_experts: int) -> None:
        super().__init__()
        self.tasks, hidden = tasks, expert * (1 + shared_experts)
        self.level_1, self.level_2 = nn.Linear(width, hidden), nn.Linear(hidden, expert)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [.., D] -> [.., T, E]."""
        bottom = torch.relu(self.level_2(torch.relu(self.level_1(x))))
        return bottom.unsqueeze(-2).expand(*bottom.shape[:-1], self.tasks, -1)


class SingleTasks(nn.Module):
    """One bottom per task; nothing is shared."""

    def __init__(self, width: int, *, tasks: int, expert: int, shared_experts: int) -> None:
        super().__init__()
        self.bottoms = nn.ModuleList(
            SharedBottom(width, tasks=1, expert=expert, shared_experts=shared_experts)
            for _ in range(tasks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32 [.., D] -> [.., T, E]."""
        return torch.cat([bottom(x) for bottom in self.bottoms], -2)


def build_experts(
    architecture: Architecture, width: int, *, tasks: int, expert: int, shared_experts: int
) -> nn.Module:
    """The layers that `architecture` names: [.., width] -> [.., tasks, expert]."""
    layers = {"ple": Ple, "shared_bottom": SharedBottom, "single_task": SingleTasks}
    return layers[architecture](width, tasks=tasks, expert=expert, shared_experts=shared_experts)


def split_last(x: Tensor, size: int) -> Tensor:
    """[.., N * size] -> [.., N, size]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def _mix(gates: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """Gates [.., 1 + S] over one own and S shared experts [.., E]."""
    return (gates.unsqueeze(-1) * torch.cat([own, shared], -2)).sum(-2)
