"""cluster/grafana: the dashboard shows what a run tells Prometheus."""

import json
import re
from pathlib import Path

from mario_dist.system.ray_metrics import COUNTERS, GAUGES

ROOT = Path(__file__).parents[3]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "cluster" / "grafana" / "mario-dist.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert asked
    known = {f"ray_mario_{name}" for name in GAUGES} | {f"ray_mario_{name}_total" for name in COUNTERS}
    for expression in asked:
        names = set(re.findall(r"ray_mario_\w+", expression))
        assert names <= known, f"{expression} asks for {names - known}"
    missing = known - {name for expression in asked for name in re.findall(r"ray_mario_\w+", expression)}
    assert not missing, "every metric is on the dashboard"
