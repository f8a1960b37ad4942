"""Constrained beam search: a network writes, a trie holds the pen.

Knows a trie, log-shares and a network as a protocol of two calls. Numpy only. Does not
know whether torch or ONNX Runtime is behind the network: both decode by this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.generation.pointers import edge_features
from models.generation.prompt import Prompt
from models.generation.words import BEGIN
from models.layers.trie import ROOT, Trie


@dataclass(frozen=True)
class Written:
    """What the network knows after a word: B beams, D wide, J pointers.

    hidden: float32 [B, D]; gates: float32 [B, J]; keys, values: [L, B, H, T, K].
    """

    hidden: np.ndarray
    gates: np.ndarray
    keys: np.ndarray
    values: np.ndarray


class Network(Protocol):
    def read(self, prompt: Prompt) -> tuple[np.ndarray, ...]:
        """The prompt's keys, values and mask, computed once per request."""

    def write(
        self, kept: tuple[np.ndarray, ...], word: np.ndarray, step: int, past: Written | None
    ) -> Written:
        """Appends word [B] to every beam."""


@dataclass(frozen=True)
class Tables:
    """What a decode reads beside the network, all of one bundle.

    embedding: float32 [V, D], the words as the network's output layer sees them;
    crowd: float32 [N], `pointers.crowd_mass` of the trie.
    """

    trie: Trie
    embedding: np.ndarray
    crowd: np.ndarray


def beam_search(
    network: Network,
    tables: Tables,
    prompt: Prompt,
    pointed: np.ndarray,
    *,
    k: int,
    width: int,
    blocked: np.ndarray,
) -> list[tuple[int, float]]:
    """Up to k (query, log-probability) pairs, best first; equal scores in query order.

    pointed: float32 [3, Q], counts of the pointers live, anchors and user.
    blocked: int64 numbers of legal queries that may not come out of this request.
    Probabilities are over all legal queries, the blocked ones included.
    """
    trie = tables.trie
    mass = trie.mass(pointed)
    live = _live_nodes(trie, blocked)
    kept = network.read(prompt)
    nodes, scores = np.array([ROOT]), np.zeros(1, dtype=np.float64)
    words, past = np.array([BEGIN], dtype=np.int64), None
    finished: list[tuple[int, float]] = []
    step = 0
    while len(nodes):
        written = network.write(kept, words, step, past)
        rows, children, gained = _expand(tables, mass, nodes, written)
        totals = scores[rows] + gained
        alive = live[children]
        rows, children, totals = rows[alive], children[alive], totals[alive]
        ends = trie.leaf[children] >= 0
        finished += zip(trie.leaf[children[ends]].tolist(), totals[ends].tolist(), strict=True)
        chosen = _best(totals, ~ends, width, _bar(finished, k))
        nodes, scores, words = children[chosen], totals[chosen], trie.word[children[chosen]]
        past = _follow(written, rows[chosen])
        step += 1
    finished.sort(key=lambda pair: (-pair[1], pair[0]))
    return finished[:k]


def _expand(
    tables: Tables, mass: np.ndarray, nodes: np.ndarray, written: Written
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every edge out of the beam: its row, its child and its log-probability."""
    trie = tables.trie
    first, last = trie.start[nodes], trie.start[nodes + 1]
    size = last - first
    rows = np.repeat(np.arange(len(nodes)), size)
    offset = np.cumsum(size) - size
    children = np.arange(size.sum()) - offset[rows] + first[rows]
    features = edge_features(trie, mass, tables.crowd, children)
    spoken = np.einsum("ed,ed->e", written.hidden[rows], tables.embedding[trie.word[children]])
    logits = (spoken + np.einsum("ej,ej->e", written.gates[rows], features)).astype(np.float64)
    top = np.maximum.reduceat(logits, offset)
    total = np.add.reduceat(np.exp(logits - top[rows]), offset)
    return rows, children, logits - (top + np.log(total))[rows]


def _live_nodes(trie: Trie, blocked: np.ndarray) -> np.ndarray:
    """bool [N]: nodes under which some query may still come out."""
    allowed = np.ones(int((trie.leaf >= 0).sum()), dtype=np.float32)
    allowed[blocked] = 0.0
    alive: np.ndarray = trie.mass(allowed) > 0
    return alive


def _bar(finished: list[tuple[int, float]], k: int) -> float:
    """The score that a new query has to pass: the k-th best so far."""
    if len(finished) < k:
        return -np.inf
    return sorted((score for _, score in finished), reverse=True)[k - 1]


def _best(totals: np.ndarray, open_: np.ndarray, width: int, bar: float) -> np.ndarray:
    """Indices of the at most `width` best open edges above the bar, best first."""
    candidates = np.flatnonzero(open_ & (totals > bar))
    order = np.argsort(-totals[candidates], kind="stable")[:width]
    return candidates[order]


def _follow(written: Written, rows: np.ndarray) -> Written:
    return Written(written.hidden, written.gates, written.keys[:, rows], written.values[:, rows])
