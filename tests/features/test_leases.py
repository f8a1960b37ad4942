"""Laws of leases: beside a lease holder, every event of any writer counts once."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from features.feast.registry import open_store
from features.online.compare_and_set import COMPARE_AND_SET_SCRIPT
from features.online.connection import Script
from features.online.feast_keys import lease_key
from features.online.lease import Leases
from features.online.optimistic_transaction import OptimisticTransaction
from features.online.rebuild_cutoff import RebuildCutoff
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


def stored_lease(online):
    return online.connection.client.get(lease_key(online.project, "user_tiles"))


@pytest.mark.parametrize("seed", range(8))
def test_two_lease_holders_and_a_writer_without_lease_lose_nothing(online, event_table, seed):
    """Each folds its own partition into the same rows, randomly interleaved, with replays and
    erasures of another user."""
    rng = np.random.default_rng(seed)
    writers = [online, another(online, 1000), another(online, 0)]
    offsets, wanted, sent = [0, 0, 0], dict.fromkeys(USERS, 0), [[], [], []]
    for number in range(60):
        writer = int(rng.integers(3))
        if sent[writer] and rng.random() < 0.2:
            at, events = sent[writer][int(rng.integers(len(sent[writer])))]
            writers[writer].fold("user", event_table(events), Stamp("e", writer, at))
            continue
        users = rng.choice(USERS, rng.integers(1, 5), replace=False).tolist()
        events = [event(f"{number}/{user}", user) for user in users]
        writers[writer].fold("user", event_table(events), Stamp("e", writer, offsets[writer]))
        sent[writer].append((offsets[writer], events))
        offsets[writer] += 1
        for user in users:
            wanted[user] += 1
        if rng.random() < 0.1:
            writers[int(rng.integers(3))].erase("gone", NOW + number)
    assert likes(online) == [wanted[user] for user in USERS]


def test_a_lease_that_is_not_invalidated_would_lose_events(online, event_table):
    """The control: without the invalidation, the holder overwrites the other writer's row."""
    twin = another(online, 0)
    script = COMPARE_AND_SET_SCRIPT.replace("'UNLINK'", "'EXISTS'")
    twin.writer._compare_and_set_script = Script(twin.connection, script)
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    twin.fold("user", event_table([event(1, "u0")]), Stamp("e", 1, 0))
    online.fold("user", event_table([event(2, "u0")]), Stamp("e", 0, 1))
    assert likes(online, ["u0"]) == [2]


def test_a_lease_is_kept_until_another_process_writes(online, event_table, monkeypatch):
    acquired = []
    acquire = Leases.acquire

    def counted(self, entity, *arguments):
        before = self.held(entity)
        acquire(self, entity, *arguments)
        acquired.extend([entity] * (self.held(entity) is not before))

    monkeypatch.setattr(Leases, "acquire", counted)
    for offset in range(5):
        online.fold("user", event_table([event(offset, "u0")]), Stamp("e", 0, offset))
    assert acquired == ["user"]
    another(online, 0).erase("u1", NOW)
    assert stored_lease(online) is None
    for offset in range(5, 8):
        online.fold("user", event_table([event(offset, "u0")]), Stamp("e", 0, offset))
    assert acquired == ["user", "user"]
    assert likes(online, ["u0"]) == [8]


def test_a_lease_holder_does_not_restore_an_erased_user(online, event_table):
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    another(online, 0).erase("u0", NOW)
    online.fold("user", event_table([event(1, "u0", NOW + 1)]), Stamp("e", 0, 1))
    assert likes(online, ["u0"]) == [1]


def test_a_lease_holder_without_a_reply_compares_again(online, event_table, monkeypatch):
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    exchange = OptimisticTransaction._exchange

    def silent(self, *arguments):
        exchange(self, *arguments)
        raise StoreDown

    monkeypatch.setattr(OptimisticTransaction, "_exchange", silent)
    with pytest.raises(StoreDown):
        online.fold("user", event_table([event(1, "u0")]), Stamp("e", 0, 1))
    monkeypatch.undo()
    online.fold("user", event_table([event(2, "u0")]), Stamp("e", 0, 2))
    assert likes(online, ["u0"]) == [3]


@pytest.mark.parametrize("way", ["push", "delete"])
def test_a_write_by_feast_invalidates_the_lease(valkey, tmp_path, event_table, way):
    store = open_store(
        registry_path=tmp_path / "r.db", address=valkey, db=6, project="leased", cached_rows=100
    )
    store.apply()
    try:
        store.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
        client = store.feast_client()
        if way == "push":
            other = FeastFeatureStore(valkey, 6, "other")
            other.fold("user", event_table([event(7, "u0", NOW + 5)]), Stamp("x", 0, 0))
            row = other.stored_rows("user", ["u0"])[0]
            when = datetime.fromtimestamp(NOW / 1000 + 9, UTC)
            frame = pd.DataFrame({"user_id": ["u0"], "row": [row], "event_time": [when]})
            client.write_to_online_store("user_tiles", frame)
            other.tear_down()
        else:
            online_store = client._get_provider().online_store
            online_store.delete_entity_values(client.config, ["user_id"])
        assert stored_lease(store) is None
        store.fold("user", event_table([event(1, "u0", NOW + 1)]), Stamp("e", 0, 1))
        assert likes(store, ["u0"]) == [1]
    finally:
        store.tear_down()


def test_a_process_from_before_a_rebuild_still_erases(online, event_table):
    """A gateway runs through rebuilds: it erases and does not fold."""
    gateway = another(online, 0)
    gateway.rebuild_id()
    online.begin_rebuild(RebuildCutoff())
    online.fold("user", event_table([event(0, "u0")]), Stamp("e", 0, 0))
    gateway.erase("u0", NOW)
    online.fold("user", event_table([event(1, "u0"), event(2, "u1")]), Stamp("e", 0, 1))
    assert likes(online, ["u0", "u1"]) == [0, 1]


def test_ids_that_share_a_hash_keep_their_own_rows(online, event_table, monkeypatch):
    """A lease holder compares nothing, so the cache must not confuse two ids."""
    monkeypatch.setattr(
        "features.kernels.packing.hashes", lambda _, offsets: np.ones(len(offsets) - 1, "u8")
    )
    for offset in range(6):
        users = [USERS[offset % 2], USERS[2]] if offset % 3 else [USERS[offset % 2]]
        events = [event(f"{offset}/{user}", user) for user in users]
        online.fold("user", event_table(events), Stamp("e", 0, offset))
    assert likes(online, USERS[:3]) == [3, 3, 4]
