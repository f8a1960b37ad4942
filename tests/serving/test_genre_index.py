"""The genre index: the scores of the dense definition, in the space of a sparse one."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.state import catalogue as catalogue_module
from serving.state import genre_index
from serving.state.catalogue import LiveCatalogue
from serving.state.genre_index import GenreTable
from streams.catalogue import Catalogue
from streams.contract.events import CatalogueEvent, CatalogueItem, ItemChanged, ItemTakenDown

AT = 1_700_000_000_000
BYTES_PER_ITEM = 3_000  # 300 MB for 100,000 items with 32 tags each
TAGS = 32


def _item(name: str, genres: Sequence[str] = (), title: str = "") -> CatalogueItem:
    return CatalogueItem(video_id=name, title=title, genres=tuple(genres), created_ms=AT)


def _put(number: int, item: CatalogueItem) -> CatalogueEvent:
    return ItemChanged(event_id=f"{number}", event_time_ms=AT, item=item)


def _down(number: int, name: str) -> CatalogueEvent:
    return ItemTakenDown(event_id=f"{number}", event_time_ms=AT, video_id=name)


def dense_similarity(
    items: Sequence[CatalogueItem], history: Sequence[tuple[CatalogueItem, float]]
) -> np.ndarray:
    """The definition: unit vectors of log(1 + N / count), one column for each genre."""
    counts = Counter(genre for item in items for genre in item.genres)
    column = {genre: at for at, genre in enumerate(sorted(counts))}
    rows = {item.video_id: row for row, item in enumerate(items)}
    genres = np.zeros((len(items), len(column)))
    for row, item in enumerate(items):
        for genre in item.genres:
            genres[row, column[genre]] = np.log1p(len(items) / counts[genre])
    norms = np.linalg.norm(genres, axis=1, keepdims=True)
    genres /= np.where(norms > 0, norms, 1)
    vector = np.zeros(len(column))
    for item, weight in history:
        if item.video_id in rows:
            vector += weight * genres[rows[item.video_id]]
    length = np.linalg.norm(vector)
    return np.asarray(genres @ (vector / length if length else vector))


_NAMES = [f"v{n}" for n in range(6)]
_items = st.builds(
    _item, st.sampled_from(_NAMES), st.lists(st.sampled_from("abcdefg"), max_size=5),
    st.sampled_from(["", "other"]),
)  # fmt: skip
_changes = st.lists(_items | st.sampled_from(_NAMES), max_size=25)


@settings(deadline=None)
@given(_changes, st.integers(1, 6))
def test_after_any_changes_the_scores_are_those_of_the_dense_definition(
    changes: list[CatalogueItem | str], read_every: int
) -> None:
    fold = Catalogue()
    live = LiveCatalogue(fold)
    for number, change in enumerate(changes):
        taken_down = isinstance(change, str)
        live.apply(_down(number, change) if taken_down else _put(number, change))  # type: ignore[arg-type]
        if number % read_every == 0:
            _check(live, fold)
    _check(live, fold)


def _check(live: LiveCatalogue, fold: Catalogue) -> None:
    index = live.index()
    items = [item for each in fold.available_ids() if (item := fold.get(each)) is not None]
    assert index.ids == tuple(item.video_id for item in items)
    assert [index.row_of(each) for each in index.ids] == list(range(len(items)))
    assert index.genre_names() == sorted({genre for item in items for genre in item.genres})
    assert index.created_ms.tolist() == [item.created_ms for item in items]
    history = [(item, 1.0 + n) for n, item in enumerate(items[::2])] + [(_item("absent"), 1.0)]
    found = index.similarity(index.vector(history))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense_similarity(items, history), atol=1e-6)


def test_an_index_stays_as_it_was_while_the_catalogue_changes() -> None:
    live = LiveCatalogue(Catalogue())
    for number in range(20):
        live.apply(_put(number, _item(f"v{number:02}", "abc"[: number % 4])))
    index = live.index()
    history = [(_item("v03"), 1.0)]
    before = index.similarity(index.vector(history)).copy()
    for number in range(20, 60):
        live.apply(_put(number, _item(f"v{number % 30:02}", "cdefg"[: number % 5])))
        live.index()
    assert index.similarity(index.vector(history)).tolist() == before.tolist()


def test_a_change_updates_the_table_and_does_not_build_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[int] = []

    class Counted(GenreTable):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            built.append(len(self._ids))

    monkeypatch.setattr(catalogue_module, "GenreTable", Counted)
    monkeypatch.setattr(genre_index, "_MIN_DEAD", 1_000)
    live = LiveCatalogue(Catalogue())
    for number in range(300):
        live.apply(_put(number, _item(f"v{number}", ("a", "b"))))
    for number in range(300, 500):
        live.apply(_put(number, _item(f"v{number % 310}", ("a", f"{number}"))))
        assert len(live.index().ids) >= 300
    assert built == [300 + 1]
    for number in range(500, 2_000):
        live.apply(_put(number, _item(f"v{number % 310}", ("a", f"{number}"))))
        index = live.index()
    assert len(built) > 1  # replaced items are dropped in time
    assert len(index.codes) < 3_000


def _bytes_held(count: int, tags: int) -> tuple[int, int]:
    """Of a fold and its index: what they hold, and at most while they are built."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, count, (count, TAGS)).tolist()
    tracemalloc.start()
    live = LiveCatalogue(Catalogue())
    for number in range(count):
        genres = [f"tag {tag}" for tag in drawn[number][:tags]]
        live.apply(_put(number, _item(f"v{number}", genres)))
    index = live.index()
    index.similarity(index.vector([(_item("v1"), 1.0)]))
    held = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held


def test_free_tags_take_the_space_of_a_sparse_matrix() -> None:
    """A dense one would take 12 kB an item here, and 400 kB at 100,000 items."""
    count = 3_000
    (without, _), (held, peak) = _bytes_held(count, 0), _bytes_held(count, TAGS)
    assert held - without < BYTES_PER_ITEM * count
    assert peak - without < BYTES_PER_ITEM * count
