"""After any injected fault, the platform holds exactly what was sent.

Real Kafka, Valkey and processes. Faults are timed by work done, never by the clock, so that they
interrupt work on any machine, and each law proves that they did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from chaos_cluster import Cluster
from chaos_rebalances import RebalanceInjector
from chaos_stream import Stream, halves
from chaos_verdict import Verdict

from streams.ingest.dead_letters import DeadLetter
from streams.ingest.replay import replay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
Draw = Callable[[int], Stream]

SHARE = 900  # events sent per fault
SPARE = 8  # further faults for a kill that interrupted nothing
ALL = ("batcher", "log-writer", "features")
IN_WORK = {"batcher": 6, "log-writer": SHARE // 2, "features": SHARE // 2}
MINUTE_MS = 60_000


def shares(sent: Stream, count: int) -> list[list[bytes | None]]:
    """The stream in `count` parts, each with the work for one fault."""
    size = len(sent.values) // count + 1
    return [sent.values[start : start + size] for start in range(0, len(sent.values), size)]


def start(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.start(name)


@pytest.mark.parametrize("replicas", [1, 2])
def test_killed_processes_lose_nothing_and_double_nothing(
    cluster: Cluster, draw: Draw, rounds: int
) -> None:
    """Each is killed until a kill is proved to have interrupted work: a batcher in an open
    transaction, the workers with processed batches that were not committed."""
    parts = 2 * rounds + SPARE
    sent = draw(SHARE * parts)
    start(cluster, *ALL)
    for number, share in enumerate(shares(sent, parts)):
        targets = [role for role in ALL if number < 2 * rounds or not cluster.hits[role]]
        cluster.act_during_work(share, cluster.kill, {role: IN_WORK[role] for role in targets})
    Verdict(cluster, sent).assert_reached()
    assert all(cluster.hits[role] for role in ALL), cluster.report()


def test_a_killed_broker_loses_nothing(cluster: Cluster, draw: Draw, rounds: int) -> None:
    """Killed until it was killed in an open transaction."""
    parts = rounds + SPARE
    sent = draw(SHARE * parts)
    start(cluster, *ALL)
    for number, share in enumerate(shares(sent, parts)):
        if number < rounds or not cluster.hits["broker"]:
            cluster.act_during_work(share, lambda _: cluster.break_broker(), {"batcher": 6})
        else:
            cluster.send(share)
    Verdict(cluster, sent).assert_reached()
    assert cluster.hits["broker"], cluster.report()


def test_an_emptied_store_is_rebuilt_while_events_arrive(
    cluster: Cluster, draw: Draw, rounds: int
) -> None:
    """Killed (it comes back empty) or flushed, while two processes fold into it."""
    sent = draw(SHARE * 2 * rounds)
    start(cluster, *ALL, "features-beside")
    for number, share in enumerate(shares(sent, 2 * rounds)):
        empty = cluster.flush_store if number % 2 else cluster.break_store
        rebuild_id = cluster.store.stored_rebuild_id()
        cluster.act_during_work(
            share, lambda _, empty=empty: empty(), {"features": IN_WORK["features"]}
        )
        assert cluster.hits["rows lost"], "the store was empty before"
        cluster.await_condition(
            lambda old=rebuild_id: cluster.store.stored_rebuild_id() not in (None, old),
            "a new rebuild id",
        )
    Verdict(cluster, sent).assert_reached()


def test_zombies_change_nothing(cluster: Cluster, draw: Draw, rounds: int) -> None:
    """Each process is frozen during its work, replaced, and resumed."""
    sent = draw(SHARE * 2 * rounds)
    start(cluster, *ALL)
    parts = shares(sent, 2 * rounds)
    for number in range(rounds):
        newest = {process.role: name for name, process in cluster.processes.items()}

        def replace(name: str, number: int = number) -> None:
            cluster.freeze(name)
            cluster.start(f"{cluster.processes[name].role}-{number}")

        cluster.act_during_work(
            parts[2 * number], replace, {newest[role]: IN_WORK[role] for role in ALL}
        )
        logged, folded = cluster.logged_rows(), cluster.folded_events()

        def progressed(logged: int = logged, folded: int = folded) -> bool:
            return cluster.logged_rows() > logged and cluster.folded_events() > folded

        # A frozen process may hold a file lock, which blocks its successor.
        cluster.wait_for(progressed, 4.0)
        batcher = cluster.detach(newest["batcher"])
        workers = [cluster.processes[newest[role]] for role in ("log-writer", "features")]
        for process in (batcher, *workers):
            cluster.thaw(process)
        cluster.send(parts[2 * number + 1])
        cluster.await_condition(
            lambda child=batcher.child: not child.alive(), "the end of the fenced batcher"
        )
        assert batcher.child.exit_code() != 0
    Verdict(cluster, sent).assert_reached()


@pytest.mark.parametrize("replicas", [2])
def test_many_rebalances_lose_no_event(cluster: Cluster, draw: Draw, rounds: int) -> None:
    """Two of each process, and members that join, are assigned partitions and leave."""
    sent = draw(SHARE * 2 * rounds)
    start(cluster, *ALL, "log-writer-beside", "features-beside")
    cluster.start("batcher-beside", instance="1")
    cluster.await_condition(lambda: cluster.store.stored_rebuild_id(), "a first rebuild id")
    rebalances = RebalanceInjector(cluster, joins=8 * rounds)
    cluster.background.append(rebalances.tick)
    for share in shares(sent, 4 * rounds):
        target = cluster.logged_rows() + len(share) // 2
        cluster.send(share)
        cluster.await_condition(
            lambda target=target: cluster.logged_rows() >= target, "half of it logged"
        )
    cluster.await_condition(rebalances.done, "the end of the rebalances")
    Verdict(cluster, sent).assert_reached()
    assert rebalances.assigned, "no joining member was assigned a partition"


def test_topics_recreated_with_other_partitions_lose_and_double_nothing(
    cluster: Cluster, draw: Draw
) -> None:
    """Topics are recreated, as after a broker's loss, when all is logged and the folds lag."""
    sent = draw(SHARE * 2)
    start(cluster, *ALL)
    before, after = halves(sent)
    cluster.act_during_work(before, cluster.remove, {"features": IN_WORK["features"]})
    cluster.await_condition(lambda: cluster.accounted_for() == cluster.sent, "the log complete")
    assert cluster.folded_events() < cluster.logged_rows(), "the folds did not lag"
    cluster.remove("batcher", gently=True)
    cluster.recreate_topics(3)
    start(cluster, "batcher", "features")
    cluster.send(after)
    Verdict(cluster, sent, lost_topics=True).assert_reached()


