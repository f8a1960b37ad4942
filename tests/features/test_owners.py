"""Laws of owned rows: whoever writes beside an owner, every event counts once and none is lost."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from features.feast.registry import open_store
from features.online.compare_and_set import SWAP
from features.online.connection import Script
from features.online.lease import Claims
from features.online.optimistic_transaction import Watch
from features.online.rebuild_cutoff import Cut
from features.online.redis_store import FeastFeatureStore
from features.store import StoreDown
from streams.bus.contract import Stamp

NOW = 1_700_000_000_000
USERS = [f"u{i}" for i in range(6)]


def another(online, cached_rows):
    connection = online.connection
    return FeastFeatureStore(
        connection.address, connection.db, online.project, cached_rows=cached_rows
    )


def event(number, user, at=NOW):
    return {"kind": "like", "event_time_ms": at, "event_id": f"{number}", "user_id": user}


def likes(store, users=USERS):
    return store.read("user", users, NOW).columns["like_count_all"].tolist()


def owner(online):
    return online.connection.client.get(online._formats["user"].owner_key)


@pytest.mark.parametrize("seed", range(8))
def test_two_owners_and_a_writer_without_claims_lose_nothing(online, event_table, seed):
    """Each folds its own partition, all the same rows, in a random interleaving with replays
    and erasures of another user."""
    rng = np.random.default_rng(seed)
    writers = [online, another(online, 1000), another(online, 0)]
    offsets, wanted, sent = [0, 0, 0], dict.fromkeys(USERS, 0), [[], [], []]
    for turn in range(60):
        who = int(rng.integers(3))
        if sent[who] and rng.random() < 0.2:
            at, events = sent[who][int(rng.integers(len(sent[who])))]
            writers[who].fold("user", event_table(events), Stamp("e", who, at))
            continue
        users = rng.choice(USERS, rng.integers(1, 5), replace=False).tolist()
        events = [event(f"{turn}/{user}", user) for user in users]
        writers[who].fold("user", event_table(events), Stamp("e", who, offsets[who]))
        sent[who].append((offsets[who], events))
        offsets[who] += 1
        for user in users:
            wanted[user] += 1
        if rng.random() < 0.1:
            writers[int(rng.integers(3))].erase("gone", NOW + turn)
    assert likes(online) == [wanted[user] for user in USERS]


def test_a_claim_that_nobody_ended_would_lose_events(online, event_table):
    """The control: an owner that is kept from hearing of another one overwrites its rows."""
    twin = another(online, 0)
    twin._swap_script = Script(twin.connection, SWAP.replace("'UNLINK'", "'EXISTS'"))
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    twin.fold("user", event_table([event(1, "u0")]), Stamp("e", 1, 0))
    online.fold("user", event_table([event(2, "u0")]), Stamp("e", 0, 1))
    assert likes(online, ["u0"]) == [2]


def test_an_owner_stays_one_while_nobody_else_writes(online, event_table, monkeypatch):
    laid = []
    lay = Claims.lay

    def counted(self, entity, *given):
        was = self.held(entity)
        lay(self, entity, *given)
        laid.extend([entity] * (self.held(entity) is not was))

    monkeypatch.setattr(Claims, "lay", counted)
    for offset in range(5):
        online.fold("user", event_table([event(offset, "u0")]), Stamp("e", 0, offset))
    assert laid == ["user"]
    another(online, 0).erase("u1", NOW)
    assert owner(online) is None
    for offset in range(5, 8):
        online.fold("user", event_table([event(offset, "u0")]), Stamp("e", 0, offset))
    assert laid == ["user", "user"]
    assert likes(online, ["u0"]) == [8]


def test_an_erased_user_is_not_brought_back_by_the_owner(online, event_table):
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    another(online, 0).erase("u0", NOW)
    online.fold("user", event_table([event(1, "u0", NOW + 1)]), Stamp("e", 0, 1))
    assert likes(online, ["u0"]) == [1]


def test_an_owner_that_heard_no_reply_compares_again(online, event_table, monkeypatch):
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    exchange = Watch._exchange

    def silent(self, *given):
        exchange(self, *given)
        raise StoreDown

    monkeypatch.setattr(Watch, "_exchange", silent)
    with pytest.raises(StoreDown):
        online.fold("user", event_table([event(1, "u0")]), Stamp("e", 0, 1))
    monkeypatch.undo()
    online.fold("user", event_table([event(2, "u0")]), Stamp("e", 0, 2))
    assert likes(online, ["u0"]) == [3]


@pytest.mark.parametrize("way", ["push", "delete"])
def test_what_feast_does_to_rows_ends_the_claim(valkey, tmp_path, event_table, way):
    store = open_store(
        registry_path=tmp_path / "r.db", address=valkey, db=6, project="owned", cached_rows=100
    )
    store.apply()
    try:
        store.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
        client = store.feast_client()
        if way == "push":
            other = FeastFeatureStore(valkey, 6, "other")
            other.fold("user", event_table([event(7, "u0", NOW + 5)]), Stamp("x", 0, 0))
            blob = other.blobs("user", ["u0"])[0]
            when = datetime.fromtimestamp(NOW / 1000 + 9, UTC)
            frame = pd.DataFrame({"user_id": ["u0"], "row": [blob], "event_time": [when]})
            client.write_to_online_store("user_tiles", frame)
            other.tear_down()
        else:
            online_store = client._get_provider().online_store
            online_store.delete_entity_values(client.config, ["user_id"])
        assert owner(store) is None
        store.fold("user", event_table([event(1, "u0", NOW + 1)]), Stamp("e", 0, 1))
        assert likes(store, ["u0"]) == [1]
    finally:
        store.tear_down()


def test_a_process_of_before_a_rebuild_still_erases(online, event_table):
    """A gateway lives through rebuilds; whoever is asked to forget does not fold."""
    gateway = another(online, 0)
    gateway.generation()
    online.begin_generation(Cut())
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    gateway.erase("u0", NOW)
    online.fold("user", event_table([event(1, "u0"), event(2, "u1")]), Stamp("e", 0, 1))
    assert likes(online, ["u0", "u1"]) == [0, 1]


def test_ids_that_share_a_hash_keep_their_own_rows(online, event_table, monkeypatch):
    """An owner compares nothing: the cache must not take one id's row for another's."""
    monkeypatch.setattr(
        "features.kernels.packing.hashes", lambda _, offsets: np.ones(len(offsets) - 1, "u8")
    )
    for turn in range(6):
        users = [USERS[turn % 2], USERS[2]] if turn % 3 else [USERS[turn % 2]]
        events = [event(f"{turn}/{user}", user) for user in users]
        online.fold("user", event_table(events), Stamp("e", 0, turn))
    assert likes(online, USERS[:3]) == [3, 3, 4]
