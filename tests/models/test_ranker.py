"""Laws of the ranker: it beats popularity, its export is exact, it answers every valid request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from features.definitions import DEFINITIONS
from features.store import FeatureFrame, Status
from models.ids import id_hash
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.data import unlogged_examples, unlogged_interactions
from models.ranking.ple.export import FUSION_FILE, OneRequest, read_network
from models.ranking.ple.features import ITEM_FEATURES
from models.ranking.ple.inputs import (
    RANKER_TASKS,
    SIGNATURE,
    assemble_request,
    liking_of_kinds,
)
from models.ranking.ple.recipe import RankerRecipe, canary_request
from models.ranking.ple.runtime import RankerRuntime, rows_of
from models.ranking.tasks import task_names
from models.recipe import NotEnoughData, TrainingLog
from models.signature import BadInput
from streams.contract.events import CatalogueItem
from streams.progress import no_progress

NOW = 1_700_000_000_000


def request(candidates: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs with known and unknown ids."""
    rng = np.random.default_rng(seed)
    inputs = canary_request(candidates)
    inputs["user_hash"] = np.array([id_hash(f"u{seed}")])
    known = [id_hash(f"v{n}") for n in rng.integers(0, 200, max(candidates, 50))]
    inputs["video_hash"] = np.array(known[:candidates], np.int64)
    inputs["history"] = np.array(known[:50], np.int64)
    return inputs


def frame(entity: str, ids: list[str], value: float = 3) -> FeatureFrame:
    definition = DEFINITIONS[entity]  # type: ignore[index]
    count = len(ids)
    empty = np.empty(count, object)
    empty[:] = [["v1", "v2"]] * count
    columns = {name: np.full(count, value) for name in definition.count_columns}
    columns |= dict.fromkeys(definition.text_list_columns, empty)
    status, last = np.ones(count, np.uint8), np.full(count, NOW - 1000)
    return FeatureFrame(entity, tuple(ids), status, last, columns)  # type: ignore[arg-type]


def test_it_beats_popularity_forward_in_time(
    before_slates: TrainingLog, quick_recipe: RankerRecipe
) -> None:
    found = quick_recipe.evaluate(before_slates, seed=0, progress=no_progress)
    assert found.baseline == "popularity"
    assert found.difference[1] > 0, found


def test_it_beats_popularity_on_replayed_people(replayed_log: TrainingLog) -> None:
    small = RankerRecipe(RankerConfig(evaluated_interactions=800))
    found = small.evaluate(replayed_log, seed=0, progress=no_progress)
    assert found.baseline_value > 0.5, "popular films are liked more by those who met them"
    assert found.difference[1] > 0, found


def test_the_same_seed_trains_the_same_ranker(
    before_slates: TrainingLog, quick_recipe: RankerRecipe, trained: Path, tmp_path: Path
) -> None:
    quick_recipe.train(before_slates, tmp_path, seed=0, progress=no_progress)
    once, again = (
        RankerRuntime(trained).infer(request(20)),
        RankerRuntime(tmp_path).infer(request(20)),
    )
    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_progress_never_decreases_and_ends_at_one(
    before_slates: TrainingLog, quick_recipe: RankerRecipe, tmp_path: Path
) -> None:
    shares: list[float] = []
    quick_recipe.train(before_slates, tmp_path, seed=1, progress=lambda s, _: shares.append(s))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("candidates", [1, 7, 500])
def test_the_exported_graph_equals_torch(trained: Path, candidates: int) -> None:
    network, vocabulary = read_network(trained)
    inputs, factors = request(candidates), vocabulary.factors
    met = liking_of_kinds(inputs["history_kind"])
    vector = factors.vector(int(inputs["user_hash"][0]), inputs["history"], met)
    liking = factors.parts(vector, inputs["video_hash"])
    assert liking.any() or candidates == 1
    tensors = [
        rows_of(vocabulary.user, inputs["user_hash"]),
        inputs["user_x"],
        rows_of(vocabulary.item, inputs["history"]),
        inputs["history_kind"],
        rows_of(vocabulary.item, inputs["video_hash"]),
        rows_of(vocabulary.author, inputs["author_hash"]),
        inputs["genres"],
        np.hstack([inputs["video_x"], liking]),
    ]
    with torch.no_grad():
        expected = OneRequest(network)(*(torch.from_numpy(tensor) for tensor in tensors))
    served = RankerRuntime(trained).infer(inputs)
    assert task_names(served["tasks"]) == RANKER_TASKS
    computed = [spec.name for spec in SIGNATURE.outputs if spec.name != "tasks"]
    for name, tensor in zip(computed, expected, strict=True):
        np.testing.assert_allclose(served[name], tensor.numpy(), atol=1e-5)


