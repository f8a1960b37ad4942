"""The cost of caps on provenance and on authors, in a world whose true utility is known.

The headline ranking world (docs/worlds/ranking.md) with labels added here: 40 % of a
pool's candidates are generated, and 12 authors share the pool by Zipf's law. Slates are
ranked by the platform's weights and drawn by the served selector with its caps
(serving/stages), nearly greedy and without exploration, and evaluated by true utility.
Two forms: *no gap*, generated items are worth what is predicted; *gap*, they are worth a
quarter less to the user than predicted, which the ranker cannot observe.

Claims, set before any run: (1) no slate exceeds its cap; (2) without a gap utility
does not rise as a cap gets tighter (no step's paired interval lies above 0); (3) at an
equal share, the cap keeps more utility than a random cap, which removes the same number of
generated items regardless of score: paired interval over users above 0 at every share from
0.1 to 0.3, in both forms; (4) with the gap, some cap is better than none: paired interval
above 0 for the best cap of seed 0, evaluated on the other seeds. Five seeds, 150 users, two
pools each; nothing is trained. (The random cap first put its items at the top of the slate, a
weaker baseline; this was corrected after one quick run, before the full one.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from benchmarks.__main__ import Options
from benchmarks.report import Report
from benchmarks.worlds.ranking.config import RankingWorld
from benchmarks.worlds.ranking.pools import PoolEvaluator, PoolMaker, attention
from benchmarks.worlds.ranking.population import populate
from deploy.console import track
from models.training.evaluation import paired_bootstrap
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Scored
from serving.stages.caps import AuthorCap, Cap, ProvenanceCap
from serving.stages.selectors import PlackettLuce
from streams.contract.events import CatalogueItem

GENERATED, AUTHORS, GAP = 0.4, 12, 0.25
SHARES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
AT_MOST = (5, 3, 2, 1)
FORMS = {"no gap": 0.0, "gap": GAP}


@dataclass(frozen=True)
class Labelled:
    """One pool: candidates with labels, scores, and true values by form."""

    pool: Pool
    generated: np.ndarray  # bool [C]
    values: dict[str, np.ndarray]  # float64 [C] by form


@dataclass
class Curve:
    """By setting: utilities of users by form, and the slates' generated share and authors."""

    utility: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    share: dict[str, list[float]] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)  # of one author in a slate

    def values(self, form: str, setting: str) -> np.ndarray:
        return np.array(self.utility[form, setting])


def run(options: Options) -> Report:
    world = RankingWorld.load(options.world) if options.world else RankingWorld.named("headline")
    users, seeds = (40, 2) if options.quick else (150, options.seeds)
    config = {"users": users, "seeds": seeds, "generated": GENERATED, "gap": GAP}
    report = Report("blend", config | {"world": world.model_dump()})
    curves = [_curve(world, seed, users) for seed in track(range(seeds), "seeds", seeds)]
    whole = _merged(curves)
    _table(report, whole)
    _check_caps(report, whole)
    _check_curve(report, whole)
    _check_gap(report, curves)
    return report


def _curve(world: RankingWorld, seed: int, users: int) -> Curve:
    curve, attended = Curve(), attention(world).numpy().astype(np.float64)
    rng = np.random.default_rng(seed)
    k = world.size.slate
    for n, pools in enumerate(_pools(world, seed, users, rng)):
        query = Query("r", "feed", f"u{n}", k, 0, seed)
        for name, caps in _settings().items():
            slates = [_slate(caps, query, one.pool) for one in pools]
            _record(curve, name, pools, slates, attended)
        free = [_slate((), query, one.pool) for one in pools]
        for share in SHARES[2:-1]:
            slates = [
                _random_cap(one, share, slate, rng) for one, slate in zip(pools, free, strict=True)
            ]
            _record(curve, f"random, share {share:g}", pools, slates, attended)
    return curve


def _settings() -> dict[str, tuple[Cap, ...]]:
    none: dict[str, tuple[Cap, ...]] = {"no cap": ()}
    shares = {f"share {share:g}": (ProvenanceCap("aigc", share),) for share in SHARES}
    return none | shares | {f"author {n}": (AuthorCap(n),) for n in AT_MOST}


def _pools(
    world: RankingWorld, seed: int, users: int, rng: np.random.Generator
) -> list[list[Labelled]]:
    population, maker = populate(world, seed), PoolMaker.of(world)
    evaluator = PoolEvaluator.of(population, maker, torch.arange(users), 2, seed * 31 + 3)
    weights = torch.tensor(world.logging.weights)
    scores = torch.einsum("nrct,t->nrc", evaluator.served, weights).numpy()
    value = evaluator.value.numpy().astype(np.float64)
    return [
        [_labelled(scores[n, r], value[n, r], rng) for r in range(value.shape[1])]
        for n in range(users)
    ]


def _labelled(score: np.ndarray, value: np.ndarray, rng: np.random.Generator) -> Labelled:
    generated = rng.random(len(score)) < GENERATED
    zipf = 1 / np.arange(1, AUTHORS + 1)
    author = rng.choice(AUTHORS, len(score), p=zipf / zipf.sum())
    candidates = tuple(
        Candidate(f"v{n}", "pool", item=_item(n, int(author[n]), bool(generated[n])))
        for n in range(len(score))
    )
    columns = Scored(score.astype(np.float32), np.zeros((len(score), 0), np.float32))
    values = {form: value * np.where(generated, 1 - gap, 1.0) for form, gap in FORMS.items()}
    return Labelled(Pool.of(candidates, scored=columns), generated, values)


