"""Training of the query recommender: a loss over the trie's children, and the optimiser.

Knows examples, the network and the trie. Does not know how the result is evaluated (`recipe`)
or served (`runtime`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.generation.bundle import Lexicon
from models.generation.config import GeneratorSize, QueriesConfig
from models.generation.data import (
    QueryBatch,
    QueryExamples,
    TriePaths,
    build_examples,
    build_lexicon,
    items_of,
    make_batch,
    query_clicks,
)
from models.generation.network import OneBarNetwork
from models.generation.words import END, PAD, UNKNOWN, split_words
from models.layers.decode import DecodeTables
from models.layers.pointers import crowd_mass
from models.layers.trie import Trie, build_trie
from models.recipe import TrainingLog
from streams.progress import ProgressCallback


@dataclass(frozen=True)
class TrainedQueries:
    """A trained query recommender; its bundle gives the same answers.

    popular: numbers of the legal queries, most clicked first.
    """

    network: OneBarNetwork
    lexicon: Lexicon
    tables: DecodeTables
    popular: list[int]


def train_queries(
    log: TrainingLog, config: QueriesConfig, *, seed: int, progress: ProgressCallback
) -> TrainedQueries:
    """Trains network, trie and pointers. The same log and seed give the same weights.

    Raises `NotEnoughData` where fewer than `min_clicks` clicks are on legal queries.
    """
    progress(0.0, "reading query clicks")
    clicks = query_clicks(log, items_of(log))
    lexicon = build_lexicon(log, clicks, config)
    examples = build_examples(clicks, lexicon, config)
    numbers = [lexicon.vocabulary.numbers(split_words(text)) for text in lexicon.queries.texts]
    trie = build_trie(numbers, END)
    clicked = np.bincount(examples.target, minlength=len(lexicon.queries))
    crowd = crowd_mass(trie, clicked)
    network = _train_network(examples, trie, crowd, config, seed, progress)
    embedding = network.word.weight.detach().numpy().copy()
    popular = np.argsort(-clicked, kind="stable").tolist()
    return TrainedQueries(network, lexicon, DecodeTables(trie, embedding, crowd), popular)


def query_loss(network: OneBarNetwork, batch: QueryBatch) -> Tensor:
    """Mean -log P(query) over the legal queries, in nats: the sum of the words' losses."""
    first, later = _word_log_probabilities(network, batch)
    log_probability: Tensor = first.sum() + later.sum()
    return -log_probability / len(batch.written)


def query_log_probability(network: OneBarNetwork, batch: QueryBatch) -> Tensor:
    """log P(query) of each of the batch's queries among the legal ones; float32 [B]."""
    first, later = _word_log_probabilities(network, batch)
    owner = batch.deep_row[batch.deep_taken] // batch.written.shape[1]
    return first[:, 0].index_add(0, owner, later)


def _word_log_probabilities(network: OneBarNetwork, batch: QueryBatch) -> tuple[Tensor, Tensor]:
    """log P(word) of the first words [B, 1] and of all later ones, in the edges' order."""
    hidden, gates = network.teacher_forced(batch.prompt, batch.written)
    at_root = hidden[:, 0] @ network.word(batch.root_word).T
    at_root = at_root + (batch.root_feature @ gates[:, 0].unsqueeze(-1)).squeeze(-1)
    first = at_root.log_softmax(-1).gather(1, batch.root_taken[:, None])
    hidden, gates = hidden.flatten(0, 1), gates.flatten(0, 1)
    row = batch.deep_row
    below = (hidden.index_select(0, row) * network.word(batch.deep_word)).sum(-1)
    below = below + (gates.index_select(0, row) * batch.deep_feature).sum(-1)
    top = torch.full((len(hidden),), -1e9).scatter_reduce(0, row, below.detach(), "amax")
    total = torch.zeros(len(hidden)).index_add(0, row, (below - top[row]).exp())
    rows = row[batch.deep_taken]
    return first, below[batch.deep_taken] - top[rows] - total[rows].log()


def _train_network(
    examples: QueryExamples,
    trie: Trie,
    crowd: np.ndarray,
    config: QueriesConfig,
    seed: int,
    progress: ProgressCallback,
) -> OneBarNetwork:
    lexicon = examples.lexicon
    size = GeneratorSize(
        len(lexicon.vocabulary),
        len(lexicon.item_number),
        config.width,
        config.heads,
        config.layers,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = OneBarNetwork(size)
            batches = _batches(examples, trie, crowd, config, np.random.default_rng(seed))
            _minimise(network, batches, config, config.steps_for(len(examples.target)), progress)
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def _minimise(
    network: OneBarNetwork,
    batches: Iterator[QueryBatch],
    config: QueriesConfig,
    steps: int,
    progress: ProgressCallback,
) -> None:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        loss = query_loss(network, next(batches))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            progress(step / steps, f"step {step} of {steps}, loss {loss.item():.3f}")
    progress(1.0, "trained")


def _batches(
    examples: QueryExamples,
    trie: Trie,
    crowd: np.ndarray,
    config: QueriesConfig,
    rng: np.random.Generator,
) -> Iterator[QueryBatch]:
    """Endless shuffled batches with a share of the prompt hidden."""
    paths = TriePaths.of(trie)
    size = np.array([len(prompt.word) for prompt in examples.prompts])
    while True:
        for rows in _rows_of_similar_length(size, config.batch, rng):
            batch = make_batch(examples, trie, crowd, paths, rows)
            yield _hide(batch, config, rng)


def _rows_of_similar_length(
    size: np.ndarray, batch: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """One epoch's batches; prompts of similar length together, which saves padding."""
    order = rng.permutation(len(size))
    blocks = [order[at : at + 16 * batch] for at in range(0, len(order), 16 * batch)]
    order = np.concatenate([block[np.argsort(size[block], kind="stable")] for block in blocks])
    batches = [order[at : at + batch] for at in range(0, len(order), batch)]
    return [batches[n] for n in rng.permutation(len(batches))]


def _hide(batch: QueryBatch, config: QueriesConfig, rng: np.random.Generator) -> QueryBatch:
    word, segment, place, item = batch.prompt
    word, item = word.clone(), item.clone()
    item[torch.from_numpy(rng.random(len(item)) < config.item_dropout)] = 0
    hidden = torch.from_numpy(rng.random(word.shape) < config.word_dropout) & (word != PAD)
    word[hidden] = UNKNOWN
    return replace(batch, prompt=(word, segment, place, item))
