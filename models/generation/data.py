"""Training data of the query recommender: clicks, their prompts, and batches over a trie.

Knows TrainingLog's columns and the trie. An example reads only events before its click, so it
equals what the online features would have been. Does not know the network.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from models.generation.bundle import Lexicon
from models.generation.config import QueriesConfig
from models.generation.prompt import (
    ANCHOR_HISTORY,
    USER_HISTORY,
    USER_QUERY_HISTORY,
    Prompt,
    QueryContext,
    encode_prompt,
    genre_words,
    stack_prompts,
)
from models.generation.words import BEGIN, PAD, WordVocabulary, legal_queries, split_words
from models.layers.pointers import edge_features, log_shares
from models.layers.trie import ROOT, Trie
from models.recipe import NotEnoughData, TrainingLog
from streams.contract.declaration import contract

USER_QUERY_KINDS = ("query_click", "search")


@dataclass(frozen=True)
class ItemText:
    """An item's title and genres."""

    title: str
    genres: tuple[str, ...]


@dataclass(frozen=True)
class QueryClick:
    """One query click. `context`: what was known before it; `earlier`: all queries clicked under
    the item until then, oldest first."""

    user_id: str
    time_ms: int
    query: str
    context: QueryContext
    earlier: Sequence[str]


@dataclass(frozen=True)
class QueryExamples:
    """N legal clicks: their prompts and targets, int64 [N], numbers of the clicked queries.

    number: the legal ones among all texts of the clicks, looked up once.
    """

    prompts: Sequence[Prompt]
    target: np.ndarray
    clicks: Sequence[QueryClick]
    lexicon: Lexicon
    number: Mapping[str, int]

    def mass(self, rows: np.ndarray, trie: Trie, paths: TriePaths) -> np.ndarray:
        """float32 [B, 3, N]: the counts of live, anchors and user, summed over subtrees.

        Equals `trie.mass` of `pointer_counts`. Few of the Q counts are above 0, so adding each
        to its own path costs a tenth. Computed per batch: for all rows it would be large.
        """
        lists = [numbers for row in rows for numbers in self._pointer_lists(self.clicks[row])]
        owner = np.repeat(np.arange(len(lists)), [len(numbers) for numbers in lists])
        query = np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int64)
        cells = owner[:, None] * len(trie) + paths.node[query]
        size = len(lists) * len(trie)
        total = np.bincount(cells[paths.on_path[query]], minlength=size).astype(np.float32)
        return total.reshape(len(rows), 3, len(trie))

    def _pointer_lists(self, click: QueryClick) -> Iterator[list[int]]:
        context = click.context
        live, own = context.item_query[:ANCHOR_HISTORY], context.user_query[:USER_QUERY_HISTORY]
        for texts in (live, click.earlier[:], own):
            yield [self.number[text] for text in texts if text in self.number]


@dataclass(frozen=True)
class TriePaths:
    """The nodes from the root down to every query's leaf.

    lists: Q lists; node: int64 [Q, D], padded with the root; on_path: bool [Q, D], True at nodes
    of the path and at one root per query.
    """

    lists: Sequence[Sequence[int]]
    node: np.ndarray
    on_path: np.ndarray

    @classmethod
    def of(cls, trie: Trie) -> TriePaths:
        """The paths of a trie's Q leaves."""
        lists = [trie.path(int(leaf)) for leaf in trie.leaves()]
        node = np.full((len(lists), 1 + max(map(len, lists))), ROOT, dtype=np.int64)
        for query, path in enumerate(lists):
            node[query, 1 : 1 + len(path)] = path
        on_path = node != ROOT
        on_path[:, 0] = True
        return cls(lists, node, on_path)


