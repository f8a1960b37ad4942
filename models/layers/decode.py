"""Beam search over the sequences of a trie.

Knows a trie, log-shares and a network as a protocol of one call. Numpy only. Does not know
whether torch or ONNX Runtime is behind the network; both decode by this code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.layers.pointers import edge_features
from models.layers.trie import ROOT, Trie


@dataclass(frozen=True)
class DecoderState:
    """The network's state after a word: B beams, width D, J pointers.

    hidden: float32 [B, D]; gates: float32 [B, J]; keys, values: [L, B, H, T, K].
    """

    hidden: np.ndarray
    gates: np.ndarray
    keys: np.ndarray
    values: np.ndarray


class DecoderNetwork(Protocol):
    def write(
        self, kept: tuple[np.ndarray, ...], word: np.ndarray, step: int, past: DecoderState | None
    ) -> DecoderState:
        """Appends word int64 [B] to the beams. kept: the prompt, as the network encoded it."""


@dataclass(frozen=True)
class DecodeTables:
    """A bundle's tables for decoding.

    embedding: float32 [V, D], the words of the network's output layer; crowd: float32 [N],
    `pointers.crowd_mass` of the trie.
    """

    trie: Trie
    embedding: np.ndarray
    crowd: np.ndarray


def beam_search(
    network: DecoderNetwork,
    tables: DecodeTables,
    kept: tuple[np.ndarray, ...],
    pointed: np.ndarray,
    *,
    begin: int,
    k: int,
    width: int,
    blocked: np.ndarray,
) -> list[tuple[int, float]]:
    """Up to k (query, log-probability) pairs, best first; equal scores in query order.

    kept: the encoded prompt. pointed: float32 [3, Q], counts of the pointers live, anchors and
    user. begin: the word before the first. width: beams kept at most. blocked: int64, numbers of
    sequences that are excluded. Probabilities are over all sequences, blocked ones included.
    """
    parts = beam_search_parts(
        network, tables, kept, pointed, begin=begin, k=k, width=width, blocked=blocked
    )
    return [pair for part in parts for pair in part]


def beam_search_parts(
    network: DecoderNetwork,
    tables: DecodeTables,
    kept: tuple[np.ndarray, ...],
    pointed: np.ndarray,
    *,
    begin: int,
    k: int,
    width: int,
    blocked: np.ndarray,
) -> Iterator[list[tuple[int, float]]]:
    """What `beam_search` returns, in parts, each as soon as it is decided.

    A word never raises a log-probability. A finished sequence is therefore decided, with its
    place, once its score exceeds that of every beam that goes on.
    """
    trie = tables.trie
    mass = trie.mass(pointed)
    live = _live_nodes(trie, blocked)
    nodes, scores = np.array([ROOT]), np.zeros(1, dtype=np.float64)
    words, past = np.array([begin], dtype=np.int64), None
    finished: list[tuple[int, float]] = []
    step, given = 0, 0
    while len(nodes):
        written = network.write(kept, words, step, past)
        rows, children, gained = _expand(tables, mass, nodes, written)
        totals = scores[rows] + gained
        alive = live[children]
        rows, children, totals = rows[alive], children[alive], totals[alive]
        ends = trie.leaf[children] >= 0
        finished += zip(trie.leaf[children[ends]].tolist(), totals[ends].tolist(), strict=True)
        chosen = _best(totals, ~ends, width, _kth_best(finished, k))
        nodes, scores, words = children[chosen], totals[chosen], trie.word[children[chosen]]
        past = _select_beams(written, rows[chosen])
        step += 1
        finished.sort(key=lambda pair: (-pair[1], pair[0]))
        del finished[k:]
        best_open = float(scores[0]) if len(scores) else -np.inf
        decided = sum(score > best_open for _, score in finished)
        if decided > given:
            yield finished[given:decided]
            given = decided


def _expand(
    tables: DecodeTables, mass: np.ndarray, nodes: np.ndarray, written: DecoderState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every edge out of the beams: its row, its child and its log-probability; [E] each."""
    trie = tables.trie
    first, last = trie.start[nodes], trie.start[nodes + 1]
    size = last - first
    rows = np.repeat(np.arange(len(nodes)), size)
    offset = np.cumsum(size) - size
    children = np.arange(size.sum()) - offset[rows] + first[rows]
    features = edge_features(trie, mass, tables.crowd, children)
    words = np.einsum("ed,ed->e", written.hidden[rows], tables.embedding[trie.word[children]])
    logits = (words + np.einsum("ej,ej->e", written.gates[rows], features)).astype(np.float64)
    top = np.maximum.reduceat(logits, offset)
    total = np.add.reduceat(np.exp(logits - top[rows]), offset)
    return rows, children, logits - (top + np.log(total))[rows]


def _live_nodes(trie: Trie, blocked: np.ndarray) -> np.ndarray:
    """bool [N]: nodes above at least one sequence that is not blocked."""
    allowed = np.ones(int((trie.leaf >= 0).sum()), dtype=np.float32)
    allowed[blocked] = 0.0
    alive: np.ndarray = trie.mass(allowed) > 0
    return alive


def _kth_best(finished: list[tuple[int, float]], k: int) -> float:
    """The score that a new sequence has to exceed."""
    if len(finished) < k:
        return -np.inf
    return sorted((score for _, score in finished), reverse=True)[k - 1]


def _best(totals: np.ndarray, open_: np.ndarray, width: int, bar: float) -> np.ndarray:
    """Indices of the at most `width` best open edges above `bar`, best first."""
    candidates = np.flatnonzero(open_ & (totals > bar))
    order = np.argsort(-totals[candidates], kind="stable")[:width]
    return candidates[order]


def _select_beams(written: DecoderState, rows: np.ndarray) -> DecoderState:
    return DecoderState(
        written.hidden, written.gates, written.keys[:, rows], written.values[:, rows]
    )
