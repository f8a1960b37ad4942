"""Compiles every kernel: `python -m deploy.compile`, once at installation.

Knows the folders of compiled code and the caches beside it. Does not know what a kernel does: a
module compiles its own when it is imported (`streams.kernels.compile.compile_now`).

numba compiles a cached function again when its own file changes, not when a file changes from
which it takes functions or constants. So the caches of all modules that take anything from a
changed file are removed first; the others stay. A module is stamped with the digest of its
sources.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("streams/kernels", "features/kernels")
_IMPORT = re.compile(r"^from ((?:streams|features)\.kernels\.\w+) import", re.MULTILINE)


def main() -> None:
    stale = [path for path in kernels(ROOT) if not is_current(path, ROOT)]
    for path in stale:
        remove_cache(path)
    for number, path in enumerate(stale, start=1):
        started = time.perf_counter()
        print(f"compiling {number}/{len(stale)} {_module(path, ROOT)}", end=" ", file=sys.stderr)
        sys.stderr.flush()
        import_module(_module(path, ROOT))
        print(f"{time.perf_counter() - started:.1f} s", file=sys.stderr)
        stamp(path, ROOT)


def kernels(root: Path) -> list[Path]:
    """The files of compiled code, each behind those that it imports."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).glob("[a-z]*.py"))]
    return sorted(paths, key=lambda path: len(sources(path, root)))


def sources(path: Path, root: Path) -> list[Path]:
    """The kernel's file and those of all kernels that it imports, directly or not."""
    found, left = set[Path](), [path]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            modules = _IMPORT.findall(path.read_text())
            left += [root.joinpath(*module.split(".")).with_suffix(".py") for module in modules]
    return sorted(found)


def is_current(path: Path, root: Path) -> bool:
    stamped = _stamp_file(path)
    return stamped.exists() and stamped.read_text() == _digest(path, root)


def stamp(path: Path, root: Path) -> None:
    _stamp_file(path).parent.mkdir(exist_ok=True)
    _stamp_file(path).write_text(_digest(path, root))


def remove_cache(path: Path) -> None:
    for cached in path.parent.glob(f"__pycache__/{path.stem}.*.nb[ic]"):
        cached.unlink()


def _stamp_file(path: Path) -> Path:
    """Beside the caches, so that both are removed together."""
    return path.parent / "__pycache__" / f"{path.stem}.compiled"


def _digest(path: Path, root: Path) -> str:
    digest = hashlib.sha256()
    for source in sources(path, root):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


if __name__ == "__main__":
    main()
