"""Laws of writing under a watch: what was touched in between is not written over."""

from __future__ import annotations

import uuid

import pytest
import redis

from features.online.connection import Connection
from features.online.feast_keys import facts_key, owner_key
from features.online.optimistic_transaction import Watch, packed
from features.online.rebuild_cutoff import Cut
from features.online.redis_store import FeastFeatureStore
from features.store import GenerationChanged
from streams.bus.contract import Stamp

NOW, DB = 1_700_000_000_000, 7
BREAKERS = {
    "another's token": lambda client, key, _: client.set(key, b"another's"),
    "the same token again": lambda client, key, _: client.set(key, b"token"),
    "deleted": lambda client, key, _: client.unlink(key),
    "expired": lambda client, key, _: client.pexpire(key, 1),
    "flushed": lambda client, *_: client.flushdb(),
    "flushed and laid again": lambda client, key, _: client.flushdb() and client.set(key, b"token"),
    "closed": lambda client, _, watch: kill(client, watch),
}


def kill(client, watch):
    """Closes the watch's connection, as a server does that restarts."""
    host, port = watch._own._connection._sock.getsockname()
    client.client_kill_filter(addr=f"{host}:{port}")


def event(number, user="u", at=NOW):
    return {"kind": "like", "event_time_ms": at, "event_id": f"{number}", "user_id": user}


def likes(store, user="u"):
    return int(store.read("user", [user], NOW).columns["like_count_all"][0])


@pytest.fixture
def watched(valkey):
    """A watch that stands, in a database of its own, and a second connection to it."""
    connection = Connection(valkey, DB, 1.0)
    connection.client.flushdb()
    connection.client.hset("facts", "life", "1")
    watch = Watch(connection, b"claim", (b"facts", b"life"))
    assert watch.begin(b"token", b"1")
    yield watch, connection.client
    connection.client.flushdb()


def test_an_untouched_watch_writes_again_and_again(watched):
    watch, client = watched
    for turn in range(3):
        commands = packed(b"HSET", b"row", b"f", b"%d" % turn) + packed(
            b"HINCRBY", b"n", b"f", b"1"
        )
        assert watch.write(2, commands)
    assert (client.hget("row", "f"), client.hget("n", "f")) == (b"2", b"3")


@pytest.mark.parametrize("way", BREAKERS)
def test_a_watch_that_broke_writes_nothing_until_it_is_begun_again(watched, way):
    watch, client = watched
    BREAKERS[way](client, "claim", watch)
    for _ in range(2):
        assert not watch.write(1, packed(b"HSET", b"row", b"f", b"1"))
        assert not client.exists("row")
    client.hset("facts", "life", "1")
    assert watch.begin(b"new", b"1")
    assert watch.write(1, packed(b"HSET", b"row", b"f", b"2"))
    assert client.hget("row", "f") == b"2"


def test_a_watch_under_another_fact_does_not_stand(watched):
    watch, client = watched
    client.hset("facts", "life", "2")  # whoever changes it must touch the key, or this once
    watch.write(1, packed(b"HSET", b"row", b"f", b"1"))
    assert not watch.write(1, packed(b"HSET", b"row", b"f", b"2"))
    assert client.hget("row", "f") == b"1"
    assert not watch.begin(b"new", b"1")


@pytest.mark.parametrize("command", [(b"HSET", b"text", b"f", b"1"), (b"HSET", b"row")])
def test_an_error_among_the_commands_is_raised_and_ends_the_watch(watched, command):
    """Both those that the server refuses to queue and those that fail when executed."""
    watch, client = watched
    client.set("text", "no hash")
    with pytest.raises(redis.exceptions.ResponseError):
        watch.write(1, packed(*command))
    assert not watch.write(1, packed(b"HSET", b"row", b"f", b"1"))
    assert not client.exists("row")


@pytest.fixture
def owner(valkey):
    """A store whose next fold of user u is an owner's, in a database of its own."""
    store = FeastFeatureStore(valkey, DB, f"t{uuid.uuid4().hex[:12]}", cached_rows=100)
    store.connection.client.flushdb()
    yield store
    store.connection.client.flushdb()


def another(store):
    return FeastFeatureStore(store.connection.address, DB, store.project)


