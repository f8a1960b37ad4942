"""Laws of the contract of updates: the losses' gradients, and the same results as plain loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import logsigmoid

from models.alignment.pairs import listwise_pairs, preference_pairs
from models.alignment.ranker_policy import AlignmentConfig, align_ranker, reference_scores
from models.ranking.grade.config import GroupTraining
from models.ranking.grade.fusion_update import FusionUpdate, WeightGroup, group_relative
from models.ranking.grade.policy import FusionPolicy
from models.ranking.ple.data import impression_examples
from models.ranking.ple.export import read_network
from models.ranking.ple.tensors import build_batch
from models.ranking.ple.train import log_score, ranker_loss, seeded_torch, split_rows
from models.recipe import TrainingLog
from models.updates.contract import StepSettings, Terms, update_policy
from models.updates.losses import (
    Divergence,
    choice_kl,
    clipped_gain,
    divergence,
    group_advantage,
)
from models.updates.methods import (
    GroupRelative,
    ListwisePreference,
    SelfDistillation,
)
from streams.progress import no_progress

WORDS, LENGTH = 5, 3


@dataclass(frozen=True)
class Sequences:
    """N contexts with M sequences of LENGTH words; the privileged context names the outcome."""

    context: Tensor  # [N]
    members: Tensor  # [N, M, L]
    mask: Tensor | None
    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    log_before: Tensor
    reward: Tensor
    advantage: Tensor
    outcome: Tensor  # [N], a word


class TablePolicy(nn.Module):
    """A word's logits are a row of a table by context and place, plus what the outcome adds."""

    def __init__(self, contexts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(contexts, LENGTH, WORDS))
        self.hint = nn.Parameter(torch.tensor(4.0))

    def trained(self) -> Sequence[nn.Parameter]:
        return list(self.parameters())

    def clipped(self) -> Sequence[nn.Parameter]:
        return self.trained()

    def logits(self, context: Tensor) -> Tensor:
        return self.table[context]

    def terms(self, group: Sequences, reference: TablePolicy) -> Terms:
        ours, theirs = self.logits(group.context), reference.logits(group.context).detach()
        hinted = torch.nn.functional.one_hot(group.outcome, WORDS)[:, None] * self.hint
        words = group.members.unsqueeze(-1)
        logs = [
            x.log_softmax(-1)[:, None].expand(*group.members.shape, WORDS).gather(-1, words)[..., 0]
            for x in (ours, theirs)
        ]
        kl = kl_divergence(Categorical(logits=ours), Categorical(logits=theirs)).sum(-1)  # type: ignore[no-untyped-call]
        return Terms(logs[0], logs[1], kl, logits=ours, teacher=ours + hinted)


def sequences(policy: TablePolicy, seed: int, wanted: int = 2, members: int = 8) -> Sequences:
    """Drawn from the policy; the reward is the share of words that equal `wanted`."""
    generator = torch.Generator().manual_seed(seed)
    n = len(policy.table)
    context = torch.arange(n)
    with torch.no_grad():
        p = policy.logits(context).softmax(-1)
        flat = p.reshape(-1, WORDS)
        drawn = torch.multinomial(flat, members, replacement=True, generator=generator)
        drawn = drawn.view(n, LENGTH, members).transpose(1, 2)
        before = p.log()[:, None].expand(n, members, LENGTH, WORDS).gather(-1, drawn[..., None])
    reward = (drawn == wanted).float().mean(-1)
    best = reward.argmax(1)
    return Sequences(
        context,
        drawn,
        None,
        best,
        reward < reward.gather(1, best[:, None]),
        torch.ones(n),
        before[..., 0],
        reward,
        group_advantage(reward)[..., None],
        torch.full((n,), wanted),
    )


def groups(policy: TablePolicy, count: int) -> Iterator[Sequences]:
    for seed in range(count):
        yield sequences(policy, seed)


