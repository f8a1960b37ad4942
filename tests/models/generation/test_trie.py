"""Laws of the trie: what went in can come out, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.layers.trie import ROOT, build_trie

END = 3
sequences = st.sets(st.lists(st.integers(4, 9), min_size=1, max_size=4).map(tuple), min_size=1)


@given(sequences)
def test_every_path_to_a_leaf_is_a_sequence_and_every_sequence_has_one(wanted):
    ordered = sorted(wanted)
    trie = build_trie(ordered, END)
    for number, leaf in enumerate(trie.leaves()):
        path = [int(word) for word in trie.word[trie.path(int(leaf))]]
        assert path == [*ordered[number], END]
    assert (trie.leaf >= 0).sum() == len(ordered)


@given(sequences)
def test_the_mass_of_a_node_is_the_sum_of_the_sequences_below_it(wanted):
    ordered = sorted(wanted)
    trie = build_trie(ordered, END)
    weight = np.arange(1, len(ordered) + 1, dtype=np.float32)
    mass = trie.mass(weight)
    for node in range(len(trie)):
        below = [n for n, leaf in enumerate(trie.leaves()) if node in [ROOT, *trie.path(int(leaf))]]
        assert mass[node] == weight[below].sum()


def test_a_word_that_no_sequence_goes_on_with_leads_nowhere():
    trie = build_trie([(4, 5), (4, 6)], END)
    first = trie.child(ROOT, 4)
    assert first is not None
    assert trie.child(first, 7) is None
    assert trie.child(ROOT, 5) is None


@pytest.mark.parametrize("bad", [[(4,), (4,)], [()], [(4, END)]])
def test_equal_empty_or_ended_sequences_are_refused(bad):
    with pytest.raises(ValueError, match="trie"):
        build_trie(bad, END)
