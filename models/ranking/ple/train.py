"""How the ranker learns: one loop over groups, a loss per task and one over each group.

Knows losses, the optimiser and seeds. Does not know where groups come from. The same
seed and log give the same weights on one machine (threads are fixed while it runs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid

from models.ranking.ple.network import COLD, NONE, Ranker
from models.ranking.ple.position import SlotBias
from models.ranking.ple.tensors import Batch
from models.recipe import Progress

_TINY = 1e-6
_SIDES = ("user", "video")
_STILL = 1e-5  # deviation below which a feature did not vary
_LEAST_RATE = 0.002  # a rarer action would outweigh everything by the noise of its prediction
_LEAST_WEIGHT = 0.02  # of a task that the log has not shown yet: an update may raise it
# What an acted-on candidate counts for in the listwise loss, by task (order of TASKS).
GAINS = (1.0, 1.0, 2.0, 3.0, 4.0)
# Everybody's fusion weights before feedback has taught any (order of TASKS). Declared, not
# fitted: in a history without impressions P(play) tells what people came across, the later
# actions what they liked of it; so the commonest of those leads, and the rare, noisy ones follow.
START = (0.1, 0.2, 0.4, 0.1, 0.2)


@dataclass(frozen=True)
class Training:
    """The optimiser's settings. `id_dropout`: share of ids hidden, so the cold bucket learns."""

    epochs: int = 3
    groups: int = 256
    rate: float = 3e-3
    decay: float = 1e-4
    id_dropout: float = 0.1
    user_dropout: float = 0.5
    listwise: float = 1.0
    slot_rate: float = 6e-2  # of slots' biases: few numbers, which must not lag behind the rest
    threads: int = 1


@contextmanager
def repeatable(seed: int, threads: int) -> Iterator[torch.Generator]:
    """A seeded generator, with torch's threads and global seed as they were afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(before)


def standardise(network: Ranker, batches: Sequence[Batch], without: Sequence[int] = ()) -> None:
    """Sets the network's means and deviations from what it will be trained on.

    What does not vary there (nothing was shown in a replayed history) is silenced: its
    weights would stay as they were drawn, and be noise as soon as it varies in serving.
    `without`: columns of video_x that are silenced whatever they do, for ablations.
    """
    for side in _SIDES:
        getattr(network, f"{side}_std").fill_(torch.inf)
    awaken(network, batches)
    network.video_std[list(without)] = torch.inf
    with torch.no_grad():
        for side in _SIDES:
            silent = getattr(network, f"{side}_std").isinf()
            for columns in network.first_columns(side):
                columns[:, silent] = 0.0


def awaken(network: Ranker, batches: Sequence[Batch]) -> None:
    """Gives silenced features that vary by now a mean and a deviation. Their weights are 0,
    so no score changes until they have learned."""
    values = {
        "user": torch.cat([b.user_x for b in batches]),
        "video": torch.cat([b.video_x[b.real] for b in batches]),
    }
    with torch.no_grad():
        for side, rows in values.items():
            mean, std = getattr(network, f"{side}_mean"), getattr(network, f"{side}_std")
            spread = rows.std(0, unbiased=False)
            woken = std.isinf() & (spread > _STILL)
            mean.copy_(torch.where(woken, rows.mean(0), mean))
            std.copy_(torch.where(woken, spread.clamp_min(0.05), std))


def start_biases(network: Ranker, batches: Sequence[Batch]) -> None:
    """Each task starts at its own base rate; one that was never seen starts rare."""
    with torch.no_grad():
        labels = torch.cat([b.labels[b.real] for b in batches])
        rate = labels.mean(0).clamp(0.005, 0.5)
        for tower, share in zip(network.towers, rate, strict=True):
            tower.bias.fill_(float(torch.logit(share)))  # type: ignore[operator]


def start_fusion(network: Ranker, batches: Sequence[Batch]) -> None:
    """Population rates of the actions, and the declared start of the weights.

    The weights are not learned from histories: a listwise loss over sampled negatives says
    nothing of which action a user values, and ends at one task that the seed picks.
    """
    with torch.no_grad():
        labels = torch.cat([b.labels[b.real] for b in batches])
        network.rates.copy_(labels.mean(0).clamp_min(_LEAST_RATE))
        start = torch.where(labels.any(0), labels.new_tensor(START), _LEAST_WEIGHT)
        network.start.copy_(start / start.sum())
        network.fusion.begin_at(network.start)


def fit(
    network: Ranker,
    batches: Sequence[Batch],
    settings: Training,
    generator: torch.Generator,
    progress: Progress,
) -> SlotBias:
    """Trains in place over every group of every source, `epochs` times.

    Returns what slots were found to cost; it is no part of what serves.
    """
    slots = SlotBias(network.size.tasks)
    table = [p for _, p in network.predicting() if p.ndim == 2]
    rest = [p for _, p in network.predicting() if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": table, "weight_decay": settings.decay}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.rate,
    )
    optimiser.add_param_group({"params": list(slots.parameters()), "weight_decay": 0.0})
    steps = settings.epochs * sum(-(-len(b) // settings.groups) for b in batches)
    rates = [settings.rate, settings.rate, settings.slot_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=max(steps, 2), pct_start=0.15
    )
    network.train()
    done = 0
    for epoch in range(settings.epochs):
        for source, rows in _order(batches, settings.groups, generator):
            batch = hide_ids(batches[source].take(rows), settings, generator)
            loss = loss_of(network, batch, settings.listwise, slots)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            done += 1
            progress(done / steps, f"epoch {epoch + 1} of {settings.epochs}, loss {loss:.3f}")
    network.eval()
    return slots


def loss_of(
    network: Ranker, batch: Batch, listwise: float, slots: SlotBias | None = None
) -> Tensor:
    """Per-task cross-entropy over real candidates and known tasks, over what was played
    once more given the play, plus the listwise loss.

    slots: explains what is due to the place that a candidate was shown at.
    """
    logits, _, scores = network(*batch.inputs())
    place = None
    if slots is not None:
        logits, place = logits + slots.tasks(batch.slot), slots.group(batch.slot)
    known = batch.real.unsqueeze(-1) & batch.known
    each = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
    pointwise = (each * known).sum() / batch.real.sum().clamp_min(1)
    pointwise = pointwise + liking_loss(logits, batch)
    return pointwise + listwise * listwise_loss(scores, batch.labels, batch.real, place)


def liking_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the later actions given a play, P(action) / P(play); logits [G, C, T].

    Whether a video was met at all is chance, the page or the crowd; what followed once it
    played is taste. Among five sampled negatives that signal drowns, here it stands alone.
    A proper score of the same P(action), so calibration is not bent.
    """
    played = batch.real & (batch.labels[..., 0] > 0)
    given = (logsigmoid(logits[..., 1:]) - logsigmoid(logits[..., :1]))[played].clamp_max(-1e-3)
    labels = batch.labels[..., 1:][played]
    each = -(labels * given + (1 - labels) * torch.log1p(-given.exp())) * batch.known[1:]
    return each.sum() / played.sum().clamp_min(1)