@pytest.mark.parametrize(
    "method",
    [
        GroupRelative(kl=0.01),
        ListwisePreference(beta=0.5),
        SelfDistillation(),
        SelfDistillation("js"),
    ],
    ids=lambda method: f"{method.name} {getattr(method, 'kind', '')}",
)
def test_every_method_raises_the_wanted_word_and_reports_kl_and_reward(method: object) -> None:
    policy = TablePolicy(4)
    reference = deepcopy(policy).requires_grad_(False)
    report = update_policy(
        policy,
        groups(policy, 60),
        reference,
        method,
        StepSettings(rate=0.05),  # type: ignore[arg-type]
    )
    p = policy.logits(torch.arange(4)).softmax(-1)[..., 2]
    assert (p > 1.5 / WORDS).all()
    assert report.kl > 0
    assert report.steps == 60 * method.passes  # type: ignore[attr-defined]
    assert torch.equal(reference.table, torch.zeros_like(reference.table))
    if not isinstance(method, ListwisePreference):  # its reward is relative to the reference
        assert report.reward_after > report.reward_before


def test_an_update_without_a_group_is_refused() -> None:
    policy = TablePolicy(1)
    with pytest.raises(ValueError, match="at least one group"):
        update_policy(policy, [], deepcopy(policy), GroupRelative(), StepSettings(rate=0.1))


def test_a_teacher_gets_no_gradient() -> None:
    """The privileged context's own weight does not move; the student's do."""
    policy = TablePolicy(2)
    group = sequences(policy, 0)
    terms = policy.terms(group, deepcopy(policy))
    SelfDistillation().loss(terms, group).backward()  # type: ignore[no-untyped-call]
    assert policy.hint.grad is None or float(policy.hint.grad) == 0.0
    assert policy.table.grad is not None
    assert policy.table.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["forward_kl", "js"])
def test_divergences_equal_their_definitions(kind: Divergence) -> None:
    student, teacher = torch.randn(2, 6, WORDS, generator=torch.Generator().manual_seed(1))
    p, q = student.softmax(-1), teacher.softmax(-1)
    if kind == "forward_kl":
        truth = (q * (q / p).log()).sum(-1)
    else:
        m = (p + q) / 2
        truth = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        assert (truth < np.log(2)).all()
    torch.testing.assert_close(divergence(student, teacher, kind), truth.mean())
    mask = torch.tensor([True, False, True, False, False, False])
    torch.testing.assert_close(divergence(student, teacher, kind, mask), truth[mask].mean())
    closed = torch.full((6, 1), -torch.inf)  # a choice that neither offers
    wider = divergence(torch.cat([student, closed], 1), torch.cat([teacher, closed], 1), kind)
    torch.testing.assert_close(wider, truth.mean())


def test_an_unknown_divergence_is_named() -> None:
    with pytest.raises(ValueError, match="neither forward_kl nor js"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), "reverse")  # type: ignore[arg-type]


def test_masked_tokens_get_no_gradient_and_each_token_its_own_advantage() -> None:
    log_policy = torch.zeros(1, 2, 3, requires_grad=True)
    advantage = torch.tensor([[[1.0, -2.0, 5.0], [3.0, 5.0, 5.0]]])
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    gain = clipped_gain(
        log_policy, torch.zeros(1, 2, 3), advantage, clip=0.2, max_log_ratio=1.5, mask=mask
    )
    gain.backward()  # type: ignore[no-untyped-call]
    expected = torch.where(mask, advantage / 3, 0.0)
    assert log_policy.grad is not None
    torch.testing.assert_close(log_policy.grad, expected)


def test_a_preference_counts_only_its_masked_tokens() -> None:
    policy = TablePolicy(1)
    group = sequences(policy, 0, members=2)
    terms = Terms(
        torch.tensor([[[1.0, 9.0], [2.0, -9.0]]], requires_grad=True),
        torch.zeros(1, 2, 2),
        torch.zeros(1),
    )
    lists = Sequences(
        **{
            **{name: getattr(group, name) for name in Sequences.__dataclass_fields__},
            "chosen": torch.tensor([0]),
            "rejected": torch.tensor([[False, True]]),
            "mask": torch.tensor([True, False]).expand(1, 2, 2),
        }
    )
    loss = ListwisePreference(beta=1.0).loss(terms, lists)
    torch.testing.assert_close(loss, -logsigmoid(torch.tensor(1.0 - 2.0)))
    assert ListwisePreference().reward(terms, lists) == 0.0


