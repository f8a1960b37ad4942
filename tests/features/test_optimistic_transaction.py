"""Laws of optimistic transactions: a key that was touched in between stops the write."""

from __future__ import annotations

import uuid

import pytest
import redis

from features.online.connection import Connection
from features.online.feast_keys import lease_key, metadata_key
from features.online.optimistic_transaction import OptimisticTransaction, pack_command
from features.online.rebuild_cutoff import RebuildCutoff
from features.online.redis_store import FeastFeatureStore
from features.store import RebuildIdChanged
from streams.bus.contract import Stamp

NOW, DB = 1_700_000_000_000, 7
WAYS_TO_BREAK = {
    "another token": lambda client, key, _: client.set(key, b"another"),
    "the same token again": lambda client, key, _: client.set(key, b"token"),
    "deleted": lambda client, key, _: client.unlink(key),
    "expired": lambda client, key, _: client.pexpire(key, 1),
    "flushed": lambda client, *_: client.flushdb(),
    "flushed and set again": lambda client, key, _: client.flushdb() and client.set(key, b"token"),
    "closed": lambda client, _, transaction: close_connection(client, transaction),
}


def close_connection(client, transaction):
    """Closes the transaction's connection from the server's side, as a restart does."""
    host, port = transaction._dedicated._connection._sock.getsockname()
    client.client_kill_filter(addr=f"{host}:{port}")


def event(number, user="u", at=NOW):
    return {"kind": "like", "event_time_ms": at, "event_id": f"{number}", "user_id": user}


def likes(store, user="u"):
    return int(store.read("user", [user], NOW).columns["like_count_all"][0])


@pytest.fixture
def begun(valkey):
    """A valid transaction in a database of its own, and a second connection to it."""
    connection = Connection(valkey, DB, 1.0)
    connection.client.flushdb()
    connection.client.hset("metadata", "id", "1")
    transaction = OptimisticTransaction(connection, b"lease", (b"metadata", b"id"))
    assert transaction.begin(b"token", b"1")
    yield transaction, connection.client
    connection.client.flushdb()


def test_an_untouched_key_lets_every_transaction_through(begun):
    transaction, client = begun
    for number in range(3):
        commands = pack_command(b"HSET", b"row", b"f", b"%d" % number)
        commands += pack_command(b"HINCRBY", b"n", b"f", b"1")
        assert transaction.execute(2, commands)
    assert (client.hget("row", "f"), client.hget("n", "f")) == (b"2", b"3")


@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_a_broken_transaction_writes_nothing_until_it_begins_again(begun, way):
    transaction, client = begun
    WAYS_TO_BREAK[way](client, "lease", transaction)
    for _ in range(2):
        assert not transaction.execute(1, pack_command(b"HSET", b"row", b"f", b"1"))
        assert not client.exists("row")
    client.hset("metadata", "id", "1")
    assert transaction.begin(b"new", b"1")
    assert transaction.execute(1, pack_command(b"HSET", b"row", b"f", b"2"))
    assert client.hget("row", "f") == b"2"


def test_another_guard_value_invalidates_the_transaction(begun):
    transaction, client = begun
    client.hset("metadata", "id", "2")  # without touching the key: one execution may succeed
    transaction.execute(1, pack_command(b"HSET", b"row", b"f", b"1"))
    assert not transaction.execute(1, pack_command(b"HSET", b"row", b"f", b"2"))
    assert client.hget("row", "f") == b"1"
    assert not transaction.begin(b"new", b"1")


@pytest.mark.parametrize("command", [(b"HSET", b"text", b"f", b"1"), (b"HSET", b"row")])
def test_an_error_among_the_commands_is_raised_and_invalidates(begun, command):
    """Commands that the server refuses to queue, and commands that fail when executed."""
    transaction, client = begun
    client.set("text", "no hash")
    with pytest.raises(redis.exceptions.ResponseError):
        transaction.execute(1, pack_command(*command))
    assert not transaction.execute(1, pack_command(b"HSET", b"row", b"f", b"1"))
    assert not client.exists("row")


@pytest.fixture
def holder(valkey):
    """A store that caches rows, and so holds leases, in a database of its own."""
    store = FeastFeatureStore(valkey, DB, f"t{uuid.uuid4().hex[:12]}", cached_rows=100)
    store.connection.client.flushdb()
    yield store
    store.connection.client.flushdb()


