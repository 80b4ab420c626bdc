"""Alerts, dashboards and their documentation agree. Against a running mesh: tests/e2e/test_observability.py."""

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules.yml"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
PAGE = ROOT / "docs" / "observability.md"
TRANSLATION = PAGE.with_name("observability.zh-CN.md")
ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES.read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing, alerts and dashboards are NOT checked: apt-get install prometheus")
    return found


def run(*command: str | Path) -> str:
    """What a command says; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(page: Path, heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is this one."""
    rows = []
    inside = False
    for line in page.read_text("utf-8").splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or row[0] == heading)
        if inside:
            rows.append(row)
    return rows[2:]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    return list(json.loads(dashboard.read_text("utf-8"))["panels"])


def queries(dashboard: Path) -> list[str]:
    """The queries of all panels, as Prometheus takes them."""
    given = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "5m").replace("$channel", ".*") for expr in given]


def metrics(query: str) -> set[str]:
    """The names of metrics in a query: what is neither a label nor a function, and of a kind that we know."""
    without_labels = re.sub(r"\{[^}]*\}|\b(?:by|without) \([^)]*\)", "", query)
    return set(re.findall(r"\b(?:\w+:)?(?:assistant|envoy|process)_\w+(?::\w+)?|\bup\b|\bALERTS\b", without_labels))


def test_the_rules_and_configurations_are_valid(promtool: str) -> None:
    """Prometheus takes them, and its linter has nothing to say."""
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)
    for configuration in ("local.yml", "prometheus.yml"):
        run(promtool, "check", "config", PROMETHEUS / configuration)


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should(promtool: str, file: Path) -> None:
    """Each alert is there just above its threshold, and silent just below."""
    run(promtool, "test", "rules", file)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_both_ways_and_explained(alert: str) -> None:
    """An alert has a test in which it is silent and one in which it fires, tells what to do, and is documented."""
    cases = "\n".join(file.read_text("utf-8") for file in TESTS)
    assert re.search(rf"{{ alertname: {alert}, eval_time: \w+, exp_alerts: \[\] }}", cases)
    assert re.search(rf"- alertname: {alert}\n +eval_time: \w+\n +exp_alerts:\n", cases)
    rule = RULES.read_text("utf-8").partition(f"- alert: {alert}\n")[2].partition("- alert:")[0]
    assert "summary:" in rule
    assert "action:" in rule
    severity = re.search(r"severity: (\w+)", rule)
    assert severity
    for page, heading in ((PAGE, "Alert"), (TRANSLATION, "告警")):
        assert [alert, severity[1]] in [row[:2] for row in cells(page, heading)], page.name


def test_no_alert_is_documented_that_is_none() -> None:
    """The tables list the alerts of the rules, in their order."""
    for page, heading in ((PAGE, "Alert"), (TRANSLATION, "告警")):
        assert [row[0] for row in cells(page, heading)] == ALERTS


def test_both_languages_list_the_same_metrics() -> None:
    """The tables of metrics differ in the words of their meaning alone."""
    assert [row[:4] for row in cells(PAGE, "Metric")] == [row[:4] for row in cells(TRANSLATION, "指标")]


def test_alerts_use_documented_metrics() -> None:
    """No rule names a metric of ours that no process has."""
    used = set().union(*(metrics(line) for line in RULES.read_text("utf-8").splitlines() if "#" not in line))
    assert {name for name in used if name.startswith("assistant_")} - exported() == set()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_read(dashboard: Path) -> None:
    """Its panels have names, units, explanations and places of their own, and no data source is fixed."""
    read = json.loads(dashboard.read_text("utf-8"))
    assert read["uid"] == f"ai-assistant-{dashboard.stem}"
    assert Counter(panel["id"] for panel in read["panels"]).most_common(1)[0][1] == 1
    taken: Counter[tuple[int, int]] = Counter()
    for panel in read["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            taken.update((x, y) for y in range(place["y"], place["y"] + place["h"]))
    assert taken.most_common(1)[0][1] == 1


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_the_queries_of_a_dashboard_are_valid(promtool: str, dashboard: Path, tmp_path: Path) -> None:
    """Prometheus can parse each of them."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries(dashboard))]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", file)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_show_documented_metrics(dashboard: Path) -> None:
    """No panel names a metric of ours that no process has."""
    recorded = set(re.findall(r"- record: (\S+)", RULES.read_text("utf-8")))
    for query in queries(dashboard):
        assert metrics(query), query
        used = {name for name in metrics(query) if not name.startswith(("envoy_", "process_"))}
        assert used - exported() - recorded - {"up", "ALERTS"} == set(), query


def exported() -> set[str]:
    """All names under which our metrics can be asked for, by the documentation."""
    names = set()
    for metric, kind, *_ in cells(PAGE, "Metric"):
        name = metric.strip("`")
        names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return names
