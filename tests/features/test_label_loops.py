"""Laws of the join's compiled loops: each says what numpy's plain way says."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.kernels import labels as label_loops

_SMALL = st.integers(0, 5)
_MOMENT = st.tuples(_SMALL, st.integers(-3, 40))
_SPAN = st.tuples(st.integers(0, 30), st.integers(0, 4))


def _columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


@given(st.lists(_MOMENT, max_size=40), st.lists(_MOMENT, max_size=40))
def test_a_gallop_finds_what_counting_finds_in_any_order(
    moments: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    found = label_loops.first_from(*_columns(sorted(moments)), *_columns(asked))
    assert found.tolist() == [sum(moment < each for moment in moments) for each in asked]


@given(st.lists(_MOMENT, max_size=40))
def test_sorting_by_row_is_stable(moments: list[tuple[int, int]]) -> None:
    row, time = _columns(moments)
    order = label_loops.sorted_by_row(row, np.argsort(time, kind="stable"))
    assert order.tolist() == np.lexsort((time, row)).tolist()


@given(st.lists(_MOMENT, max_size=40))
def test_the_largest_so_far_is_of_the_own_row(moments: list[tuple[int, int]]) -> None:
    row, value = _columns(sorted(moments, key=lambda each: each[0]))
    found = label_loops.largest_so_far(row, value)
    own = [value[: i + 1][row[: i + 1] == row[i]].max() for i in range(len(row))]
    assert found.tolist() == own


@given(st.lists(_SPAN, max_size=20))
def test_spans_are_laid_one_after_another(spans: list[tuple[int, int]]) -> None:
    start, length = _columns(spans)
    offsets, places = label_loops.spread(start, start + length)
    assert offsets.tolist() == [0, *np.cumsum(length).tolist()]
    assert places.tolist() == [at for first, n in spans for at in range(first, first + n)]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.booleans())
def test_a_key_that_comes_twice_is_found(keys: list[int], doubled: bool) -> None:
    known = [max(key, 1) for key in keys]  # 0 counts as 1
    known += known[: int(doubled)]
    assert label_loops.repeats(np.array(known, np.uint64)) == (len(set(known)) < len(known))
