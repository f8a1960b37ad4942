"""Laws of the query recommender: legality, parity, bad input, and its baseline."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from models.generation.config import QueriesConfig
from models.generation.data import build_examples, items_of, query_clicks
from models.generation.inputs import SIGNATURE, canary_request
from models.generation.network import TorchNetwork
from models.generation.prompt import QueryContext
from models.generation.recipe import QueriesRecipe
from models.generation.recommend import recommend_queries
from models.generation.runtime import QueriesRuntime, context_of
from models.generation.train import train_queries
from models.generation.words import legal_queries, split_words
from models.recipe import NotEnoughData, TrainingLog
from models.registry import REGISTRY
from models.release.canary import read_canary, wrong_answer
from models.signature import BadInput, byte_list, text_list
from streams.feedback.outcomes import FEEDBACK_SCHEMA


def check_progress(share, what):
    assert 0.0 <= share <= 1.0
    assert what


def request(**changed):
    tensors = {
        "user_history": byte_list(["v1", "v5"]),
        "user_query": byte_list(["comedy movies"]),
        "video_id": byte_list(["v4"]),
        "title": byte_list(["Film number4 (1995)"]),
        "genres": byte_list(["Comedy", "Horror"]),
        "video_query": byte_list(["comedy movies", "film number4"]),
        "blocked": byte_list([]),
        "k": np.array([5], dtype=np.int64),
    }
    return tensors | changed


def answered(runtime, **changed):
    return text_list(runtime.infer(request(**changed))["query"])


def test_every_legal_query_is_recommended_once_and_no_other(query_bundle, trained):
    found = answered(QueriesRuntime(query_bundle), k=np.array([100]))
    assert len(found) == len(set(found)) == len(trained.lexicon.queries)
    assert set(found) == set(trained.lexicon.queries.texts)


def test_probabilities_of_all_legal_queries_sum_to_one(query_bundle):
    score = QueriesRuntime(query_bundle).infer(request(k=np.array([100])))["score"]
    assert np.exp(score.astype(float)).sum() == pytest.approx(1.0, abs=1e-4)
    assert (np.diff(score) <= 0).all()


def test_one_users_words_are_not_legal(trained):
    assert trained.lexicon.queries.find("my private words") is None


def test_a_query_taken_down_before_training_is_not_legal(click_log):
    config = QueriesConfig(steps=2, min_clicks=50, threads=1, taken_down=("Comedy  Movies",))
    gone = train_queries(click_log, config, seed=0, progress=check_progress)
    assert gone.lexicon.queries.find("comedy movies") is None


def test_a_blocked_query_is_neither_a_target_nor_a_candidate_of_training(click_log):
    config = QueriesConfig(steps=2, min_clicks=50, threads=1)
    blocked = replace(click_log, blocked_queries=("COMEDY movies",))
    trained = train_queries(blocked, config, seed=0, progress=check_progress)
    assert trained.lexicon.queries.find("comedy movies") is None
    clicks = query_clicks(blocked, items_of(blocked))
    examples = build_examples(clicks, trained.lexicon, config)
    assert all(click.query != "comedy movies" for click in examples.clicks)
    assert any(click.query == "comedy movies" for click in clicks)


def test_a_query_taken_down_since_the_release_is_blocked(query_bundle):
    runtime = QueriesRuntime(query_bundle)
    assert "comedy movies" in answered(runtime, k=np.array([100]))
    blocked = byte_list(["COMEDY movies", "never heard of"])
    assert "comedy movies" not in answered(runtime, k=np.array([100]), blocked=blocked)


def test_the_exported_runtime_equals_the_trained_network(query_bundle, trained):
    runtime = QueriesRuntime(query_bundle)
    network = TorchNetwork(trained.network)
    for item in range(8):
        tensors = request(video_id=byte_list([f"v{item}"]), k=np.array([8]))
        served = runtime.infer(tensors)
        lexicon, tables = trained.lexicon, trained.tables
        ours = recommend_queries(network, lexicon, tables, context_of(tensors), k=8)
        assert text_list(served["query"]) == [suggestion.query for suggestion in ours]
        assert np.allclose(served["score"], [s.score for s in ours], atol=1e-5)


def test_the_same_seed_trains_the_same_model(click_log):
    config = QueriesConfig(steps=3, min_clicks=50, threads=1)
    first, second = (
        train_queries(click_log, config, seed=3, progress=check_progress) for _ in range(2)
    )
    assert np.array_equal(first.tables.embedding, second.tables.embedding)


def test_an_example_does_not_depend_on_its_own_click_or_later(click_log):
    clicks = query_clicks(click_log, items_of(click_log))
    first = clicks[0]
    assert first.context.item_query == ()
    assert len(first.earlier) == 0
    later = [click for click in clicks if click.context.item_id == first.context.item_id]
    assert later[1].context.item_query == (first.query,)


def test_anchors_are_marked(query_bundle):
    found = QueriesRuntime(query_bundle).infer(request(k=np.array([100])))
    tied = dict(zip(text_list(found["query"]), found["anchor"].tolist(), strict=True))
    assert tied["film number4"] == 1
    assert tied["film number11"] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"video_id": byte_list(["unknown"])},
        {"video_id": byte_list([]), "title": byte_list([]), "genres": byte_list([])},
        {"user_history": byte_list([]), "user_query": byte_list([]), "video_query": byte_list([])},
        {"title": np.array([b"\xff\xfe"], dtype=object)},
        {"title": byte_list(["word " * 10_000])},
        {"k": np.array([10**12])},
    ],
)
def test_odd_requests_are_answered(query_bundle, changed):
    assert answered(QueriesRuntime(query_bundle), **changed)


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_query_is_refused(query_bundle, k):
    with pytest.raises(BadInput, match="'k'"):
        QueriesRuntime(query_bundle).infer(request(k=np.array([k])))


@pytest.mark.parametrize("name", [spec.name for spec in SIGNATURE.inputs])
def test_a_missing_or_misshaped_tensor_is_named(query_bundle, name):
    runtime = QueriesRuntime(query_bundle)
    tensors = request()
    wrong = tensors | {name: tensors[name][None]}
    del tensors[name]
    for bad in (tensors, wrong):
        with pytest.raises(BadInput, match=name):
            runtime.infer(bad)


def test_everything_blocked_is_an_empty_answer(query_bundle, trained):
    found = answered(QueriesRuntime(query_bundle), blocked=byte_list(trained.lexicon.queries.texts))
    assert found == []


def test_too_few_clicks_say_what_is_missing(click_log):
    few = replace(click_log, events=click_log.events.head(20))
    with pytest.raises(NotEnoughData, match="are needed"):
        train_queries(few, QueriesConfig(), seed=0, progress=check_progress)


def test_spelling_does_not_make_a_second_query():
    asked = [("a", "Sci Fi"), ("b", "sci  fi"), ("c", "sci fi"), ("d", "only once")]
    queries = legal_queries(asked, min_users=2)
    assert queries.texts == ("sci fi",)
    assert split_words("Toy Story (1995)") == ("toy", "story", "1995")


def test_the_users_taste_decides_between_an_items_genres(trained):
    network = TorchNetwork(trained.network)
    item = QueryContext("v0", "Film number0 (1995)", ("Comedy", "Horror"), (), (), ())

    def best(query):
        context = replace(item, user_query=(query,) * 5)
        ranked = recommend_queries(network, trained.lexicon, trained.tables, context, k=3)
        return next(s.query for s in ranked if s.query.endswith("movies"))

    assert best("comedy movies") == "comedy movies"
    assert best("horror movies") == "horror movies"


def test_the_query_runtime_imports_no_torch_arrow_polars_or_feast():
    code = (
        "import sys, models.generation.runtime\n"
        "bad = {'torch', 'pyarrow', 'polars', 'feast'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def empty_feedback():
    return pl.from_arrow(FEEDBACK_SCHEMA.empty_table())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_beats_the_most_frequent_legal_query_on_a_time_split():
    from deploy.simulation.history import history

    world = history(0)
    until_ms = int(world.frame["event_time_ms"].max()) + 1
    log = TrainingLog(world.frame, world.items_frame, empty_feedback(), until_ms)
    found = QueriesRecipe().evaluate(log, seed=0, progress=check_progress)
    assert found.beats_baseline, found


def test_a_dead_or_frozen_recommender_is_detected_reloaded_and_answers_rightly(
    assert_heals, trained, query_bundle
):
    assert_heals("queries", query_bundle, canary_request(trained.lexicon.genres_of))


def test_training_stores_a_canary_with_its_answer(click_log, tmp_path):
    config = QueriesConfig(steps=3, min_clicks=50, threads=1)
    QueriesRecipe(config).train(click_log, tmp_path, seed=0, progress=check_progress)
    canary = read_canary(tmp_path, REGISTRY["queries"].runtime)
    answer = QueriesRuntime(tmp_path).infer(canary.request)
    assert wrong_answer("queries", canary, answer) == ""
    assert wrong_answer("queries", canary, answer | {"query": byte_list(["a", "b"])})
