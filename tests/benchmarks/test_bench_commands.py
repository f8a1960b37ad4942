"""Every benchmark can be started: its signature, its help, and the processes that it starts."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from benchmarks.__main__ import HERE, names, parse
from benchmarks.events.cluster import USER_PATH, WHOLE_PATH, Cluster, running_cluster
from deploy.services import kafka
from deploy.services.process import ServiceFailed, wait_until

WITHIN_S = 300.0


def _module(name: str) -> ast.Module:
    file = HERE / f"{name}.py"
    return ast.parse((file if file.exists() else HERE / name / "__init__.py").read_text())


@pytest.mark.parametrize("name", names())
def test_a_benchmark_states_its_claims_and_has_run(name: str) -> None:
    tree = _module(name)
    assert ast.get_docstring(tree)
    (run,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    assert (ast.unparse(run.args), ast.unparse(run.returns or ast.Constant(None))) == (
        "options: Options",
        "Report",
    )
    assert parse([name, "--quick"]).name == name


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "example: python -m benchmarks" in shown
    assert [name for name in names() if name not in shown] == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := kafka.available():
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("cluster"), partitions=1) as running:
        yield running


@pytest.mark.servers
@pytest.mark.parametrize("path", [USER_PATH, WHOLE_PATH], ids=["user path", "whole path"])
def test_events_and_exactness_start_their_processes(
    cluster: Cluster, path: tuple[str, ...]
) -> None:
    """All of a path at once: they share the time of their imports."""
    for name in path:
        cluster.start_soon(name)
    try:
        for name in path:
            assert wait_until(lambda name=name: _ready(cluster, name), WITHIN_S), name  # type: ignore[misc]
    finally:
        for name in path:
            cluster.stop(name)


def _ready(cluster: Cluster, name: str) -> bool:
    child = cluster.children[name]
    if not child.alive():
        raise ServiceFailed(f"{name} ended:\n{child.tail()}")
    return cluster._process(name).ready()
