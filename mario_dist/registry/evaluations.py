"""Evaluations of finished runs in MLflow."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from mario_dist.registry.connection import explain, open_client, redact, resolve_uri

_log = logging.getLogger(__name__)


def evaluation_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow's charts show of a report."""
    values = {
        "clear_rate": report["clear_rate"],
        "clear_rate_low": report["clear_rate_ci"][0],
        "clear_rate_high": report["clear_rate_ci"][1],
        "x_pos_mean": report["x_pos"]["mean"],
        "x_pos_iqm": report["x_pos"]["iqm"],
    }
    return {f"eval/{report['protocol']['name']}/{name}": float(value) for name, value in values.items()}


def record_evaluation(uri: str, run_id: str, agent_steps: int, report: Mapping[str, Any]) -> bool:
    """Log a report (``EvalReport`` as a mapping) to the run: its rates as metrics, the whole as an artifact.

    False, with a warning, where MLflow does not take it.
    """
    protocol = report["protocol"]
    try:
        from mlflow.entities import Metric

        client, _ = open_client(resolve_uri(uri), "mario-dist")
        now_ms = time.time_ns() // 1_000_000
        metrics = [
            Metric(name, value, now_ms, agent_steps) for name, value in evaluation_metrics(report).items()
        ]
        client.log_batch(run_id, metrics=metrics)
        # Levels, episodes and whatever else the protocol says are in the digest.
        digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]
        name = f"step-{agent_steps}-{protocol['name']}-seed-{protocol['seed']}-{digest}.json"
        client.log_dict(run_id, dict(report), f"evaluations/{name}")
    except Exception as error:  # MLflow and its artifact stores each raise their own; the report stands
        _log.warning("MLflow at %s did not take the evaluation: %s", redact(uri), explain(error, uri))
        return False
    return True
