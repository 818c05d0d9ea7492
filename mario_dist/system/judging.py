"""Judge a policy by a protocol, here or on Ray, and keep what came of it with the checkpoint."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from mario_dist import machine
from mario_dist.config import RunConfig
from mario_dist.evaluation import EvalProtocol, evaluate, settled
from mario_dist.nets import Network
from mario_dist.registry import record_evaluation
from mario_dist.store import EvaluationRow, RunStore
from mario_dist.types import EvalReport


@dataclass(frozen=True, slots=True)
class Policy:
    """A network that can play, and where it comes from.

    source: the checkpoint's path, or a baseline's name. run_id, agent_steps: of the checkpoint; None else.
    """

    network: Network
    config: RunConfig
    source: str
    run_id: str | None = None
    agent_steps: int | None = None


def judge(policy: Policy, protocol: EvalProtocol, *, address: str | None = None) -> EvalReport:
    """Play the protocol: on all cores here, or on the Ray that is at ``address``.

    Raises ``UserError`` where Ray cannot be reached.
    """
    if address is None:
        torch.set_num_threads(1)  # each block has its own thread
        return evaluate(policy.network, policy.config.env, protocol, machine.cores())
    from mario_dist.system.ray_judging import evaluate_on_ray

    return evaluate_on_ray(policy.config, policy.network, protocol, address)


def remember(
    policy: Policy, report: EvalReport, store: RunStore, tracking_uri: str | None
) -> dict[str, object] | None:
    """Keep a report with the checkpoint that it judged, in the run store and, with a URI, in MLflow.

    Returns the report as a document; None where the policy is of no run of this store. MLflow's failures
    are warnings: the report stands.
    """
    document = dataclasses.asdict(report)
    run = store.find_run(policy.run_id)
    if run is None or policy.agent_steps is None:
        return None
    row = EvaluationRow(
        agent_steps=policy.agent_steps, path=policy.source, protocol=_key(report.protocol), report=document
    )
    store.add_evaluation(run.id, row)
    if tracking_uri is not None and run.mlflow_run_id is not None:
        record_evaluation(tracking_uri, run.mlflow_run_id, policy.agent_steps, document)
    return document


def remembered(policy: Policy, protocol: EvalProtocol, store: RunStore) -> dict[str, Any] | None:
    """What this protocol said of this checkpoint before, if it has been asked."""
    if policy.run_id is None:
        return None
    key = _key(settled(protocol, policy.network).document())
    rows = [
        row for row in store.evaluations(policy.run_id) if (row.path, row.protocol) == (policy.source, key)
    ]
    return dict(rows[-1].report) if rows else None


def _key(protocol: Any) -> str:
    return json.dumps(dict(protocol), sort_keys=True)
