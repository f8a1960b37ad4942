"""How the query recommender learns: examples as numbers, loss over the trie's children.

Knows the training log, the network and the trie. Does not know how the result is judged
or served (`onebar`, `runtime`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from models.generation.bundle import Lexicon
from models.generation.decode import Tables
from models.generation.histories import USER_QUERY_KINDS, Click, items_of, query_clicks
from models.generation.network import OneBarNetwork, Size
from models.generation.pointers import crowd_mass, edge_features
from models.generation.prompt import Prompt, encode, genre_words, stack
from models.generation.recommend import pointer_counts
from models.generation.words import BEGIN, END, PAD, UNKNOWN, Vocabulary, legal, words
from models.layers.trie import ROOT, Trie, build_trie
from models.recipe import NotEnoughData, Progress, TrainingLog


@dataclass(frozen=True)
class Config:
    width: int = 64
    heads: int = 4
    layers: int = 2
    min_users: int = 2
    min_clicks: int = 200  # fewer legal clicks than this teach nothing
    video_clicks: int = 5  # a video clicked less often has no embedding of its own
    steps: int = 400
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    forget_video: float = 0.3  # share of prompts that hide the video's number ...
    forget_word: float = 0.1  # ... and of words hidden, so that cold ones are practised
    max_examples: int = 60_000  # the newest
    max_judged: int = 1_500
    threads: int = 2
    taken_down: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """The training side's model: what the bundle must equal.

    popular: numbers of the legal queries, most clicked first.
    """

    network: OneBarNetwork
    lexicon: Lexicon
    tables: Tables
    popular: list[int]


@dataclass(frozen=True)
class Examples:
    """N legal clicks: their prompts and target, int64 [N], the clicked query."""

    prompts: Sequence[Prompt]
    target: np.ndarray
    clicks: Sequence[Click]
    lexicon: Lexicon

    def pointed(self, rows: np.ndarray) -> np.ndarray:
        """float32 [B, 3, Q], counted on demand: for all rows at once it would be large."""
        find = self.lexicon.queries.found
        picked = [self.clicks[row] for row in rows]
        return np.stack([pointer_counts(c.context, self.lexicon, find(c.earlier)) for c in picked])


@dataclass(frozen=True)
class Batch:
    """B queries, and the E edges that each of their words could have been.

    The first B * R edges leave the root, one block of R per query; the others follow.

    prompt: word, segment, place int64 [B, P] and video int64 [B]; written: int64 [B, T],
    begin first, padded; row: int64 [E], the edge's place in the flattened [B * T];
    root_word: int64 [R]; deep_word: int64 [E - B * R]; feature: float32 [E, J];
    taken: int64, the edges that were really written.
    """

    prompt: tuple[Tensor, ...]
    written: Tensor
    row: Tensor
    root_word: Tensor
    deep_word: Tensor
    feature: Tensor
    taken: Tensor


def fit(log: TrainingLog, config: Config, *, seed: int, progress: Progress) -> Trained:
    """Trains network, trie and pointers. The same log and seed give the same weights.

    Raises `NotEnoughData` where fewer than `min_clicks` clicks are on legal queries.
    """
    progress(0.0, "reading query clicks")
    clicks = query_clicks(log, items_of(log))
    lexicon = _lexicon(log, clicks, config)
    examples = _examples(clicks, lexicon, config)
    numbers = [lexicon.vocabulary.numbers(words(text)) for text in lexicon.queries.texts]
    trie = build_trie(numbers, END)
    clicked = np.bincount(examples.target, minlength=len(lexicon.queries))
    crowd = crowd_mass(trie, clicked)
    network = _learn(examples, trie, crowd, config, seed, progress)
    embedding = network.word.weight.detach().numpy().copy()
    popular = np.argsort(-clicked, kind="stable").tolist()
    return Trained(network, lexicon, Tables(trie, embedding, crowd), popular)


def _lexicon(log: TrainingLog, clicks: Sequence[Click], config: Config) -> Lexicon:
    asked = log.events.filter(pl.col("kind").is_in(USER_QUERY_KINDS)).drop_nulls("query")
    queries = legal(
        asked.select("user_id", "query").iter_rows(),
        min_users=config.min_users,
        taken_down=config.taken_down,
    )
    items = items_of(log)
    said = [words(text) for text in queries.texts]
    titles = [words(item.title) for item in items.values()]
    genres = [genre_words(item.genres) for item in items.values()]
    anchors: dict[str, list[int]] = defaultdict(list)
    for click in clicks:
        anchors[click.context.video_id] += queries.found([click.query])
    known = sorted(video for video, ids in anchors.items() if len(ids) >= config.video_clicks)
    return Lexicon(
        queries,
        Vocabulary.of([*said, *titles, *genres]),
        {video: number for number, video in enumerate(known, start=1)},
        {video: item.genres for video, item in items.items()},
        dict(anchors),
    )


def _examples(clicks: Sequence[Click], lexicon: Lexicon, config: Config) -> Examples:
    numbered = [(click, lexicon.queries.find(click.query)) for click in clicks]
    kept = [(click, n) for click, n in numbered if n is not None][-config.max_examples :]
    if len(kept) < config.min_clicks:
        raise NotEnoughData(
            f"{len(kept)} clicks on queries that {config.min_users} people used, "
            f"{config.min_clicks} are needed: gather more query_click events"
        )
    prompts = [
        encode(click.context, lexicon.vocabulary, lexicon.video_number, lexicon.genres_of)
        for click, _ in kept
    ]
    return Examples(
        prompts,
        np.array([number for _, number in kept], dtype=np.int64),
        [click for click, _ in kept],
        lexicon,
    )


def _learn(
    examples: Examples,
    trie: Trie,
    crowd: np.ndarray,
    config: Config,
    seed: int,
    progress: Progress,
) -> OneBarNetwork:
    lexicon = examples.lexicon
    size = Size(
        len(lexicon.vocabulary),
        len(lexicon.video_number),
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
            _descend(network, batches, config, progress)
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def _descend(
    network: OneBarNetwork, batches: Iterator[Batch], config: Config, progress: Progress
) -> None:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps, pct_start=0.1
    )
    for step in range(config.steps):
        value = loss(network, next(batches))
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            progress(step / config.steps, f"step {step}, loss {value.item():.3f}")
    progress(1.0, "trained")


def loss(network: OneBarNetwork, batch: Batch) -> Tensor:
    """Mean -log P(query) over the legal queries, in nats: the words' losses summed."""
    hidden, gates = network.teach(batch.prompt, batch.written)
    at_root = hidden[:, 0] @ network.word(batch.root_word).T
    hidden, gates = hidden.flatten(0, 1), gates.flatten(0, 1)
    deep_row = batch.row[at_root.numel() :]
    below = (hidden[deep_row] * network.word(batch.deep_word)).sum(-1)
    spoken = torch.cat([at_root.flatten(), below])
    logits = spoken + (gates[batch.row] * batch.feature).sum(-1)
    top = torch.full((len(hidden),), -1e9).scatter_reduce(0, batch.row, logits.detach(), "amax")
    total = torch.zeros(len(hidden)).index_add(0, batch.row, (logits - top[batch.row]).exp())
    rows = batch.row[batch.taken]
    said = logits[batch.taken] - top[rows] - total[rows].log()
    return -said.sum() / len(batch.written)