def test_the_kl_of_a_choice_leaves_out_padding() -> None:
    ours, theirs = torch.tensor([[0.0, 1.0, 50.0]]), torch.tensor([[1.0, 0.0, -50.0]])
    real = torch.tensor([[True, True, False]])
    truth = kl_divergence(Categorical(logits=ours[:, :2]), Categorical(logits=theirs[:, :2]))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(choice_kl(ours, theirs, real), truth)


def test_an_order_is_preferred_to_a_click_and_a_click_to_a_pass() -> None:
    grade = np.array([[0, 2, 1, 0]])
    found = listwise_pairs(grade, np.ones((1, 4), bool), np.arange(4)[None])
    assert found.chosen.tolist() == [1, 2]
    assert found.rejected.tolist() == [[True, False, True, False], [True, False, False, True]]


def test_the_fusion_policys_update_equals_a_plain_loop() -> None:
    """To the last bit: the method has not changed by moving under the contract."""
    rules, start = GroupTraining(steps=6, batch=16, group=4), torch.full((3,), 1 / 3)
    torch.manual_seed(0)
    plain = FusionPolicy(7, start)
    ours = deepcopy(plain)
    seen = torch.randn(rules.steps, rules.batch, 7)

    def drawn(policy: FusionPolicy, step: int) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            alpha = policy(seen[step])
            vectors = policy.draw(alpha, rules.group, torch.Generator().manual_seed(step))
            return vectors, policy.density(alpha, vectors), vectors[..., 0]

    def weight_groups() -> Iterator[WeightGroup]:
        for step in range(rules.steps):
            vectors, before, reward = drawn(ours, step)
            advantage = group_advantage(reward)[..., None]
            yield WeightGroup(seen[step], vectors, before[..., None], reward, advantage)

    settings = StepSettings(rate=rules.rate, decay=1e-2)
    report = update_policy(
        FusionUpdate(ours), weight_groups(), ours.frozen(), group_relative(rules), settings
    )
    reference = plain.frozen()
    optimiser = torch.optim.AdamW(plain.parameters(), rules.rate, weight_decay=1e-2)
    for step in range(rules.steps):
        vectors, before, reward = drawn(plain, step)
        advantage = group_advantage(reward)
        for _ in range(2):
            alpha = plain(seen[step])
            ratio = (plain.density(alpha, vectors) - before).clamp(-1.5, 1.5).exp()
            clipped = ratio.clamp(1 - rules.clip, 1 + rules.clip)
            kept = torch.minimum(ratio * advantage, clipped * advantage)
            away = plain.divergence(alpha, reference(seen[step]))
            loss = rules.kl * away.mean() - kept.mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimiser.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert report.kl > 0


def test_the_rankers_update_equals_a_plain_loop(trained: Path, small_log: TrainingLog) -> None:
    network, vocabulary = read_network(trained)
    slates = impression_examples(small_log, count=150)
    batch, wanted = build_batch(small_log, slates, vocabulary), preference_pairs(slates)
    config = AlignmentConfig(epochs=2, lists=64)
    ours, report = align_ranker(network, batch, wanted, config, seed=3, progress=no_progress)
    plain = deepcopy(network)
    with seeded_torch(3, config.threads) as generator:
        frozen = reference_scores(network, batch)
        optimiser = torch.optim.AdamW(
            [p for _, p in plain.prediction_parameters()], config.rate, weight_decay=0.0
        )
        for _ in range(config.epochs):
            order = torch.randperm(len(wanted), generator=generator)
            for rows in split_rows(order, config.lists):
                group = torch.from_numpy(wanted.group[rows.numpy()])
                part = batch.take(group)
                margin = config.beta * (log_score(plain(*part.inputs())[2]) - frozen[group])
                chosen = torch.from_numpy(wanted.chosen[rows.numpy()])
                rejected = torch.from_numpy(wanted.rejected[rows.numpy()])
                ahead = margin - margin.gather(1, chosen.unsqueeze(1))
                each = -logsigmoid(-ahead.masked_fill(~rejected, -torch.inf).logsumexp(1))
                weighted = (each * torch.from_numpy(wanted.weight[rows.numpy()])).mean()
                loss = weighted + config.anchor * ranker_loss(plain, part, listwise=0.0)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
                optimiser.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert report.kl > 0
    assert report.reward_after > 0.5
