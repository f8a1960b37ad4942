"""`python -m benchmarks NAME [--quick]`: runs benchmarks/NAME.py.

Knows the names and options. A benchmark module has `run(options: Options) -> Report` and a
docstring with its claims and bars, set before any measurement. Does not know what is measured.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import RESULTS

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "report", "worlds"}


@dataclass(frozen=True)
class Options:
    """quick: a few minutes, for CI, not saved. world: a world's TOML file. cases: of `fuzz`.

    declared: of `exactness`, with signals and attributes that an owner declared. baseline: of
    `rest`, the folder of another checkout with an environment of its own.
    """

    quick: bool
    world: Path | None
    seeds: int
    cases: int | None = None
    declared: bool = False
    baseline: Path | None = None


def names() -> list[str]:
    found = {p.stem for p in HERE.glob("*.py")} | {
        p.parent.name for p in HERE.glob("*/__init__.py")
    }
    return sorted(found - NOT_BENCHMARKS)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Runs one benchmark, prints its table and bars, writes results/NAME.json.",
        epilog="example: python -m benchmarks events --quick",
    )
    parser.add_argument("name", choices=names(), help="which benchmark")
    parser.add_argument("--quick", action="store_true", help="a small run for CI; writes nothing")
    parser.add_argument(
        "--world", type=Path, help="a world's TOML file, for benchmarks on simulated worlds"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="number of seeds, for benchmarks that train"
    )
    parser.add_argument("--cases", type=int, help="number of cases, for fuzz (default 100000)")
    parser.add_argument(
        "--declared",
        action="store_true",
        help="exactness with two declared signals and three declared attributes",
    )
    parser.add_argument(
        "--baseline", type=Path, help="of rest: another checkout, with its own .venv, to compare"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    module = importlib.import_module(f"benchmarks.{options.name}")
    report = module.run(Options(**{k: v for k, v in vars(options).items() if k != "name"}))
    report.show()
    if not options.quick:
        print(f"wrote {report.save(RESULTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
