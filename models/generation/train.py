"""How the query recommender learns: examples as numbers, loss over the trie's children.

Knows the training log, the network and the trie. Does not know how the result is judged
or served (`onebar`, `runtime`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from models.generation.bundle import Lexicon
from models.generation.data import USER_QUERY_KINDS, Click, items_of, query_clicks
from models.generation.network import OneBarNetwork, Size
from models.generation.pointers import crowd_mass, edge_features, log_shares
from models.generation.prompt import (
    ANCHOR_HISTORY,
    USER_QUERY_HISTORY,
    Prompt,
    encode,
    genre_words,
    stack,
)
from models.generation.words import BEGIN, END, PAD, UNKNOWN, Vocabulary, legal, words
from models.layers.decode import Tables
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
    steps: int = 120
    batch: int = 128
    learning_rate: float = 4e-3
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
    """N legal clicks: their prompts and target, int64 [N], the clicked query.

    number: the legal ones among all texts of the clicks, looked up once.
    """

    prompts: Sequence[Prompt]
    target: np.ndarray
    clicks: Sequence[Click]
    lexicon: Lexicon
    number: Mapping[str, int]

    def mass(self, rows: np.ndarray, trie: Trie, paths: Paths) -> np.ndarray:
        """float32 [B, 3, N], the counts of live, anchors and user summed over subtrees.

        Equals `trie.mass` of `pointer_counts`; few of the Q counts are above 0, so adding
        each to its own path costs a tenth. On demand: for all rows it would be large.
        """
        lists = [numbers for row in rows for numbers in self._lists(self.clicks[row])]
        owner = np.repeat(np.arange(len(lists)), [len(numbers) for numbers in lists])
        query = np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int64)
        cells = owner[:, None] * len(trie) + paths.node[query]
        size = len(lists) * len(trie)
        total = np.bincount(cells[paths.there[query]], minlength=size).astype(np.float32)
        return total.reshape(len(rows), 3, len(trie))

    def _lists(self, click: Click) -> Iterator[list[int]]:
        context = click.context
        live, own = context.video_query[:ANCHOR_HISTORY], context.user_query[:USER_QUERY_HISTORY]
        for texts in (live, click.earlier[:], own):
            yield [self.number[text] for text in texts if text in self.number]


@dataclass(frozen=True)
class Paths:
    """The nodes from the root down to every query's leaf.

    lists: Q lists; node: int64 [Q, D], padded with the root; there: bool [Q, D], True at
    nodes of the path and at one root per query, which every query is below.
    """

    lists: Sequence[Sequence[int]]
    node: np.ndarray
    there: np.ndarray

    @classmethod
    def of(cls, trie: Trie) -> Paths:
        lists = [trie.path(int(leaf)) for leaf in trie.leaves()]
        node = np.full((len(lists), 1 + max(map(len, lists))), ROOT, dtype=np.int64)
        for query, path in enumerate(lists):
            node[query, 1 : 1 + len(path)] = path
        there = node != ROOT
        there[:, 0] = True
        return cls(lists, node, there)


@dataclass(frozen=True)
class Batch:
    """B queries, and the edges that each of their words could have been.

    All queries share the root's R edges, so these stand apart: no gather, no scatter.

    prompt: word, segment, place int64 [B, P] and video int64 [B]; written: int64 [B, T],
    begin first, padded; root_word: int64 [R]; root_feature: float32 [B, R, J];
    root_taken: int64 [B], the edges that were really written; below the root, the same of
    E edges: deep_word int64 [E], deep_feature float32 [E, J], deep_taken int64, and
    deep_row int64 [E], the edge's place in the flattened [B * T].
    """

    prompt: tuple[Tensor, ...]
    written: Tensor
    root_word: Tensor
    root_feature: Tensor
    root_taken: Tensor
    deep_row: Tensor
    deep_word: Tensor
    deep_feature: Tensor
    deep_taken: Tensor


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
    texts = {text for click, _ in kept for text in click.context.user_query}
    found = ((text, lexicon.queries.find(text)) for text in texts)
    searched = {text: number for text, number in found if number is not None}
    prompts = [
        encode(click.context, lexicon.vocabulary, lexicon.video_number, lexicon.genres_of)
        for click, _ in kept
    ]
    return Examples(
        prompts,
        np.array([number for _, number in kept], dtype=np.int64),
        [click for click, _ in kept],
        lexicon,
        {click.query: number for click, number in numbered if number is not None} | searched,
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
    at_root = at_root + (batch.root_feature @ gates[:, 0].unsqueeze(-1)).squeeze(-1)
    first = at_root.log_softmax(-1).gather(1, batch.root_taken[:, None])
    hidden, gates = hidden.flatten(0, 1), gates.flatten(0, 1)
    row = batch.deep_row
    below = (hidden.index_select(0, row) * network.word(batch.deep_word)).sum(-1)
    below = below + (gates.index_select(0, row) * batch.deep_feature).sum(-1)
    top = torch.full((len(hidden),), -1e9).scatter_reduce(0, row, below.detach(), "amax")
    total = torch.zeros(len(hidden)).index_add(0, row, (below - top[row]).exp())
    rows = row[batch.deep_taken]
    later = below[batch.deep_taken] - top[rows] - total[rows].log()
    said: Tensor = first.sum() + later.sum()
    return -said / len(batch.written)


def _batches(
    examples: Examples,
    trie: Trie,
    crowd: np.ndarray,
    config: Config,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """Endless shuffled batches with some of the prompt forgotten."""
    paths = Paths.of(trie)
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
    examples: Examples, trie: Trie, crowd: np.ndarray, paths: Paths, rows: np.ndarray
) -> Batch:
    """The examples `rows` with every edge that the trie offered on the way."""
    taken_paths = [paths.lists[target] for target in examples.target[rows]]
    length, root = max(map(len, taken_paths)), trie.children(ROOT)
    written = np.full((len(rows), length), PAD, dtype=np.int64)
    owner: list[int] = []
    place: list[int] = []
    offered: list[range] = []
    taken: list[int] = []
    edges = 0
    for n, path in enumerate(taken_paths):
        written[n, : len(path)] = [BEGIN, *trie.word[path[:-1]]]
        for step, (node, goal) in enumerate(itertools.pairwise(path), start=1):
            children = trie.children(node)
            taken.append(edges + goal - children.start)
            edges += len(children)
            owner.append(n)
            place.append(n * length + step)
            offered.append(children)
    deep = np.fromiter(itertools.chain.from_iterable(offered), dtype=np.int64)
    size = [len(children) for children in offered]
    mass = examples.mass(rows, trie, paths)
    owners = np.repeat(np.array(owner, dtype=np.int64), size)
    return Batch(
        tuple(map(torch.from_numpy, stack([examples.prompts[row] for row in rows]))),
        torch.from_numpy(written),
        torch.from_numpy(trie.word[root.start : root.stop]),
        torch.from_numpy(edge_features(trie, mass, crowd, np.arange(root.start, root.stop))),
        torch.tensor([path[0] - root.start for path in taken_paths]),
        torch.from_numpy(np.repeat(np.array(place, dtype=np.int64), size)),
        torch.from_numpy(trie.word[deep]),
        torch.from_numpy(_deep_features(trie, mass, crowd, deep, owners)),
        torch.tensor(taken, dtype=torch.int64),
    )


def _deep_features(
    trie: Trie, mass: np.ndarray, crowd: np.ndarray, deep: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """float32 [E, J]: the edge into each of `deep`, as its `owner`'s prompt sees it."""
    child, parent = deep, trie.parent[deep]
    share = crowd[child] / crowd[parent]
    return log_shares(mass[owner, :, child], mass[owner, :, parent], share)


def _forget(batch: Batch, config: Config, rng: np.random.Generator) -> Batch:
    word, segment, place, video = batch.prompt
    word, video = word.clone(), video.clone()
    video[torch.from_numpy(rng.random(len(video)) < config.forget_video)] = 0
    hidden = torch.from_numpy(rng.random(word.shape) < config.forget_word) & (word != PAD)
    word[hidden] = UNKNOWN
    return replace(batch, prompt=(word, segment, place, video))
