"""Training of the ranker: one loop over groups, a loss per task and one over each group.

Knows losses, the optimiser and seeds. Does not know where groups come from. The same seed and
log give the same weights on one machine (the number of threads is fixed during training).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid

from models.ranking.ple.config import RankerTraining
from models.ranking.ple.network import COLD, NONE, Ranker, SlotBias
from models.ranking.ple.tensors import RankerBatch
from models.ranking.tasks import SHIPPED_TASKS, RankerTasks
from models.retrieval.factorisation.blend import logistic
from models.retrieval.factorisation.config import PARTS
from models.retrieval.factorisation.train import CrossFitted
from streams.progress import ProgressCallback

_TINY = 1e-6
_SIDES = ("user", "video")
_MIN_DEVIATION = 1e-5  # below it a feature did not vary
_MIN_RATE = 0.002  # a rarer action would outweigh all others by the noise of its prediction
# Of an action's coefficient on a part, about 0: that of 100 plays. And actions to learn it from.
_LIKING_PRIOR, _MIN_ACTIONS = 15.0, 30
_MIN_WEIGHT = 0.02  # of a task that the log has not shown yet; an update may raise it
START_PLAY_RATE = 0.15  # of what is shown, until slates tell; only the size of scores depends on it


@contextmanager
def seeded_torch(seed: int, threads: int) -> Iterator[torch.Generator]:
    """A seeded generator; torch's thread count and global seed are restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(before)


def init_standardisation(
    network: Ranker, batches: Sequence[RankerBatch], without: Sequence[int] = ()
) -> None:
    """Sets the network's means and deviations from its training data.

    A feature that does not vary there (nothing was shown in a replayed history) is frozen: its
    weights would keep their initial values and be noise once it varies in serving. `without`:
    columns of item_x that are frozen in any case, for ablations.
    """
    for side in _SIDES:
        getattr(network, f"{side}_std").fill_(torch.inf)
    init_unfrozen_features(network, batches)
    network.video_std[list(without)] = torch.inf
    with torch.no_grad():
        for side in _SIDES:
            frozen = getattr(network, f"{side}_std").isinf()
            for columns in network.input_columns(side):
                columns[:, frozen] = 0.0


def init_unfrozen_features(network: Ranker, batches: Sequence[RankerBatch]) -> None:
    """Gives frozen features that vary by now a mean and a deviation.

    Their weights are 0, so no score changes until training has moved them.
    """
    values = {
        "user": torch.cat([b.user_x for b in batches]),
        "video": torch.cat([b.item_x[b.real] for b in batches]),
    }
    with torch.no_grad():
        for side, rows in values.items():
            mean, std = getattr(network, f"{side}_mean"), getattr(network, f"{side}_std")
            deviation = rows.std(0, unbiased=False)
            unfrozen = std.isinf() & (deviation > _MIN_DEVIATION)
            mean.copy_(torch.where(unfrozen, rows.mean(0), mean))
            std.copy_(torch.where(unfrozen, deviation.clamp_min(0.05), std))


def init_liking(network: Ranker, fitted: CrossFitted) -> None:
    """Sets each task's weights of the parts of a user's liking.

    The parts are log-odds of a play. A later action is judged by those who played: its log-odds
    add the coefficients of a logistic regression of the action on the parts, over plays. An
    action that never happened has no weights.
    """
    column = {name: n for n, name in enumerate(network.tasks.names)}
    weights = np.ones((len(network.tasks), len(PARTS)))
    played = fitted.pairs.played
    parts, actions = fitted.parts[played], fitted.pairs.actions[played]
    deviation = np.maximum(parts.std(axis=0), 1e-9)
    varied = deviation > _MIN_DEVIATION
    for happened, action in zip(actions.T, fitted.pairs.action_names, strict=True):
        if action not in column:  # declared beyond `MAX_TASKS`
            continue
        if min(happened.sum(), (~happened).sum()) >= _MIN_ACTIONS:
            found = logistic(parts / deviation, happened, np.zeros(len(PARTS)), _LIKING_PRIOR)
            weights[column[action]] += np.where(varied, found[1:] / deviation, 0)
        weights[column[action]] *= happened.any()
    with torch.no_grad():
        network.liking.weight.copy_(torch.from_numpy(weights.astype(np.float32)))


