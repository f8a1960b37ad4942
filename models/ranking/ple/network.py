"""The ranker's network: history attention, two PLE levels, and GRADE's fusion policy.

Knows tensors. Does not know data, training or export. Shapes: B requests, C candidates,
H history, T tasks, D width. Index 0 is "none", 1 is the cold bucket of unknown ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.ranking.grade.policy import START_CONCENTRATION, FusionPolicy

NONE, COLD, FIRST_KNOWN = 0, 1, 2
KNOWN = -1  # the column of user_x that says whether the feature service knows the user
Architecture = Literal["ple", "shared_bottom", "single_task"]
_OWN_FIRST = -2.0  # log-odds of an own expert beside a shared one, before anything is learned
_CLIP = 5.0  # standardised features beyond this say "a lot" and nothing more


@dataclass(frozen=True)
class Size:
    """How large the network is. The counts of users, videos and authors include NONE and COLD."""

    users: int
    videos: int
    authors: int
    user_x: int
    video_x: int
    genres: int
    kinds: int
    tasks: int
    width: int = 32
    expert: int = 48
    shared_experts: int = 2
    architecture: Architecture = "ple"  # what is served; the others are its rivals


class Ple(nn.Module):
    """Progressive layered extraction, two levels (PLE, RecSys 2020): [.., D] -> [.., T, E].

    Each task owns one expert a level and shares the rest; a softmax gate mixes them. It
    starts close to a shared bottom, and a task's own experts have to earn their part: gates
    start at the shared experts (own ones e^-2 beside them) and are as large in total as there
    are shared ones, so that those enter as their sum. As a mean they halve the signal, and
    what a step of the optimiser changes, at each level: on few rows the features then learn
    slower than the ids memorise.
    """

    gain: Tensor

    def __init__(self, width: int, size: Size) -> None:
        super().__init__()
        self.tasks, self.shared, self.expert = size.tasks, size.shared_experts, size.expert
        every = size.tasks + size.shared_experts
        self.experts_1 = nn.Linear(width, every * size.expert)
        self.gates_1 = nn.Linear(width, size.tasks * (1 + self.shared) + every)
        self.own_2 = nn.ModuleList(nn.Linear(size.expert, size.expert) for _ in range(size.tasks))
        self.shared_2 = nn.Linear(size.expert, self.shared * size.expert)
        self.gates_2 = nn.ModuleList(
            nn.Linear(size.expert, 1 + self.shared) for _ in range(size.tasks)
        )
        self.register_buffer("gain", torch.tensor(float(self.shared)))
        self._start_shared()

    @torch.no_grad()
    def _start_shared(self) -> None:
        cut = self.tasks * (1 + self.shared)
        self.gates_1.bias[:cut].view(self.tasks, -1)[:, 0] += _OWN_FIRST
        self.gates_1.bias[cut : cut + self.tasks] += _OWN_FIRST
        for gate in self.gates_2:
            gate.bias[0] += _OWN_FIRST  # type: ignore[index,operator]

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Weights stored without a gain were learned at 1."""
        state.setdefault(f"{prefix}gain", torch.ones(()))
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        experts = split_last(torch.relu(self.experts_1(x)), self.expert)
        gates = self.gates_1(x)
        cut = self.tasks * (1 + self.shared)
        own_gates = self._shares(split_last(gates[..., :cut], 1 + self.shared))
        shared_in = (self._shares(gates[..., cut:]).unsqueeze(-1) * experts).sum(-2)
        shared_1 = experts[..., self.tasks :, :]
        shared_2 = split_last(torch.relu(self.shared_2(shared_in)), self.expert)
        towers = []
        for task in range(self.tasks):
            own_1 = experts[..., task : task + 1, :]
            mixed = _mix(own_gates[..., task, :], own_1, shared_1)
            own_2 = torch.relu(self.own_2[task](mixed)).unsqueeze(-2)
            towers.append(_mix(self._shares(self.gates_2[task](mixed)), own_2, shared_2))
        return torch.stack(towers, -2)

    def _shares(self, gates: Tensor) -> Tensor:
        """What each expert counts for, `gain` in total; gates [.., N] -> [.., N]."""
        return gates.softmax(-1) * self.gain