@dataclass(frozen=True)
class QueryBatch:
    """B queries, and the trie's edges that each of their words could have been.

    All queries share the root's R edges, which are kept apart from the E deeper ones.

    prompt: word, segment, place int64 [B, P] and item int64 [B]; written: int64 [B, T], begin
    first, padded; root_word: int64 [R]; root_feature: float32 [B, R, J]; root_taken: int64 [B],
    the edges of the target; below the root, the same of E edges: deep_word int64 [E],
    deep_feature float32 [E, J], deep_taken int64, and deep_row int64 [E], the edge's position in
    the flattened [B * T].
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


def items_of(log: TrainingLog) -> dict[str, ItemText]:
    """Every catalogue item, including those taken down, since histories still contain them."""
    rows = log.items.select("video_id", "title", "genres").iter_rows()
    return {item_id: ItemText(title or "", tuple(genres or ())) for item_id, title, genres in rows}


def query_clicks(log: TrainingLog, items: Mapping[str, ItemText]) -> list[QueryClick]:
    """Every query click in the log's order, each with the histories that preceded it."""
    kinds = (*contract().signals.engaged, *USER_QUERY_KINDS)
    events = log.events.filter(pl.col("kind").is_in(kinds))
    engaged: dict[str, list[str]] = defaultdict(list)
    asked: dict[str, list[str]] = defaultdict(list)
    clicked: dict[str, list[str]] = defaultdict(list)
    found: list[QueryClick] = []
    columns = ("user_id", "kind", "video_id", "query", "event_time_ms")
    for user, kind, item_id, query, time_ms in events.select(columns).iter_rows():
        if kind == "query_click":
            context = context_of(item_id, items, engaged[user], asked[user], clicked[item_id])
            earlier = _Prefix(clicked[item_id], len(clicked[item_id]))
            found.append(QueryClick(user, time_ms, query, context, earlier))
            clicked[item_id].append(query)
        if kind in USER_QUERY_KINDS:
            asked[user].append(query)
        elif item_id is not None:
            engaged[user].append(item_id)
    return found


def build_lexicon(log: TrainingLog, clicks: Sequence[QueryClick], config: QueriesConfig) -> Lexicon:
    """Legal queries, words, numbered items and anchors of a log."""
    asked = log.events.filter(pl.col("kind").is_in(USER_QUERY_KINDS)).drop_nulls("query")
    queries = legal_queries(
        asked.select("user_id", "query").iter_rows(),
        min_users=config.min_users,
        taken_down=(*config.taken_down, *log.blocked_queries),
    )
    items = items_of(log)
    query_words = [split_words(text) for text in queries.texts]
    titles = [split_words(item.title) for item in items.values()]
    genres = [genre_words(item.genres) for item in items.values()]
    anchors: dict[str, list[int]] = defaultdict(list)
    for click in clicks:
        anchors[click.context.item_id] += queries.found([click.query])
    known = sorted(item_id for item_id, ids in anchors.items() if len(ids) >= config.item_clicks)
    return Lexicon(
        queries,
        WordVocabulary.of([*query_words, *titles, *genres]),
        {item_id: number for number, item_id in enumerate(known, start=1)},
        {item_id: item.genres for item_id, item in items.items()},
        dict(anchors),
    )


def build_examples(
    clicks: Sequence[QueryClick], lexicon: Lexicon, config: QueriesConfig
) -> QueryExamples:
    """The newest legal clicks as examples.

    Raises `NotEnoughData` for fewer than `min_clicks`.
    """
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
        encode_prompt(click.context, lexicon.vocabulary, lexicon.item_number, lexicon.genres_of)
        for click, _ in kept
    ]
    return QueryExamples(
        prompts,
        np.array([number for _, number in kept], dtype=np.int64),
        [click for click, _ in kept],
        lexicon,
        {click.query: number for click, number in numbered if number is not None} | searched,
    )


def make_batch(
    examples: QueryExamples, trie: Trie, crowd: np.ndarray, paths: TriePaths, rows: np.ndarray
) -> QueryBatch:
    """The examples `rows` with every edge that the trie offers along their targets."""
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
    return QueryBatch(
        tuple(map(torch.from_numpy, stack_prompts([examples.prompts[row] for row in rows]))),
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
    """float32 [E, J]: features of the edge into each of `deep`, for its `owner`'s prompt."""
    child, parent = deep, trie.parent[deep]
    share = crowd[child] / crowd[parent]
    return log_shares(mass[owner, :, child], mass[owner, :, parent], share)


def context_of(
    item_id: str,
    items: Mapping[str, ItemText],
    engaged: list[str],
    asked: list[str],
    clicked: list[str],
) -> QueryContext:
    """A request's context; the three lists are whole histories, oldest first."""
    item = items.get(item_id, ItemText("", ()))
    return QueryContext(
        item_id=item_id,
        title=item.title,
        genres=item.genres,
        user_history=_newest(engaged, USER_HISTORY),
        user_query=_newest(asked, USER_QUERY_HISTORY),
        item_query=_newest(clicked, ANCHOR_HISTORY),
    )


def _newest(texts: list[str], n: int) -> tuple[str, ...]:
    return tuple(texts[: -n - 1 : -1])


class _Prefix(Sequence[str]):
    """The first `length` entries of a list that keeps growing, without a copy."""

    def __init__(self, whole: list[str], length: int) -> None:
        self._whole = whole
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        return self._whole[: self._length][at]