def base_rates(batches: Sequence[RankerBatch], tasks: RankerTasks = SHIPPED_TASKS) -> Tensor:
    """float32 [T]: P(action) of an average candidate that is shown.

    A play's is taken from slates, or declared; that of a later action follows from plays. A
    declared action may come without a play, so slates tell its rate where there are any.
    """
    base = tasks.base
    labels = [batch.labels[batch.real] for batch in batches]
    shown = [rows for rows, batch in zip(labels, batches, strict=True) if batch.known[base]]
    play = torch.cat(shown)[:, base].mean() if shown else torch.tensor(START_PLAY_RATE)
    every = torch.cat(labels)
    played = every[every[:, base] > 0]
    later = played.mean(0) if len(played) else torch.zeros(every.shape[1])
    rates = play * later
    rates[base] = play
    declared = slice(len(SHIPPED_TASKS), None)
    if shown and len(tasks) > len(SHIPPED_TASKS):
        rates[declared] = torch.cat(shown)[:, declared].mean(0)
    return rates


def init_task_biases(network: Ranker, batches: Sequence[RankerBatch]) -> None:
    """Each task starts at its own base rate; a task without actions starts rare."""
    with torch.no_grad():
        rate = base_rates(batches, network.tasks).clamp(0.002, 0.5)
        usual = network.liking(torch.cat([b.liking[b.real] for b in batches])).mean(0)
        for tower, start in zip(network.towers, torch.logit(rate) - usual, strict=True):
            tower.bias.fill_(float(start))  # type: ignore[operator]


def init_fusion(network: Ranker, batches: Sequence[RankerBatch]) -> None:
    """Sets the actions' population rates and the declared start of the weights.

    The weights are not learned from histories: what a user did there does not depend on which
    action the user values, and training would end at one task that the seed picks.
    """
    with torch.no_grad():
        labels = torch.cat([b.labels[b.real] for b in batches])
        network.rates.copy_(base_rates(batches, network.tasks).clamp_min(_MIN_RATE))
        declared = labels.new_tensor(network.tasks.start_weights)
        start = torch.where(labels.any(0), declared, _MIN_WEIGHT)
        network.start.copy_(start / start.sum())
        network.fusion.set_start_weights(network.start)