@pytest.mark.parametrize("candidates", [0, 1, 5_000])
def test_any_number_of_candidates_is_answered(trained: Path, candidates: int) -> None:
    served = RankerRuntime(trained).infer(request(candidates))
    assert served["p"].shape == (candidates, len(RANKER_TASKS))
    assert served["score"].shape == (candidates,)
    assert np.isfinite(served["score"]).all()


def test_weights_are_on_the_simplex_for_every_user(trained: Path) -> None:
    runtime = RankerRuntime(trained)
    for seed in range(20):
        inputs = request(3, seed)
        inputs["user_x"] = (inputs["user_x"] - 0.5) * 10.0 ** (seed - 5)
        weights = runtime.infer(inputs)["weights"]
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1, abs=1e-5)


def test_the_score_is_the_users_weighted_sum_of_ratios_to_population_rates(trained: Path) -> None:
    served = RankerRuntime(trained).infer(request(30))
    stated = json.loads((trained / FUSION_FILE).read_text())["rates"]
    np.testing.assert_allclose(served["rates"], [stated[task] for task in RANKER_TASKS], rtol=1e-6)
    ratios = served["p"] / served["rates"]
    np.testing.assert_allclose(ratios @ served["weights"], served["score"], rtol=1e-5, atol=1e-5)


def test_a_candidates_score_does_not_depend_on_other_candidates(trained: Path) -> None:
    runtime, inputs = RankerRuntime(trained), request(40)
    twice = {
        name: np.concatenate([tensor, tensor]) if spec.shape[0] == -1 else tensor
        for spec in SIGNATURE.inputs
        for name, tensor in [(spec.name, inputs[spec.name])]
    }
    once, doubled = runtime.infer(inputs)["score"], runtime.infer(twice)["score"]
    np.testing.assert_allclose(doubled, np.concatenate([once, once]), atol=1e-6)


def test_unknown_ids_share_the_cold_bucket(trained: Path) -> None:
    runtime, inputs = RankerRuntime(trained), request(2)
    inputs["video_hash"] = np.array([id_hash("never-seen"), id_hash("nor-this")])
    for name in ("author_hash", "genres", "video_x"):
        inputs[name][1] = inputs[name][0]
    score = runtime.infer(inputs)["score"]
    assert score[0] == score[1]


@pytest.mark.parametrize("name", ["user_x", "genres", "video_x"])
def test_nan_is_refused_by_name(trained: Path, name: str) -> None:
    inputs = request(3)
    inputs[name] = np.full_like(inputs[name], np.nan)
    with pytest.raises(BadInput, match=name):
        RankerRuntime(trained).infer(inputs)


def test_unequal_candidates_are_refused_by_name(trained: Path) -> None:
    inputs = request(3) | {"author_hash": np.zeros(4, np.int64)}
    with pytest.raises(BadInput, match="author_hash"):
        RankerRuntime(trained).infer(inputs)


def test_a_wrong_dtype_is_refused_by_name(trained: Path) -> None:
    with pytest.raises(BadInput, match="video_hash"):
        RankerRuntime(trained).infer(request(3) | {"video_hash": np.zeros(3, np.float32)})


def test_assembled_features_fit_the_signature() -> None:
    items = [CatalogueItem(video_id=f"v{n}", title="", genres=("Drama",)) for n in range(4)]
    videos = frame("video", [item.video_id for item in items])
    authors = frame("author", [""] * 4)
    SIGNATURE.check_inputs(assemble_request(frame("user", ["u1"]), videos, authors, items, {}, NOW))
    none = assemble_request(
        frame("user", ["u1"]), frame("video", []), frame("author", []), [], {}, NOW
    )
    SIGNATURE.check_inputs(none)
    assert len(none["video_hash"]) == 0


