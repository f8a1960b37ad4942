"""The page on declarations works as it is written: every block of it is run here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from deploy import wiring
from deploy.settings import Settings, load
from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.rows.attributes import user_attributes
from serving.surfaces.feed import FeedRequest
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.bus.polled import Record
from streams.catalogue import Catalogue, parse_catalogue_event
from streams.codec.decode import Rejection
from streams.codec.inputs import no_limit
from streams.contract.declaration import contract, declare
from streams.contract.impression import Impression, sign
from streams.contract.topics import BEHAVIOUR, CATALOGUE, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.store import FeedbackStore, read_feedback
from streams.ingest.admission import AdmissionLimits, admit

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "declare-attributes-and-signals.md"
T0 = 1_700_000_000_000
KEY = b"k" * 32


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A folder with both files of the page, declared as `tidemill up` does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEMILL_SETTINGS", raising=False)
    Path("tidemill.toml").write_text(_blocks("toml")[0])
    Path("shop_features.py").write_text(_blocks("python")[0])
    before, settings = contract(), load(home=tmp_path / "home")
    wiring.declare(settings)
    yield settings
    declare(before)
    DEFINITIONS.add({})


@pytest.mark.usefixtures("shop")
def test_the_pages_item_is_read_with_its_attributes() -> None:
    message = _blocks("json")[0].encode()
    event = parse_catalogue_event(Record(CATALOGUE, 0, 0, None, message, ()), no_limit())
    assert not isinstance(event, Rejection)
    catalogue = Catalogue()
    catalogue.apply(event)
    item = catalogue.get("shoe-1")
    assert item is not None
    assert (item.kind, item.brand, item.undeclared) == ("product", "Acme", ("season",))
    (row,) = catalogue.to_frame()["attributes"].to_list()
    assert (row["colour"], row["gift"], row["sizes"]) == ("red", False, ["42", "43"])
    heavy = message.replace(b"0.4", b'"heavy"')
    assert isinstance(
        parse_catalogue_event(Record(CATALOGUE, 0, 0, None, heavy, ()), no_limit()), Rejection
    )


def test_the_pages_signals_go_from_the_topic_to_log_features_and_feedback(shop: Settings) -> None:
    token = sign(
        Impression(
            request_id="r", surface="feed", user_id="ann", video_id="shoe-1", slot=0,
            propensity=1.0, release="r1", served_at_ms=T0,
        ),
        KEY,
    )  # fmt: skip
    events = [json.loads(_blocks("json")[1])[n] | {"impression": token} for n in (0, 1, 2)]
    shown = {"event_id": "e-0", "user_id": "ann", "kind": "shown", "item_id": "shoe-1"}
    stated = [{**shown, "event_time_ms": T0, "impression": token}, *events]
    values = [json.dumps(event).encode() for event in stated]
    records = [Record(BEHAVIOUR, 0, at, None, value, ()) for at, value in enumerate(values)]
    admitted = admit(records, T0 + 5_000, AdmissionLimits())
    assert admitted.refused == []
    delivery = Delivery(EVENTS_BY_USER, Stamp("t", 0, 0), admitted.table)

    log, feedback, rows = EventLog(shop.log_dir), shop.feedback_dir, MemoryFeatureStore()
    log.append(delivery)
    FeedbackStore(feedback, key=KEY, windows_ms=shop.feedback.windows_ms).join(delivery)
    for entity in ("user", "video", "brand"):
        rows.fold(entity, admitted.table, delivery.stamp)

    logged = log.read().filter(pl.col("kind") != "shown")
    assert logged["kind"].to_list() == ["rating", "goods_returned", "view"]
    assert logged["value"].to_list() == [4.5, None, None]
    row = read_feedback(feedback).row(0, named=True)
    assert (row["rating"], row["goods_returned"], row["like"]) == (True, True, False)
    ann = rows.read("user", ["ann"], T0 + 5_000).columns
    assert (ann["rating_count_1h"][0], ann["returned_cents_sum_all"][0]) == (1, 8_900)
    assert ann["rated_item"][0] == ["shoe-1"]
    assert (ann["most_rated"][0], ann["most_rated_count"][0]) == (["shoe-1"], [1])
    assert ann["items_rated"][0] == 1
    assert ann["recent_ratings"][0] == pytest.approx(1, abs=0.05)
    assert (ann["views_by_brand"][0], ann["views_by_brand_count"][0]) == (["Acme"], [1])
    assert ann["engaged_video_id"][0] == ["shoe-1", "shoe-1"]
    acme = rows.read("brand", ["Acme"], T0 + 5_000).columns
    assert (acme["view_count_all"][0], acme["viewed_item"][0]) == (1, ["shoe-1"])
    assert math.isnan(ann["return_rate_30d"][0])  # nothing ordered
    assert rows.read("video", ["shoe-1"], T0 + 5_000).columns["rated_by"][0] == ["ann"]


@pytest.mark.usefixtures("shop")
def test_the_pages_user_is_read_with_their_attributes_and_its_request_is_one() -> None:
    stated, request = _blocks("json")[2:4]
    heavy = stated.replace("24.5", '"large"').replace("p-1", "p-2")
    values = [each.encode() for each in (stated, heavy)]
    records = [Record(BEHAVIOUR, 0, at, None, value, ()) for at, value in enumerate(values)]
    admitted = admit(records, T0 + 5_000, AdmissionLimits())
    (refused,) = admitted.refused
    assert "'foot_cm' does not fit" in refused.detail
    rows = MemoryFeatureStore()
    rows.fold("user", admitted.table, Stamp("t", 0, 0))
    ann = user_attributes(rows.read("user", ["ann"], T0 + 5_000))
    assert ann == {"membership": "gold", "foot_cm": 24.5}
    context = FeedRequest.model_validate_json(request).context
    assert context is not None
    assert (context.device, context.item_id) == ("phone", "shoe-1")