def test_events_refused_by_a_wrong_clock_can_be_resent(cluster: Cluster, draw: Draw) -> None:
    """Each batcher has another clock: for the slow one nearly all events are in the future."""
    sent = draw(SHARE * 2)
    start(cluster, "log-writer", "features")
    skews = [cluster.rng.randint(90, 300), -60]  # the second: set back by an hour
    cluster.rng.shuffle(skews)
    *early, last = shares(sent, 3)
    for skew, share in zip(skews, early, strict=True):
        cluster.note(f"a clock {skew} minutes ahead")
        cluster.start("batcher", CHAOS_SKEW_MS=str(skew * MINUTE_MS))
        goal = cluster.sent + cluster.rng.randint(len(share) // 4, len(share) // 2)
        cluster.send(share)
        cluster.await_condition(
            lambda goal=goal: cluster.committed_records() >= goal, "some admitted by this clock"
        )
        cluster.remove("batcher")
    start(cluster, "batcher")
    cluster.send(last)
    cluster.await_condition(
        lambda: cluster.accounted_for() == cluster.sent, "each event logged or refused"
    )
    refused = Counter(letter.record.value for letter in cluster.dead()) - Counter(sent.bad)
    assert refused, "the slow clock refused nothing"
    replay(cluster.bus, lambda letter: _value_if_in(refused, letter))
    Verdict(cluster, sent, refused=refused).assert_reached()


def _value_if_in(values: Counter[bytes | None], letter: DeadLetter) -> bytes | None:
    return letter.record.value if letter.record.value in values else None