def train_ranker(
    network: Ranker,
    batches: Sequence[RankerBatch],
    settings: RankerTraining,
    generator: torch.Generator,
    progress: ProgressCallback,
) -> SlotBias:
    """Trains in place over every group of every source, `epochs` times.

    Returns the slots' biases, which are not served.
    """
    slots = SlotBias(network.size.tasks)
    tables = [p for _, p in network.prediction_parameters() if p.ndim == 2]
    rest = [p for _, p in network.prediction_parameters() if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": tables, "weight_decay": settings.decay}, {"params": rest, "weight_decay": 0.0}],
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
        for source, rows in _shuffled_chunks(batches, settings.groups, generator):
            batch = hide_ids(batches[source].take(rows), settings, generator)
            loss = ranker_loss(network, batch, settings.listwise, slots)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            done += 1
            progress(done / steps, f"epoch {epoch + 1} of {settings.epochs}, loss {loss:.3f}")
    network.eval()
    return slots


def ranker_loss(
    network: Ranker, batch: RankerBatch, listwise: float, slots: SlotBias | None = None
) -> Tensor:
    """Cross-entropy per task over real candidates and known tasks, plus the later actions' given
    a play, plus `listwise` times the listwise loss.

    slots: explains the effect of the position that a candidate was shown at.
    """
    logits, _, scores = network(*batch.inputs())
    position = None
    if slots is not None:
        logits, position = logits + slots.tasks(batch.slot), slots.group(batch.slot)
    # Without slates no candidate was passed over, and P(action) is learned given a play.
    tasks = network.tasks
    known = batch.real.unsqueeze(-1) & (batch.known & batch.known[tasks.base])
    each = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
    pointwise = (each * known).sum() / batch.real.sum().clamp_min(1)
    pointwise = pointwise + action_given_play_loss(logits, batch, tasks)
    wanted = listwise_gains(batch.labels, tasks)
    return pointwise + listwise * listwise_loss(scores, wanted, batch.real, position)


def action_given_play_loss(
    logits: Tensor, batch: RankerBatch, tasks: RankerTasks = SHIPPED_TASKS
) -> Tensor:
    """Cross-entropy of the later actions given a play, P(action) / P(play); logits [G, C, T].

    Whether a user came across an item depends on chance, the page or the crowd; what followed
    a play shows taste. P(play) is held: it is learned from what was shown.
    """
    base, later = tasks.base, tasks.later
    played = batch.real & (batch.labels[..., base] > 0)
    play = logsigmoid(logits[..., base : base + 1]).detach()
    given = (logsigmoid(logits[..., later]) - play)[played].clamp_max(-1e-3)
    labels = batch.labels[..., later][played]
    each = -(labels * given + (1 - labels) * torch.log1p(-given.exp())) * batch.known[later]
    return each.sum() / played.sum().clamp_min(1)


def listwise_gains(labels: Tensor, tasks: RankerTasks = SHIPPED_TASKS) -> Tensor:
    """The gain of each candidate's best action: labels [G, C, T] -> [G, C]."""
    return (labels * labels.new_tensor(tasks.gains)).amax(-1)


def listwise_loss(
    scores: Tensor, gains: Tensor, real: Tensor, position: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each group's gains and its softmax over log-scores (ListNet, top one).

    scores, gains: float32 [G, C]; real: bool [G, C]; position: float32 [G, C], added to the
    log-scores. Groups without an action contribute nothing.
    """
    gains = gains * real
    total = gains.sum(-1, keepdim=True)
    wanted = gains / total.clamp_min(_TINY)
    preferred = log_score(scores) if position is None else log_score(scores) + position
    chosen = log_softmax(preferred.masked_fill(~real, -1e9), -1)
    return -(wanted * chosen).sum() / (total > 0).sum().clamp_min(1)


def log_score(scores: Tensor) -> Tensor:
    """The served score as a policy's log-preference."""
    return (scores + _TINY).log()


def hide_ids(
    batch: RankerBatch, settings: RankerTraining, generator: torch.Generator
) -> RankerBatch:
    """The batch with a share of its ids replaced by the cold bucket."""

    def hide(ids: Tensor, share: float) -> Tensor:
        drop = (torch.rand(ids.shape, generator=generator) < share) & (ids != NONE)
        return ids.masked_fill(drop, COLD)

    hidden = {
        "user": hide(batch.user, settings.user_dropout),
        "item": hide(batch.item, settings.id_dropout),
        "author": hide(batch.author, settings.id_dropout),
        "history": hide(batch.history, settings.id_dropout),
    }
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return RankerBatch(**(fields | hidden))


def split_rows(rows: Tensor, size: int) -> list[Tensor]:
    """The rows in consecutive chunks of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _shuffled_chunks(
    batches: Sequence[RankerBatch], size: int, generator: torch.Generator
) -> list[tuple[int, Tensor]]:
    """Every source's groups in shuffled chunks, the sources mixed: (source, rows) each."""
    chunks = [
        (source, rows)
        for source, batch in enumerate(batches)
        for rows in split_rows(torch.randperm(len(batch), generator=generator), size)
    ]
    mixed = torch.randperm(len(chunks), generator=generator).tolist()
    return [chunks[n] for n in mixed]