def test_invalid_and_missing_features_count_as_zero() -> None:
    items = [CatalogueItem(video_id="v1", title="")]
    nan, zero = (
        assemble_request(
            *(frame(of, ["1"], v) for of in ("user", "video", "author")), items, {}, NOW
        )
        for v in (np.nan, 0)
    )
    bare = [frame(of, ["1"], 0) for of in ("user", "video", "author")]
    for name in [n for n in bare[0].columns if "count" in n]:
        del bare[0].columns[name]
    missing = assemble_request(*bare, items, {}, NOW)
    for name in zero:
        np.testing.assert_array_equal(nan[name], zero[name])
        np.testing.assert_array_equal(missing[name], zero[name])


def test_features_of_other_candidates_are_refused() -> None:
    user, item = frame("user", ["u"]), CatalogueItem(video_id="v1", title="")
    one, two = ([f"{n}" for n in range(count)] for count in (1, 2))
    with pytest.raises(ValueError, match="2 feature rows of videos do not fit 1"):
        assemble_request(user, frame("video", two), frame("author", one), [item], {}, NOW)
    with pytest.raises(ValueError, match="2 feature rows of authors do not fit 1"):
        assemble_request(user, frame("video", one), frame("author", two), [item], {}, NOW)


def facts(authors: FeatureFrame, lists: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """video_x by name of three items: two of author a (v1, v2), one without an author (v3)."""
    user = frame("user", ["u"])
    for name, ids in lists.items():
        user.columns[name] = np.empty(1, object)
        user.columns[name][0] = ids
    about = [("v1", "a"), ("v2", "a"), ("v3", None)]
    items = [CatalogueItem(video_id=v, title="", author_id=a) for v, a in about]
    videos = frame("video", [item.video_id for item in items])
    author_of = {"v1": "a", "v2": "a", "v3": "", "v4": "a", "v5": "b"}
    video_x = assemble_request(user, videos, authors, items, author_of, NOW)["video_x"]
    return dict(zip(ITEM_FEATURES, video_x.T, strict=True))


def test_an_authors_items_in_the_users_lists_count_for_each_of_its_candidates() -> None:
    """Including an item that is no candidate; not one of another author, of none, or unknown."""
    lists = {"engaged_video_id": ["v1", "v4", "v4", "v5", "v3", "gone"], "shown_video_id": ["v2"]}
    found = facts(frame("author", ["a", "a", ""]), lists)
    np.testing.assert_allclose(np.expm1(found["log_author_engaged_by_user"]), [3, 3, 0], atol=1e-6)
    np.testing.assert_allclose(np.expm1(found["log_author_shown_to_user"]), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(np.expm1(found["log_engaged_by_user"]), [1, 0, 1], atol=1e-6)


def test_features_of_an_unknown_author_are_zero() -> None:
    authors = frame("author", ["a", "a", ""])
    authors.status[1:] = [Status.EXPIRED, Status.ABSENT]
    found = facts(authors, {})
    own = [name for name in ITEM_FEATURES if name.startswith("author_")]
    assert found["author_known"].tolist() == [1, 0, 0]
    assert all(found[name][0] > 0 for name in own)
    assert all((found[name][1:] == 0).all() for name in own)


def test_a_sampled_negative_was_never_acted_on(before_slates: TrainingLog) -> None:
    examples = unlogged_examples(
        before_slates, negatives=5, uniform_share=0.5, since_ms=0, count=500, seed=3
    )
    own = set(
        zip(
            *unlogged_interactions(before_slates).select("user_id", "item").to_dict().values(),
            strict=True,
        )
    )
    group, place = np.nonzero(examples.real[:, 1:])
    pairs = zip(examples.users[group], examples.item[group, place + 1], strict=True)
    assert not own & set(pairs)
    assert examples.acted[:, 0].all()
    assert not examples.acted[:, 1:].any()


def test_too_little_data_says_what_is_missing(
    before_slates: TrainingLog, quick_recipe: RankerRecipe, tmp_path: Path
) -> None:
    few = TrainingLog(
        before_slates.events.head(5), before_slates.items, before_slates.feedback, NOW
    )
    with pytest.raises(NotEnoughData, match="actions: 5 of 200"):
        quick_recipe.train(few, tmp_path, seed=0, progress=no_progress)
