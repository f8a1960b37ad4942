"""Whatever is done to it, the platform ends up holding exactly what was sent.

Real Kafka, Valkey and processes. The moments are counts of work done, never times, so that
they fall into the work on any machine, and each law proves that they did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from chaos_storm import Storm
from chaos_stream import Stream, halves
from chaos_verdict import Verdict
from chaos_world import World

from streams.ingest import dead_letters
from streams.ingest.dead_letters import DeadLetter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
Draw = Callable[[int], Stream]

SHARE = 900  # events sent before each blow
SPARE = 8  # further blows for a kill that did not hit
ALL = ("batcher", "facts", "features")
IN_WORK = {"batcher": 6, "facts": SHARE // 2, "features": SHARE // 2}
MINUTE_MS = 60_000


def shares(sent: Stream, count: int) -> list[list[bytes | None]]:
    """The stream in `count` parts, each of which is work for one blow."""
    size = len(sent.values) // count + 1
    return [sent.values[start : start + size] for start in range(0, len(sent.values), size)]


def keep(world: World, *names: str) -> None:
    for name in names:
        world.keep(name)


@pytest.mark.parametrize("doors", [1, 2])
def test_killed_processes_lose_nothing_and_double_nothing(
    world: World, draw: Draw, rounds: int
) -> None:
    """Each is killed until a kill is proved to have hit: the door with a transaction open, the
    workers with batches done that were not committed and come again."""
    parts = 2 * rounds + SPARE
    sent = draw(SHARE * parts)
    keep(world, *ALL)
    for number, share in enumerate(shares(sent, parts)):
        victims = [role for role in ALL if number < 2 * rounds or not world.hits[role]]
        world.each_in_its_work(share, world.kill, {role: IN_WORK[role] for role in victims})
    Verdict(world, sent).awaited()
    assert all(world.hits[role] for role in ALL), world.told()


def test_a_killed_broker_comes_back_with_what_it_had(world: World, draw: Draw, rounds: int) -> None:
    """Killed until it was killed with a transaction open."""
    parts = rounds + SPARE
    sent = draw(SHARE * parts)
    keep(world, *ALL)
    for number, share in enumerate(shares(sent, parts)):
        if number < rounds or not world.hits["broker"]:
            world.each_in_its_work(share, lambda _: world.break_broker(), {"batcher": 6})
        else:
            world.send(share)
    Verdict(world, sent).awaited()
    assert world.hits["broker"], world.told()


def test_an_emptied_store_is_noticed_and_filled_again_while_events_go_on(
    world: World, draw: Draw, rounds: int
) -> None:
    """Killed, so that it comes back empty, and flushed; two processes fold into it."""
    sent = draw(SHARE * 2 * rounds)
    keep(world, *ALL, "features-beside")
    for number, share in enumerate(shares(sent, 2 * rounds)):
        hurt = world.flush_store if number % 2 else world.break_store
        generation = world.store.stored_generation()
        world.each_in_its_work(
            share, lambda _, hurt=hurt: hurt(), {"features": IN_WORK["features"]}
        )
        assert world.hits["rows lost"], "the store was empty when it was emptied"
        world.until(
            lambda old=generation: world.store.stored_generation() not in (None, old),
            "a new generation",
        )
    Verdict(world, sent).awaited()


def test_zombies_change_nothing_when_they_come_back(world: World, draw: Draw, rounds: int) -> None:
    """Each process is stopped in its work, replaced, and goes on as if nothing had been."""
    sent = draw(SHARE * 2 * rounds)
    keep(world, *ALL)
    parts = shares(sent, 2 * rounds)
    for number in range(rounds):
        first = {life.role: name for name, life in world.lives.items()}  # the newest of each

        def replace(name: str, number: int = number) -> None:
            world.freeze(name)
            world.keep(f"{world.lives[name].role}-{number}")

        world.each_in_its_work(
            parts[2 * number], replace, {first[role]: IN_WORK[role] for role in ALL}
        )
        done = (world.logged(), world.folded())
        # A frozen process may hold a file's lock, and then its successor waits for it.
        world.wait(lambda done=done: world.logged() > done[0] and world.folded() > done[1], 4.0)
        door = world.retire(first["batcher"])
        for life in (door, world.lives[first["facts"]], world.lives[first["features"]]):
            world.thaw(life)
        world.send(parts[2 * number + 1])
        world.until(lambda door=door: not door.child.alive(), "the fenced door ended")
        assert door.child.exit_code() != 0
    Verdict(world, sent).awaited()


@pytest.mark.parametrize("doors", [2])
def test_a_storm_of_rebalances_moves_partitions_and_no_event(
    world: World, draw: Draw, rounds: int
) -> None:
    """Two of each process, and members that join, take partitions, do nothing and leave."""
    sent = draw(SHARE * 2 * rounds)
    keep(world, *ALL, "facts-beside", "features-beside")
    world.keep("batcher-beside", door="1")
    world.until(lambda: world.store.stored_generation(), "a first generation")
    storm = Storm(world, joins=8 * rounds)
    world.beside.append(storm.tick)
    for share in shares(sent, 4 * rounds):
        target = world.logged() + len(share) // 2
        world.send(share)
        world.until(lambda target=target: world.logged() >= target, "half of it logged")
    world.until(storm.over, "the storm over")
    Verdict(world, sent).awaited()
    assert storm.taken, "nobody was given a partition in the storm"


def test_a_new_epoch_with_other_partitions_counts_nothing_twice_and_forgets_nothing(
    world: World, draw: Draw
) -> None:
    """Topics made anew when all is logged and the folds lag behind: as after a broker's loss."""
    sent = draw(SHARE * 2)
    keep(world, *ALL)
    before, after = halves(sent)
    world.each_in_its_work(before, world.let_go, {"features": IN_WORK["features"]})
    world.until(lambda: world.judged() == world.sent, "the log whole")
    assert world.folded() < world.logged(), "the folds did not lag behind"
    world.let_go("batcher", gently=True)
    world.partitions_become(3)
    keep(world, "batcher", "features")
    world.send(after)
    Verdict(world, sent, lost_topics=True).awaited()


def test_a_wrong_clock_marks_and_refuses_by_its_time_and_what_it_refused_can_be_sent_again(
    world: World, draw: Draw
) -> None:
    """Each life of the door has another clock: for the slow one nearly all events lie ahead."""
    sent = draw(SHARE * 2)
    keep(world, "facts", "features")
    skews = [world.rng.randint(90, 300), -world.rng.randint(30, 90)]
    world.rng.shuffle(skews)
    *early, last = shares(sent, 3)
    for skew, share in zip(skews, early, strict=True):
        world.tell(f"a clock {skew} minutes ahead")
        world.keep("batcher", CHAOS_SKEW_MS=str(skew * MINUTE_MS))
        goal = world.sent + world.rng.randint(len(share) // 4, len(share) // 2)
        world.send(share)
        world.until(lambda goal=goal: world.taken() >= goal, "some judged by this clock")
        world.let_go("batcher")
    keep(world, "batcher")
    world.send(last)
    world.until(lambda: world.judged() == world.sent, "each event logged or refused")
    refused = Counter(letter.record.value for letter in world.dead()) - Counter(sent.bad)
    assert refused, "the slow clock refused nothing"
    dead_letters.replay(world.bus, lambda letter: _if_among(refused, letter))
    Verdict(world, sent, refused=refused).awaited()


def _if_among(values: Counter[bytes | None], letter: DeadLetter) -> bytes | None:
    return letter.record.value if letter.record.value in values else None
