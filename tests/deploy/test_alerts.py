"""Alert rules fire for a sick stack and not for a healthy one; rules and dashboard name metrics
that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import streams.metrics
from serving.monitoring.metrics import RENAMED, Metrics

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "compose"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((FOLDER / "grafana" / "dashboards" / "tidemill.json").read_text())["panels"]
CASES = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in PANELS for target in panel["targets"]
]
# What Prometheus and Triton export by themselves.
FOREIGN = {"up", "ALERTS", "nv_inference_request_success"}
# Of PromQL, and labels behind `by` or `on`.
NO_METRICS = re.compile(r"\b(by|on|ignoring|without|group_left)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]")
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="no promtool: apt-get install prometheus"
)


def promtool(*arguments: str, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def metrics_of(expression: str) -> set[str]:
    """The names in it that are no function, operator or label."""
    bare = NO_METRICS.sub(" ", expression)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", bare)) - {"by", "on", "and", "or", "unless"}


def known_metrics() -> set[str]:
    """The names of every sample that the code can export."""
    assert streams.metrics.CONSUMER_LAG is not None
    registries = (REGISTRY, Metrics().registry)
    return {name for registry in registries for name in registry._names_to_collectors}


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    done = promtool("check", "rules", "alerts.yml")
    assert done.returncode == 0, done.stderr
    done = promtool("check", "config", "--syntax-only", "prometheus.yml")
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_every_alert_fires_for_its_sick_stack_and_for_no_healthy_one() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stderr


@needs_promtool
@pytest.mark.parametrize("expression", ["vector(0) > 1", "vector(1)"])
def test_a_rule_that_never_or_always_fires_fails_its_test(tmp_path: Path, expression: str) -> None:
    rules = [rule | {"expr": expression} for rule in RULES]
    groups = {"groups": [{"name": "tidemill", "rules": rules}]}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(groups))
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    done = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert done.returncode == 1
    found = set(re.findall(r'alertname=\\?"(\w+)', done.stdout + done.stderr))
    assert found >= {rule["alert"] for rule in RULES}


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    titles = [case["name"] for case in CASES]
    for rule in RULES:
        own = [title for title in titles if title.startswith(f"{rule['alert']} ")]
        assert any(" fires" in title for title in own), rule["alert"]
        assert any(" does not fire" in title for title in own), rule["alert"]


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["for"]
        assert set(rule["annotations"]) == {"summary", "remedy"}
        assert all(rule["annotations"].values())
    page = (ROOT / "docs" / "operate.md").read_text()
    assert [rule["alert"] for rule in RULES if f"| `{rule['alert']}` |" not in page] == []


def test_names_are_found_in_expressions() -> None:
    expression = 'sum by (le, x) (rate(a_total{b="c d"}[5m])) > on (x) 0.01 * e_bytes or vector(0)'
    assert metrics_of(expression) == {"a_total", "e_bytes"}
    assert metrics_of("time() - max(no_such_metric)") == {"no_such_metric"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_names_metrics_that_exist(expression: str) -> None:
    named = metrics_of(expression)
    assert named
    assert named - FOREIGN - known_metrics() == set()
    assert not named & set(RENAMED), "an old name, which the next release removes"


@pytest.mark.parametrize(
    "metric",
    [name for rule in RULES for name in sorted(metrics_of(rule["expr"]) - FOREIGN)],
)
def test_the_dashboard_shows_what_alerts_are_about(metric: str) -> None:
    assert any(metric in metrics_of(t["expr"]) for panel in PANELS for t in panel["targets"])


def test_panels_do_not_overlap_and_have_units() -> None:
    places = {json.dumps(panel["gridPos"], sort_keys=True) for panel in PANELS}
    assert len(places) == len(PANELS) == len({panel["id"] for panel in PANELS})
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def test_prometheus_loads_the_rules_where_compose_mounts_them() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounted = [each.split(":")[1] for each in compose["services"]["prometheus"]["volumes"]]
    assert config["rule_files"] == ["alerts.yml"]
    assert "/etc/prometheus/alerts.yml" in mounted