def _batches(
    examples: Examples,
    trie: Trie,
    crowd: np.ndarray,
    config: Config,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """Endless shuffled batches with some of the prompt forgotten."""
    paths = [trie.path(int(leaf)) for leaf in trie.leaves()]
    size = np.array([len(prompt.word) for prompt in examples.prompts])
    while True:
        for rows in _alike(size, config.batch, rng):
            batch = make_batch(examples, trie, crowd, paths, rows)
            yield _forget(batch, config, rng)


def _alike(size: np.ndarray, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch's batches, each of prompts about as long as each other: little padding."""
    order = rng.permutation(len(size))
    blocks = [order[at : at + 16 * batch] for at in range(0, len(order), 16 * batch)]
    order = np.concatenate([block[np.argsort(size[block], kind="stable")] for block in blocks])
    batches = [order[at : at + batch] for at in range(0, len(order), batch)]
    return [batches[n] for n in rng.permutation(len(batches))]


def make_batch(
    examples: Examples,
    trie: Trie,
    crowd: np.ndarray,
    paths: Sequence[Sequence[int]],
    rows: np.ndarray,
) -> Batch:
    """The examples `rows` with every edge that the trie offered on the way."""
    taken_paths = [paths[target] for target in examples.target[rows]]
    length, root = max(map(len, taken_paths)), trie.children(ROOT)
    written = np.full((len(rows), length), PAD, dtype=np.int64)
    taken = [n * len(root) + path[0] - root.start for n, path in enumerate(taken_paths)]
    owner: list[int] = []
    place: list[int] = []
    offered: list[range] = []
    edges = len(rows) * len(root)
    for n, path in enumerate(taken_paths):
        written[n, : len(path)] = [BEGIN, *trie.word[path[:-1]]]
        for step, (node, goal) in enumerate(itertools.pairwise(path), start=1):
            children = trie.children(node)
            taken.append(edges + goal - children.start)
            edges += len(children)
            owner.append(n)
            place.append(n * length + step)
            offered.append(children)
    prompt = stack([examples.prompts[row] for row in rows])
    mass = trie.mass(examples.pointed(rows))
    deep, size = _chain(offered), [len(children) for children in offered]
    row = np.r_[np.repeat(np.arange(len(rows)) * length, len(root)), np.repeat(place, size)]
    feature = _features(trie, mass, crowd, deep, np.repeat(np.array(owner, dtype=np.int64), size))
    return Batch(
        tuple(map(torch.from_numpy, prompt)),
        torch.from_numpy(written),
        torch.from_numpy(row.astype(np.int64)),
        torch.from_numpy(trie.word[root.start : root.stop]),
        torch.from_numpy(trie.word[deep]),
        torch.from_numpy(feature),
        torch.tensor(taken),
    )


def _chain(ranges: Sequence[range]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(ranges), dtype=np.int64)


def _features(
    trie: Trie, mass: np.ndarray, crowd: np.ndarray, deep: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """float32 [E, J]: the root's edges of every example, then the deep ones of `owner`s."""
    root = trie.children(ROOT)
    at_root = edge_features(trie, mass, crowd, np.arange(root.start, root.stop))
    below = np.empty((len(deep), at_root.shape[-1]), dtype=np.float32)
    bounds = np.searchsorted(owner, np.arange(len(mass) + 1))
    for n, (first, last) in enumerate(itertools.pairwise(bounds)):
        below[first:last] = edge_features(trie, mass[n], crowd, deep[first:last])
    return np.concatenate([at_root.reshape(-1, at_root.shape[-1]), below])


def _forget(batch: Batch, config: Config, rng: np.random.Generator) -> Batch:
    word, segment, place, video = batch.prompt
    word, video = word.clone(), video.clone()
    video[torch.from_numpy(rng.random(len(video)) < config.forget_video)] = 0
    hidden = torch.from_numpy(rng.random(word.shape) < config.forget_word) & (word != PAD)
    word[hidden] = UNKNOWN
    return replace(batch, prompt=(word, segment, place, video))