def _item(n: int, author: int, generated: bool) -> CatalogueItem:
    provenance = "aigc" if generated else "human"
    return CatalogueItem(
        video_id=f"v{n}", title="", genres=(), author_id=f"a{author}", provenance=provenance
    )


def _slate(caps: tuple[Cap, ...], query: Query, pool: Pool) -> list[int]:
    """Indices of the slate's items in their pool."""
    rule = PlackettLuce(temperature=1e-3, diversity=0.0, explore=0.0, caps=caps)
    return [int(one.item_id[1:]) for one in rule.select(query, pool)]


def _random_cap(
    one: Labelled, share: float, slate: list[int], rng: np.random.Generator
) -> list[int]:
    """The uncapped slate, with random generated items above the share replaced by the best other
    candidates; in order of score."""
    assert one.pool.scored is not None
    score = one.pool.scored.score
    inside = [n for n in slate if one.generated[n]]
    surplus = max(0, len(inside) - int(share * len(slate) + 1e-9))
    out = set(rng.choice(inside, surplus, replace=False).tolist()) if surplus else set()
    others = [n for n in np.argsort(-score) if not one.generated[n] and n not in slate]
    kept = [n for n in slate if n not in out] + others[:surplus]
    return sorted(kept, key=lambda n: -score[n])


def _record(
    curve: Curve,
    name: str,
    pools: Sequence[Labelled],
    slates: Sequence[Sequence[int]],
    attended: np.ndarray,
) -> None:
    for form in FORMS:
        utilities = [
            _slate_utility(one.values[form][slate], attended)
            for one, slate in zip(pools, slates, strict=True)
        ]
        curve.utility.setdefault((form, name), []).append(float(np.mean(utilities)))
    held = [
        one.generated[slate].sum() / len(attended) for one, slate in zip(pools, slates, strict=True)
    ]
    curve.share.setdefault(name, []).extend(map(float, held))
    authors = (
        Counter(one.pool.candidates[n].item.author_id for n in slate)  # type: ignore[union-attr]
        for one, slate in zip(pools, slates, strict=True)
    )
    most = max(max(count.values()) for count in authors if count)
    curve.most[name] = max(most, curve.most.get(name, 0))


def _slate_utility(values: np.ndarray, attended: np.ndarray) -> float:
    """Attention-weighted mean; empty slots of a slate shortened by a cap count as 0."""
    return float((values * attended[: len(values)]).sum() / attended.sum())


def _merged(curves: Sequence[Curve]) -> Curve:
    whole = Curve()
    for curve in curves:
        for key, values in curve.utility.items():
            whole.utility.setdefault(key, []).extend(values)
        for name, shares in curve.share.items():
            whole.share.setdefault(name, []).extend(shares)
        for name, most in curve.most.items():
            whole.most[name] = max(most, whole.most.get(name, 0))
    return whole


def _relative(curve: Curve, form: str, setting: str, over: str) -> tuple[float, float, float]:
    base = curve.values(form, over)
    found = paired_bootstrap(curve.values(form, setting) - base, rounds=1000)
    mean, low, high = (100 * value / float(base.mean()) for value in found)
    return mean, low, high


def _table(report: Report, curve: Curve) -> None:
    for setting in curve.share:
        row: dict[str, object] = {
            "setting": setting,
            "generated_share": float(np.mean(curve.share[setting])),
            "most_of_one_author": curve.most[setting],
        }
        for form in FORMS:
            mean, low, high = _relative(curve, form, setting, "no cap")
            row |= {f"{form} %": mean, f"{form} low": low, f"{form} high": high}
        report.add(**row)


def _check_caps(report: Report, curve: Curve) -> None:
    over = max(max(curve.share[f"share {share:g}"]) - share for share in SHARES)
    report.check("largest share over its cap", over, "<= 0", over <= 1e-9)
    authors = max(curve.most[f"author {n}"] - n for n in AT_MOST)
    report.check("most of one author over its cap", authors, "<= 0", authors <= 0)


def _check_curve(report: Report, curve: Curve) -> None:
    order = ["no cap", *(f"share {share:g}" for share in SHARES)]
    for wider, tighter in pairwise(order):
        mean, low, _ = _relative(curve, "no gap", tighter, wider)
        report.check(f"{tighter} after {wider}, %", mean, "does not rise", low <= 0)
    for form in FORMS:
        for share in SHARES[2:-1]:
            name = f"share {share:g}"
            _, low, _ = _relative(curve, form, name, f"random, {name}")
            report.check(f"{form}, {name}: over a random cap, lower bound %", low, "> 0", low > 0)


def _check_gap(report: Report, curves: Sequence[Curve]) -> None:
    names = [f"share {share:g}" for share in SHARES]
    best = max(names, key=lambda name: float(curves[0].values("gap", name).mean()))
    _, low, _ = _relative(_merged(curves[1:]), "gap", best, "no cap")
    report.check(f"gap: {best} over no cap, lower bound %", low, "> 0", low > 0)
