"""The ranker's network: history attention, two PLE levels, and GRADE's fusion policy.

Knows tensors. Does not know data, training or export. Shapes: B requests, C candidates,
H history, T tasks, D width. Index 0 is "none", 1 is the cold bucket of unknown ids.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.experts import build_experts
from models.ranking.grade.policy import START_CONCENTRATION, FusionPolicy
from models.ranking.ple.config import RankerSize
from models.ranking.tasks import SHIPPED_TASKS, RankerTasks
from models.retrieval.factorisation.config import PARTS

NONE, COLD, FIRST_KNOWN = 0, 1, 2
KNOWN_COLUMN = -1  # of user_x: whether the feature service knows the user
SLOTS = 100  # later slots share the last bias
_CLIP = 5.0  # standardised features beyond this carry no more information


class Ranker(nn.Module):
    """P(action) per candidate and task, and each user's fusion weights.

    rates [T]: each action's population rate. P(action) is fused as a ratio to it, since weights
    mean nothing over predictions of different scale. start [T], on the simplex: the declared
    weights of every user before the policy is `personal` (0 or 1), and of users that the feature
    service does not know. A feature of infinite deviation did not vary in training and counts 0.

    Log-odds are linear in the parts of a user's liking (`models.retrieval.factorisation`), and the
    experts add what those do not explain.

    Bundles store the weights by attribute name; "video" in these names stands for any item.
    """

    rates: Tensor
    start: Tensor
    personal: Tensor
    user_mean: Tensor
    user_std: Tensor
    video_mean: Tensor
    video_std: Tensor
    genres_of_video: Tensor

    def __init__(
        self, size: RankerSize, genres_of_item: Tensor, tasks: RankerTasks = SHIPPED_TASKS
    ) -> None:
        super().__init__()
        self.size, self.tasks, d = size, tasks, size.width
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
        self.ple = build_experts(
            size.architecture,
            2 * d,
            tasks=size.tasks,
            expert=size.expert,
            shared_experts=size.shared_experts,
        )
        self.towers = nn.ModuleList(nn.Linear(size.expert, 1) for _ in range(size.tasks))
        self.liking = nn.Linear(len(PARTS), size.tasks, bias=False)
        for layer in (*self.towers, self.liking):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
        even = torch.full((size.tasks,), 1 / size.tasks)
        self.fusion = FusionPolicy(size.user_x, even)
        self.register_buffer("start", even.clone())
        self.register_buffer("rates", torch.ones(size.tasks))
        self.register_buffer("personal", torch.zeros(()))
        for name, length in (("user", size.user_x), ("video", size.video_x)):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))
        self.register_buffer("genres_of_video", genres_of_item)

    def forward(
        self,
        user: Tensor,
        user_x: Tensor,
        history: Tensor,
        history_kind: Tensor,
        item: Tensor,
        author: Tensor,
        genres: Tensor,
        item_x: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, C, T], weights [B, T] on the simplex and scores [B, C]; float32.

        user: int64 [B]; user_x: float32 [B, Fu]; history, history_kind: int64 [B, H];
        item, author: int64 [B, C]; genres: float32 [B, C, G]; item_x: float32 [B, C, Fi + 3],
        the last three the parts of the user's liking.
        """
        user_BF = self.user_facts(user_x)
        item_x, liking = torch.split(item_x, [self.size.video_x, len(PARTS)], -1)
        facts_BCF = _clipped((item_x - self.video_mean) / self.video_std)
        item_BCD = self.video(item) + self.genre(_clipped(genres)) + self.author(author)
        past_BHD = self._past(history, history_kind)
        seen_BH1 = (history != NONE).unsqueeze(-1).to(past_BHD.dtype)
        taste_BD = (past_BHD[:, 1:] * seen_BH1).sum(1) / (seen_BH1.sum(1) + 1)
        near_BCD = self._attend(item_BCD, past_BHD, history)
        x = self._stem(item_BCD, near_BCD, taste_BD, self.user(user), user_BF, facts_BCF)
        hidden = self.ple(x)
        logits = torch.cat([t(hidden[..., n, :]) for n, t in enumerate(self.towers)], -1)
        logits = logits + self.liking(torch.nan_to_num(liking, 0.0, 0.0, 0.0))
        weights = self.weights(user_x)
        return logits, weights, self.fuse(logits, weights)

    def user_facts(self, user_x: Tensor) -> Tensor:
        """The policy's observables: user_x [B, Fu], standardised and always finite."""
        return _clipped((user_x - self.user_mean) / self.user_std)

    def alpha(self, user_x: Tensor) -> Tensor:
        """float32 [B, T], positive: the concentration of each user's Dirichlet over weights.

        For users without a policy of their own it lies about `start`, with the total that an
        untrained policy has.
        """
        own: Tensor = self.fusion(self.user_facts(user_x))
        known = (user_x[:, KNOWN_COLUMN:] > 0.5).to(own.dtype) * self.personal
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

    def prediction_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that P(action) is trained by. Those of the fusion policy are trained
        separately, those of the liking are fitted (`models.ranking.ple.liking`)."""
        fitted = ("fusion.", "liking.")
        return (each for each in self.named_parameters() if not each[0].startswith(fitted))

    def input_columns(self, side: str) -> list[Tensor]:
        """Views [out, F] of the weights that read one side's features ("user" or "video")."""
        at = 5 * self.size.width + (self.size.user_x if side == "video" else 0)
        stem = self.stem.weight[:, at : at + getattr(self.size, f"{side}_x")]
        return [stem] if side == "video" else [stem, self.fusion.input_layer.weight]

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
        self,
        item: Tensor,
        near: Tensor,
        taste: Tensor,
        user: Tensor,
        user_facts: Tensor,
        item_facts: Tensor,
    ) -> Tensor:
        products = [item * near, item * taste.unsqueeze(1), item * user.unsqueeze(1)]
        dots = [p.sum(-1, keepdim=True) for p in products]
        d, facts = self.size.width, self.size.user_x
        weight = self.stem.weight
        own, rest = weight[:, : 4 * d], weight[:, 5 * d + facts :]
        # What is the user's alone is multiplied once, not for each candidate.
        of_user = functional.linear(
            torch.cat([user, user_facts], -1), weight[:, 4 * d : 5 * d + facts], self.stem.bias
        )
        parts = [item, near, *products[:2], item_facts, *dots]
        of_item = functional.linear(torch.cat(parts, -1), torch.cat([own, rest], -1))
        return torch.relu(of_item + of_user.unsqueeze(1))