def listwise_loss(
    scores: Tensor, labels: Tensor, real: Tensor, place: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each group's gains and its softmax over log-scores (ListNet's top one).

    scores [G, C]; labels [G, C, T]; real bool [G, C]; place [G, C], added to log-scores for
    what a slot explains. Groups without an action say nothing.
    """
    gains = (labels * labels.new_tensor(GAINS)).amax(-1) * real
    total = gains.sum(-1, keepdim=True)
    wanted = gains / total.clamp_min(_TINY)
    preferred = log_score(scores) if place is None else log_score(scores) + place
    chosen = log_softmax(preferred.masked_fill(~real, -1e9), -1)
    return -(wanted * chosen).sum() / (total > 0).sum().clamp_min(1)


def log_score(scores: Tensor) -> Tensor:
    """The served score as a policy's log-preference."""
    return (scores + _TINY).log()


def hide_ids(batch: Batch, settings: Training, generator: torch.Generator) -> Batch:
    """The batch with a share of its ids turned cold."""

    def hide(ids: Tensor, share: float) -> Tensor:
        drop = (torch.rand(ids.shape, generator=generator) < share) & (ids != NONE)
        return ids.masked_fill(drop, COLD)

    hidden = {
        "user": hide(batch.user, settings.user_dropout),
        "video": hide(batch.video, settings.id_dropout),
        "author": hide(batch.author, settings.id_dropout),
        "history": hide(batch.history, settings.id_dropout),
    }
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return Batch(**(fields | hidden))


def chunks_of(rows: Tensor, size: int) -> list[Tensor]:
    """The rows in consecutive chunks of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _order(
    batches: Sequence[Batch], size: int, generator: torch.Generator
) -> list[tuple[int, Tensor]]:
    """Every source's groups in shuffled chunks, sources mixed."""
    chunks = [
        (source, rows)
        for source, batch in enumerate(batches)
        for rows in chunks_of(torch.randperm(len(batch), generator=generator), size)
    ]
    mixed = torch.randperm(len(chunks), generator=generator).tolist()
    return [chunks[n] for n in mixed]
