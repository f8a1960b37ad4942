"""A trie of word sequences: which words may follow a prefix.

Knows word ids and where sequences end. Does not know texts, scores or torch. Nodes are numbered
breadth first, so the children of a node are one range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROOT = 0


@dataclass(frozen=True)
class Trie:
    """N nodes over Q sequences. Every sequence ends in a leaf, reached by the word `end`.

    word: int64 [N], the word on the edge into a node (-1 at the root).
    parent: int64 [N], -1 at the root.
    start: int64 [N + 1], the children of n are nodes start[n] .. start[n + 1] - 1.
    leaf: int64 [N], the sequence that ends in the node, or -1.
    """

    word: np.ndarray
    parent: np.ndarray
    start: np.ndarray
    leaf: np.ndarray

    def __len__(self) -> int:
        return len(self.word)

    def children(self, node: int) -> range:
        """The children's nodes."""
        return range(int(self.start[node]), int(self.start[node + 1]))

    def child(self, node: int, word: int) -> int | None:
        """The node that `word` leads to; None where no sequence continues with it."""
        first, last = int(self.start[node]), int(self.start[node + 1])
        at = first + int(np.searchsorted(self.word[first:last], word))
        return at if at < last and self.word[at] == word else None

    def path(self, node: int) -> list[int]:
        """Nodes from the root's child down to `node`."""
        nodes: list[int] = []
        while node != ROOT:
            nodes.append(node)
            node = int(self.parent[node])
        return nodes[::-1]

    def leaves(self) -> np.ndarray:
        """int64 [Q]: the leaf of every sequence."""
        nodes = np.flatnonzero(self.leaf >= 0)
        found = np.empty(len(nodes), dtype=np.int64)
        found[self.leaf[nodes]] = nodes
        return found

    def mass(self, weight: np.ndarray) -> np.ndarray:
        """Sums weights float32 [..., Q] of sequences over every node's subtree: [..., N]."""
        total = np.zeros((*weight.shape[:-1], len(self)), dtype=np.float32)
        total[..., self.leaves()] = weight
        for level in reversed(self._levels()):
            # Children are contiguous and in their parents' order, so one reduceat sums them.
            nodes = np.arange(level.start, level.stop)
            parents, firsts = np.unique(self.parent[nodes], return_index=True)
            total[..., parents] += np.add.reduceat(total[..., nodes], firsts, axis=-1)
        return total

    def _levels(self) -> list[range]:
        """Node ranges by depth, without the root."""
        levels: list[range] = []
        level = self.children(ROOT)
        while len(level):
            levels.append(level)
            level = range(int(self.start[level.start]), int(self.start[level.stop]))
        return levels


def build_trie(sequences: Sequence[Sequence[int]], end: int) -> Trie:
    """The trie of Q distinct, non-empty sequences of word ids; `end` closes each.

    Raises ValueError when two sequences are equal, one is empty, or one holds `end`.
    """
    if len({tuple(sequence) for sequence in sequences}) != len(sequences):
        raise ValueError("sequences of a trie must be distinct")
    if any(not sequence or end in sequence for sequence in sequences):
        raise ValueError("a sequence of a trie is empty or holds the end word")
    closed = [(*sequence, end) for sequence in sequences]
    word, parent, leaf, start = [-1], [-1], [-1], []
    frontier: list[tuple[int, list[int]]] = [(0, list(range(len(closed))))]  # depth, members
    for node, (depth, members) in enumerate(frontier):
        start.append(len(word))
        for edge, branch in _branches(closed, depth, members):
            word.append(edge)
            parent.append(node)
            leaf.append(branch[0] if edge == end else -1)
            frontier.append((depth + 1, branch))
    start.append(len(word))
    return Trie(*(np.array(column, dtype=np.int64) for column in (word, parent, start, leaf)))


def _branches(
    closed: Sequence[tuple[int, ...]], depth: int, members: list[int]
) -> list[tuple[int, list[int]]]:
    groups: dict[int, list[int]] = {}
    for member in members:
        if depth < len(closed[member]):
            groups.setdefault(closed[member][depth], []).append(member)
    return sorted(groups.items())