class SlotBias(nn.Module):
    """Position bias in log-odds, [G, C] slots -> [G, C, T + 1]; the first slot's stay 0.

    A candidate that was shown low was looked at less; without a counter-measure the ranker
    attributes that to the item. One bias per slot and task, and one for the listwise loss,
    explain the position during training (a shallow tower, Zhao et al., RecSys 2019). They are
    not served: served P(action) is that of the first slot. Examples without a slot stand at 0.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.biases = nn.Embedding(SLOTS, tasks + 1, padding_idx=0)
        nn.init.zeros_(self.biases.weight)

    def tasks(self, slot: Tensor) -> Tensor:
        """Added to the logits of each task: [G, C] -> [G, C, T]."""
        biases: Tensor = self.biases(slot.clamp_max(SLOTS - 1))
        return biases[..., :-1]

    def group(self, slot: Tensor) -> Tensor:
        """Added to the log-scores of a group: [G, C] -> [G, C]."""
        biases: Tensor = self.biases(slot.clamp_max(SLOTS - 1))
        return biases[..., -1]

    @torch.no_grad()
    def odds(self) -> Tensor:
        """float32 [SLOTS, T]: the odds of an action relative to the first slot."""
        return self.biases.weight[:, :-1].exp()


def _clipped(facts: Tensor) -> Tensor:
    """Features within the clip; a value that is not finite counts 0."""
    return torch.nan_to_num(facts, 0.0, 0.0, 0.0).clamp(-_CLIP, _CLIP)