class SharedBottom(nn.Module):
    """One bottom for every task (Caruana 1997): [.., D] -> [.., T, E], T views of the same.

    Two levels like `Ple`, and as wide as all its experts together are for one task.
    """

    def __init__(self, width: int, size: Size) -> None:
        super().__init__()
        self.tasks, hidden = size.tasks, size.expert * (1 + size.shared_experts)
        self.level_1, self.level_2 = nn.Linear(width, hidden), nn.Linear(hidden, size.expert)

    def forward(self, x: Tensor) -> Tensor:
        bottom = torch.relu(self.level_2(torch.relu(self.level_1(x))))
        return bottom.unsqueeze(-2).expand(*bottom.shape[:-1], self.tasks, -1)


class SingleTasks(nn.Module):
    """A bottom of its own for each task: [.., D] -> [.., T, E]; nothing is shared here."""

    def __init__(self, width: int, size: Size) -> None:
        super().__init__()
        alone = dataclasses.replace(size, tasks=1)
        self.bottoms = nn.ModuleList(SharedBottom(width, alone) for _ in range(size.tasks))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([bottom(x) for bottom in self.bottoms], -2)


def extraction(width: int, size: Size) -> nn.Module:
    """The layers that `size.architecture` names: [.., width] -> [.., T, E]."""
    layers = {"ple": Ple, "shared_bottom": SharedBottom, "single_task": SingleTasks}
    return layers[size.architecture](width, size)