def test_an_owner_compares_nothing(owner, event_table, monkeypatch):
    owner.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    monkeypatch.setattr(owner._swap_script, "many", None)
    for offset in range(1, 4):
        owner.fold(
            "user", event_table([event(offset), event(offset, "new")]), Stamp("e", 0, offset)
        )
    assert likes(owner) == 4


@pytest.mark.parametrize("written", [False, True])
def test_an_owner_whose_connection_was_closed_loses_nothing(owner, event_table, written):
    """Whether or not another wrote meanwhile."""
    owner.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    kill(owner.connection.client, owner._claims._watches["user"])
    if written:
        another(owner).fold("user", event_table([event(1)]), Stamp("e", 1, 0))
    for offset in range(1, 4):
        owner.fold("user", event_table([event(f"own {offset}")]), Stamp("e", 0, offset))
    assert likes(owner) == 4 + written


def test_an_owner_whose_write_was_done_and_never_answered_counts_once(
    owner, event_table, monkeypatch
):
    owner.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    exchange = Watch._exchange

    def unanswered(self, *given):
        exchange(self, *given)
        return False

    monkeypatch.setattr(Watch, "_exchange", unanswered)
    owner.fold("user", event_table([event(1), event(2)]), Stamp("e", 0, 1))
    monkeypatch.undo()
    owner.fold("user", event_table([event(3)]), Stamp("e", 0, 2))
    assert likes(owner) == 4


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_claim_lost_amid_a_batch_loses_none_of_its_rows(owner, event_table, monkeypatch, when):
    monkeypatch.setattr("features.online.compare_and_set.SET_ROWS", 2)
    users = [f"u{i}" for i in range(6)]
    owner.fold("user", event_table([event(f"0{u}", u) for u in users]), Stamp("e", 0, 0))
    write, calls = Watch.write, []

    def interrupted(self, *given):
        if len(calls) == when:
            events = [event(f"other {u}", u) for u in users]
            another(owner).fold("user", event_table(events), Stamp("e", 1, 0))
        calls.append(given)
        return write(self, *given)

    monkeypatch.setattr(Watch, "write", interrupted)
    owner.fold("user", event_table([event(f"1{u}", u) for u in users]), Stamp("e", 0, 1))
    assert [likes(owner, user) for user in users] == [3] * 6


@pytest.mark.parametrize("way", ["begun", "flushed", "torn down"])
def test_an_owner_writes_no_row_into_another_life_of_the_store(owner, event_table, way):
    owner.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    old, client = owner.blobs("user", ["u"]), owner.connection.client
    if way == "begun":
        another(owner).begin_generation(Cut())
    elif way == "flushed":
        client.flushdb()
    else:
        another(owner).tear_down()
    with pytest.raises(GenerationChanged):
        owner.fold("user", event_table([event(1)]), Stamp("e", 0, 1))
    assert owner.blobs("user", ["u"]) == (old if way == "begun" else [None])


def test_an_owner_notices_that_the_facts_alone_were_evicted(owner, event_table):
    """No later than with the second batch; the rows of the first are of the life that ended."""
    owner.fold("user", event_table([event(0)]), Stamp("e", 0, 0))
    owner.connection.client.unlink(facts_key(owner.project))
    owner.fold("user", event_table([event(1)]), Stamp("e", 0, 1))
    with pytest.raises(GenerationChanged):
        owner.fold("user", event_table([event(2)]), Stamp("e", 0, 2))


def test_nothing_of_a_project_that_is_torn_down_stays(owner, event_table):
    for entity in ("user", "video"):
        each = event(0) | {"video_id": "v"}
        owner.fold(entity, event_table([each]), Stamp("e", 0, 0))
    assert owner.connection.client.dbsize() == 5
    owner.tear_down()
    assert owner.connection.client.dbsize() == 0


@pytest.mark.parametrize("project", ["p", "p:user_tiles", "owner of user_tiles:p", ""])
def test_a_claim_lies_where_no_project_keeps_its_facts(project):
    mine = owner_key("p", "user_tiles")
    assert mine != facts_key(project)
    assert mine != owner_key(project, "user_tiles") or project == "p"
