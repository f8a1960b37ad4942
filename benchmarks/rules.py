"""What standing rules cost a feed.

Claims and bars, set before any measurement, on 10,000 items of eight brands and users with 20
engagements, in process on one thread, with a fake in the place of the ranker's network:

- **20 rules of all kinds add at most 10 % to a feed's CPU.** The same requests are answered with and
  without the rules, one after the other in alternating blocks; CPU is that of the process.
- **The 20 rules' conditions over all 10,000 items as candidates take at most 10 % of the CPU of a
  feed**: the stricter reading, without the stages around them.
- Reported beside these: a request's own filter, the first answer after a change of one item, and
  checking and compiling the whole set.

The feed's CPU leaves out the network and HTTP, so the shares are upper ends.
`--quick`: fewer requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.report import Report
from features.memory_store import MemoryFeatureStore
from serving.fakes import FakeModelClient
from serving.pipeline.query import Query
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache
from serving.surfaces import StageDependencies, Surfaces
from serving.surfaces.feed import FeedRequest
from streams.bus.contract import Stamp
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.events import KIND_CODE, CatalogueItem, ItemAdded, ItemChanged
from streams.contract.schema import EVENT_SCHEMA

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

ITEMS, RULES, BAR = 10_000, 20, 0.10
USERS, HISTORY = 40, 20
BLOCK = 20  # feeds with or without rules before the other form has its turn
DAY_MS = 86_400_000
_GENRES = ("Drama", "Comedy", "Thriller", "Sci-Fi", "Film-Noir", "Romance", "War", "Western")


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    blocks = 4 if options.quick else 30
    report = Report("rules", {"items": ITEMS, "rules": RULES, "feeds": blocks * BLOCK})
    surfaces = _surfaces(time.time_ns() // 1_000_000)
    try:
        stated = {"rules": _rules()}
        compile_ms = _cpu_ms(lambda: surfaces.deps.rules.check(stated))
        plain_ms, ruled_ms = _alternating(surfaces, stated, blocks)
        filtered_ms = _feed_ms(surfaces, BLOCK, filter="item.price < 40.0 && item.brand != 'b3'")
        all_ms = _conditions_ms(surfaces, stated, 20 if options.quick else 200)
        changed_ms = _after_change_ms(surfaces, 5 if options.quick else 40)
    finally:
        surfaces.close()
    for name, value in (
        ("feed without rules", plain_ms),
        (f"feed with {RULES} rules", ruled_ms),
        ("feed with a filter of its own", filtered_ms),
        (f"{RULES} rules' conditions on {ITEMS:,} candidates", all_ms),
        ("reading one changed item into columns and masks", changed_ms),
        (f"checking and compiling {RULES} rules, once", compile_ms),
    ):
        report.add(
            **{"what": name, "CPU ms": round(value, 3), "of a feed": f"{value / plain_ms:.1%}"}
        )
    added = (ruled_ms - plain_ms) / plain_ms
    report.check("CPU that 20 rules add to a feed", round(added, 4), f"<= {BAR}", added <= BAR)
    whole = all_ms / plain_ms
    report.check("20 rules on 10,000 items, of a feed", round(whole, 4), f"<= {BAR}", whole <= BAR)
    return report


def _item(number: int, now_ms: int, price_cents: int | None = None) -> CatalogueItem:
    return CatalogueItem(
        item_id=f"v{number}",
        title=f"Item {number}",
        kind=("video", "product", "article")[number % 3],
        categories=(_GENRES[number % 8], _GENRES[number // 8 % 8]),
        author_id=f"a{number % 300}",
        brand=f"b{number % 8}" if number % 5 else None,
        group_id=f"g{number // 3}",
        price_cents=price_cents or 100 + number % 9_000,
        currency="EUR",
        locale=("de-DE", "en-GB")[number % 2],
        created_ms=now_ms - (number % 400) * DAY_MS,
    )


def _surfaces(now_ms: int) -> Surfaces:
    catalogue = Catalogue()
    for number in range(ITEMS):
        item = _item(number, now_ms)
        catalogue.apply(ItemAdded(event_id=f"e{number}", event_time_ms=now_ms, item=item))
    live, store = LiveCatalogue(catalogue), MemoryFeatureStore()
    store.fold("user", _histories(now_ms), Stamp("topic", 0, 0))
    clock = WallClock()
    popularity = PopularityCache(store, live, clock)
    popularity.refresh()
    return Surfaces(StageDependencies(store, FakeModelClient(), live, popularity, clock))


def _histories(now_ms: int) -> pa.Table:
    """`HISTORY` likes of each user, so that sources by taste answer too."""
    rng = np.random.default_rng(1)
    rows = [
        {
            "event_id": f"e{user}-{step}",
            "user_id": f"u{user}",
            "kind": KIND_CODE["like"],
            "video_id": f"v{rng.integers(ITEMS)}",
            "event_time_ms": now_ms - 60_000 * step,
            "ingested_at_ms": now_ms,
            "surface": "feed",
            "origin": "live",
            "late": False,
            "duplicate": False,
            "source_partition": 0,
            "source_offset": user * HISTORY + step,
        }
        for user in range(USERS)
        for step in range(HISTORY)
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def _rules() -> list[dict[str, Any]]:
    """Twenty: six filters, six boosts, two pins, two exclusions, two groups, two shares."""
    excluded = (
        "item.brand == 'b7' && item.price > 80.0",
        "item.kind == 'article' && now - item.created > duration('8760h')",
        "'War' in item.categories && context.device == 'tv'",
        "item.brand in ['b90', 'b91', 'b92']",
        "has(context.locale) && item.locale != context.locale",
        "item.id.matches('^v99[0-9]$')",
    )
    promoted = (
        "item.price < 10.0",
        "'Comedy' in item.categories",
        "now - item.created < duration('72h')",
        "item.kind == 'product' && item.brand.startsWith('b')",
        "item.categories.exists(c, c == 'Western' || c == 'Sci-Fi')",
        "item.author == 'a7' || item.author == 'a8'",
    )
    named: list[dict[str, Any]] = [
        *({"kind": "filter", "exclude": text} for text in excluded),
        *({"kind": "boost", "when": text, "strength": 0.3} for text in promoted),
        {"kind": "pin", "slot": 2, "item": "v17"},
        {"kind": "pin", "slot": 5, "when": "item.brand == 'b1' && item.price < 20.0"},
        {"kind": "exclude_own"},
        {"kind": "exclude_seen", "times": 3},
        {"kind": "group"},
        {"kind": "group", "by": "item.brand", "at_most": 4},
        {"kind": "share", "when": "item.kind == 'product'", "minimum": 0.2},
        {"kind": "share", "when": "item.kind == 'video'", "maximum": 0.6},
    ]
    assert len(named) == RULES
    return [{"name": f"rule-{number}", **rule} for number, rule in enumerate(named)]


def _alternating(surfaces: Surfaces, stated: dict[str, Any], blocks: int) -> tuple[float, float]:
    """CPU ms of a feed without and with the rules: the medians of the blocks' means."""
    book = surfaces.deps.rules
    found: dict[bool, list[float]] = {False: [], True: []}
    for block in range(2 * (blocks + 1)):
        with_rules = bool(block % 2)
        book.replace(stated if with_rules else {})
        value = _feed_ms(surfaces, BLOCK, first=block // 2 * BLOCK)
        if block >= 2:  # the first pair fills caches
            found[with_rules].append(value)
    return float(np.median(found[False])), float(np.median(found[True]))


def _feed_ms(surfaces: Surfaces, count: int, first: int = 0, **fields: Any) -> float:
    requests = [
        FeedRequest(user_id=f"u{n % USERS}", k=10, seed=n, **fields)
        for n in range(first, first + count)
    ]

    def answer() -> None:
        for request in requests:
            assert surfaces.answer(request).items

    return _cpu_ms(answer) / count


def _conditions_ms(surfaces: Surfaces, stated: dict[str, Any], count: int) -> float:
    """CPU ms of every condition of the set on all items, once."""
    surfaces.deps.rules.replace(stated)
    reader = surfaces.deps.rule_reader
    rows = surfaces.deps.catalogue.index().rows

    def evaluate() -> None:
        query = _query(surfaces)
        acting, frame = reader.acting(query), reader.frame_of(query, rows)
        for each in acting.filters:
            each.removed(frame)
        for boost in acting.boosts:
            boost.condition.holds(frame)
        for _, condition in (*acting.pins, *acting.shares):
            if condition is not None:
                condition.holds(frame)

    evaluate()
    return _repeated_ms(evaluate, count)


def _repeated_ms(work: Callable[[], object], count: int) -> float:
    def repeat() -> None:
        for _ in range(count):
            work()

    return _cpu_ms(repeat) / count


def _after_change_ms(surfaces: Surfaces, count: int) -> float:
    """CPU ms of the first look at the columns after a change of one item."""
    reader, live = surfaces.deps.rule_reader, surfaces.deps.catalogue
    rows, total = live.index().rows, 0.0
    now_ms = time.time_ns() // 1_000_000
    for number in range(count):
        item = _item(number, now_ms, price_cents=77_700 + number)
        live.apply(ItemChanged(event_id=f"c{number}", event_time_ms=now_ms + number, item=item))
        live.index()
        total += _cpu_ms(lambda: reader.frame_of(_query(surfaces), rows))
    return total / count


def _query(surfaces: Surfaces) -> Query:
    return surfaces.query(FeedRequest(user_id="u1", k=10, seed=1))


def _cpu_ms(work: Callable[[], object]) -> float:
    started = time.process_time_ns()
    work()
    return (time.process_time_ns() - started) / 1e6
