"""Alert rules and dashboard: valid, tested by Prometheus' own tool, and about metrics that the gateway has."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.gateway.metrics import Metrics

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "infra" / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "infra" / "grafana" / "flywheel.json").read_text())
# What the gateway exports, with the labels. A histogram's samples have `_bucket`, `_sum` or `_count` behind its name.
EXPORTED = {
    "flywheel_requests_total": {"workload", "served_by", "outcome"},
    "flywheel_request_seconds": {"workload", "served_by"},
    "flywheel_first_token_seconds": {"workload", "served_by"},
    "flywheel_open_streams": set(),
    "flywheel_feedback_total": {"kind"},
    "flywheel_records_total": {"outcome"},
    "flywheel_records_waiting": set(),
    "flywheel_spool_bytes": set(),
    "flywheel_champion": {"workload", "version"},
    "flywheel_rollout": {"workload", "version", "step"},
    "flywheel_champion_failures_total": {"workload"},
    "flywheel_database_up": set(),
}
VALUES = {
    "served_by": {"teacher", "champion", "challenger"},
    "outcome": {"ok", "error", "cut_off", "refused", "stored", "spooled", "quarantined", "lost"},
}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def asked() -> list[str]:
    """Every expression of rules and dashboard."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [variable["definition"] for variable in DASHBOARD["templating"]["list"]]
    notes = [note["expr"] for note in DASHBOARD["annotations"]["list"]]
    return [*(rule["expr"] for rule in alerts()), *panels, *variables, *notes]


def promtool(*arguments: str, cwd: Path) -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("no promtool: `apt-get install prometheus`")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_dashboard_ask_only_for_what_the_gateway_exports() -> None:
    named = set()
    for expression in asked():
        for name, selector in re.findall(r"\b(flywheel_\w+)(\{[^}]*\})?", expression):
            metric = re.sub(r"_(bucket|sum|count)$", "", name)
            named.add(metric)
            assert metric in EXPORTED, f"{name} in {expression}"
            for label, given in re.findall(r'(\w+)(?:=~|!=|!~|=)"([^"]*)"', selector):
                assert label in EXPORTED[metric] | {"instance"}, f"{label} of {name} in {expression}"
                assert label not in VALUES or set(given.split("|")) <= VALUES[label], f"{given} in {expression}"
    assert named == set(EXPORTED), "each is looked at somewhere"


def test_the_gateway_exports_them() -> None:
    made = Metrics().registry.collect()
    assert {one.name + "_total" * (one.type == "counter") for one in made} == set(EXPORTED)


def test_every_alert_says_how_urgent_it_is_and_what_to_look_at() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def test_panels_have_a_title_a_text_a_place_of_their_own_and_the_datasource() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & places, panel["title"]
        places |= cells
        assert panel["title"] and panel["description"].endswith(".")
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"prometheus"}
    source = yaml.safe_load((ROOT / "infra" / "grafana" / "datasource.yaml").read_text())["datasources"][0]
    assert source["uid"] == "prometheus"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_takes_its_configuration() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", cwd=RULES.parent)


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    written = (Path(__file__).parent / "prometheus" / "alerts.yml").read_text()
    (tmp_path / "tests.yml").write_text(written.replace("RULES", str(RULES)))
    assert "SUCCESS" in promtool("test", "rules", "tests.yml", cwd=tmp_path)
    fired = {
        one["alertname"]
        for case in yaml.safe_load(written)["tests"]
        for one in case["alert_rule_test"]
        if one["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in alerts()}


def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    filled = [
        e.replace("$__rate_interval", "5m").replace("$workload", ".*") for e in asked() if "label_values" not in e
    ]
    rules = [{"record": f"r{number}", "expr": expression} for number, expression in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "rules.yml", cwd=tmp_path)