class Ranker(nn.Module):
    """P(action) per candidate and task, and each user's fusion weights.

    rates [T]: each action's population rate; P(action) is fused as a ratio to it, since
    weights mean nothing over predictions of different scale. start [T], on the simplex:
    the declared weights of everybody before the policy is `personal` (0 or 1), and of users
    that the feature service does not know. A feature of infinite deviation did not vary in
    training and counts for nothing.
    """

    rates: Tensor
    start: Tensor
    personal: Tensor
    user_mean: Tensor
    user_std: Tensor
    video_mean: Tensor
    video_std: Tensor
    genres_of_video: Tensor

    def __init__(self, size: Size, genres_of_video: Tensor) -> None:
        super().__init__()
        self.size, d = size, size.width
        self.user = nn.Embedding(size.users, d, padding_idx=NONE)
        self.video = nn.Embedding(size.videos, d, padding_idx=NONE)
        self.author = nn.Embedding(size.authors, d, padding_idx=NONE)
        self.kind = nn.Embedding(size.kinds, d)
        for table in (self.user, self.video, self.author, self.kind):
            nn.init.normal_(table.weight, std=0.05)
        self.genre = nn.Linear(size.genres, d, bias=False)
        self.no_history = nn.Parameter(torch.zeros(1, 1, d))
        self.query = nn.Linear(d, d, bias=False)
        self.stem = nn.Linear(5 * d + size.user_x + size.video_x + 3, 2 * d)
        self.ple = extraction(2 * d, size)  # bundles know it by this name
        self.towers = nn.ModuleList(nn.Linear(size.expert, 1) for _ in range(size.tasks))
        even = torch.full((size.tasks,), 1 / size.tasks)
        self.fusion = FusionPolicy(size.user_x, even)
        self.register_buffer("start", even.clone())
        self.register_buffer("rates", torch.ones(size.tasks))
        self.register_buffer("personal", torch.zeros(()))
        for name, length in (("user", size.user_x), ("video", size.video_x)):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))
        self.register_buffer("genres_of_video", genres_of_video)

    def forward(
        self,
        user: Tensor,
        user_x: Tensor,
        history: Tensor,
        history_kind: Tensor,
        video: Tensor,
        author: Tensor,
        genres: Tensor,
        video_x: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits [B, C, T], weights [B, T] on the simplex and scores [B, C].

        user: int64 [B]; user_x [B, Fu]; history, history_kind: int64 [B, H];
        video, author: int64 [B, C]; genres [B, C, G]; video_x [B, C, Fv].
        """
        facts_BU = self.facts(user_x)
        facts_BCV = _clipped((video_x - self.video_mean) / self.video_std)
        item_BCD = self.video(video) + self.genre(_clipped(genres)) + self.author(author)
        past_BHD = self._past(history, history_kind)
        seen_BH1 = (history != NONE).unsqueeze(-1).to(past_BHD.dtype)
        taste_BD = (past_BHD[:, 1:] * seen_BH1).sum(1) / (seen_BH1.sum(1) + 1)
        near_BCD = self._attend(item_BCD, past_BHD, history)
        x = self._stem(item_BCD, near_BCD, taste_BD, self.user(user), facts_BU, facts_BCV)
        hidden = self.ple(x)
        logits = torch.cat([t(hidden[..., n, :]) for n, t in enumerate(self.towers)], -1)
        weights = self.weights(user_x)
        return logits, weights, self.fuse(logits, weights)

    def facts(self, user_x: Tensor) -> Tensor:
        """What the policy observes: user_x [B, Fu], standardised, finite whatever comes in."""
        return _clipped((user_x - self.user_mean) / self.user_std)

    def alpha(self, user_x: Tensor) -> Tensor:
        """float32 [B, T], positive: the concentration of each user's Dirichlet over weights;
        one about `start`, as sure as a policy begins, where there is no policy of the user's own.
        """
        own: Tensor = self.fusion(self.facts(user_x))
        known = (user_x[:, KNOWN:] > 0.5).to(own.dtype) * self.personal
        alpha: Tensor = known * own + (1 - known) * START_CONCENTRATION * self.start
        return alpha

    def weights(self, user_x: Tensor) -> Tensor:
        """float32 [B, T] on the simplex: the mean of each user's Dirichlet."""
        alpha = self.alpha(user_x)
        return alpha / alpha.sum(-1, keepdim=True)

    def fuse(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The served score: each P(action) over its rate, times its weight.

        [B, C, T], [B, T] -> [B, C].
        """
        score: Tensor = (self.ratios(logits) * weights.unsqueeze(1)).sum(-1)
        return score

    def ratios(self, logits: Tensor) -> Tensor:
        """P(action) in units of its population rate; [B, C, T]."""
        return logits.sigmoid() / self.rates

    def predicting(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of P(action); those of the fusion policy learn apart (`models.ranking.grade.served_fusion`)."""
        return (each for each in self.named_parameters() if not each[0].startswith("fusion."))

    def first_columns(self, side: str) -> list[Tensor]:
        """Views [out, F] of the weights that read one side's facts ("user" or "video")."""
        at = 5 * self.size.width + (self.size.user_x if side == "video" else 0)
        stem = self.stem.weight[:, at : at + getattr(self.size, f"{side}_x")]
        return [stem] if side == "video" else [stem, self.fusion.reads.weight]

    def _past(self, history: Tensor, kind: Tensor) -> Tensor:
        """[B, 1 + H, D]; the first place stands for "nothing in particular"."""
        past = self.video(history) + self.genre(self.genres_of_video[history]) + self.kind(kind)
        return torch.cat([self.no_history.expand(past.shape[0], 1, -1), past], 1)

    def _attend(self, item: Tensor, past: Tensor, history: Tensor) -> Tensor:
        affinity = self.query(item) @ past.transpose(1, 2) / self.size.width**0.5
        hidden = torch.where(history == NONE, -1e9, 0.0).unsqueeze(1)
        bias = torch.cat([torch.zeros_like(hidden[..., :1]), hidden], -1)
        near: Tensor = (affinity + bias).softmax(-1) @ past
        return near

    def _stem(
        self, item: Tensor, near: Tensor, taste: Tensor, user: Tensor, facts: Tensor, video: Tensor
    ) -> Tensor:
        wide = item.shape[1]
        taste_BCD = taste.unsqueeze(1).expand(-1, wide, -1)
        user_BCD = user.unsqueeze(1).expand(-1, wide, -1)
        products = [item * near, item * taste_BCD, item * user_BCD]
        dots = [p.sum(-1, keepdim=True) for p in products]
        facts_BCU = facts.unsqueeze(1).expand(-1, wide, -1)
        parts = [item, near, item * near, item * taste_BCD, user_BCD, facts_BCU, video, *dots]
        return torch.relu(self.stem(torch.cat(parts, -1)))


def _clipped(facts: Tensor) -> Tensor:
    """Facts within the clip; what is not finite counts as nothing."""
    return torch.nan_to_num(facts, 0.0, 0.0, 0.0).clamp(-_CLIP, _CLIP)


def split_last(x: Tensor, size: int) -> Tensor:
    """[.., N * size] -> [.., N, size]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def _mix(gates: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """Gates [.., 1 + S] over one own and S shared experts [.., E]."""
    return (gates.unsqueeze(-1) * torch.cat([own, shared], -2)).sum(-2)