def another(store):
    return FeastFeatureStore(store.connection.address, DB, store.project)


def test_a_lease_holder_compares_nothing(holder, event_table, monkeypatch):
    holder.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    monkeypatch.setattr(holder.writer._compare_and_set_script, "run_all", None)
    for offset in range(1, 4):
        events = [event(offset), event(offset, "new")]
        holder.fold("user", event_table(events), Stamp("e", 0, offset))
    assert likes(holder) == 4


@pytest.mark.parametrize("written", [False, True])
def test_a_closed_connection_loses_no_event(holder, event_table, written):
    """With and without a write by another process in between."""
    holder.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    close_connection(holder.connection.client, holder.writer._leases._transactions["user"])
    if written:
        another(holder).fold("user", event_table([event(1)]), Stamp("e", 1, 0))
    for offset in range(1, 4):
        holder.fold("user", event_table([event(f"own {offset}")]), Stamp("e", 0, offset))
    assert likes(holder) == 4 + written


def test_a_write_that_succeeds_without_a_reply_counts_once(holder, event_table, monkeypatch):
    holder.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    exchange = OptimisticTransaction._exchange

    def unanswered(self, *arguments):
        exchange(self, *arguments)
        return False

    monkeypatch.setattr(OptimisticTransaction, "_exchange", unanswered)
    holder.fold("user", event_table([event(1), event(2)]), Stamp("e", 0, 1))
    monkeypatch.undo()
    holder.fold("user", event_table([event(3)]), Stamp("e", 0, 2))
    assert likes(holder) == 4


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_lease_lost_amid_a_batch_loses_none_of_its_rows(holder, event_table, monkeypatch, when):
    monkeypatch.setattr("features.online.compare_and_set.SET_ROWS", 2)
    users = [f"u{i}" for i in range(6)]
    holder.fold("user", event_table([event(f"0{u}", u) for u in users]), Stamp("e", 0, 0))
    execute, calls = OptimisticTransaction.execute, []

    def interrupted(self, *arguments):
        if len(calls) == when:
            events = [event(f"other {u}", u) for u in users]
            another(holder).fold("user", event_table(events), Stamp("e", 1, 0))
        calls.append(arguments)
        return execute(self, *arguments)

    monkeypatch.setattr(OptimisticTransaction, "execute", interrupted)
    holder.fold("user", event_table([event(f"1{u}", u) for u in users]), Stamp("e", 0, 1))
    assert [likes(holder, user) for user in users] == [3] * 6


@pytest.mark.parametrize("way", ["rebuild", "flushed", "torn down"])
def test_a_lease_holder_writes_no_row_under_another_rebuild_id(holder, event_table, way):
    holder.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    old, client = holder.stored_rows("user", ["u"]), holder.connection.client
    if way == "rebuild":
        another(holder).begin_rebuild(RebuildCutoff())
    elif way == "flushed":
        client.flushdb()
    else:
        another(holder).tear_down()
    with pytest.raises(RebuildIdChanged):
        holder.fold("user", event_table([event(1)]), Stamp("e", 0, 1))
    assert holder.stored_rows("user", ["u"]) == (old if way == "rebuild" else [None])


def test_evicted_metadata_is_detected_by_the_second_batch(holder, event_table):
    """The rows of the first batch still carry the lost rebuild id."""
    holder.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    holder.connection.client.unlink(metadata_key(holder.project))
    holder.fold("user", event_table([event(1)]), Stamp("e", 0, 1))
    with pytest.raises(RebuildIdChanged):
        holder.fold("user", event_table([event(2)]), Stamp("e", 0, 2))


def test_tearing_down_a_project_leaves_no_key_of_it(holder, event_table):
    for entity in ("user", "video"):
        each = event(0) | {"video_id": "v"}
        holder.fold(entity, event_table([each]), Stamp("e", 0, 0))
    assert holder.connection.client.dbsize() == 5
    holder.tear_down()
    assert holder.connection.client.dbsize() == 0


@pytest.mark.parametrize("project", ["p", "p:user_tiles", "owner of user_tiles:p", ""])
def test_a_lease_key_collides_with_no_project_s_metadata(project):
    mine = lease_key("p", "user_tiles")
    assert mine != metadata_key(project)
    assert mine != lease_key(project, "user_tiles") or project == "p"
