"""A run's figures as Ray's application metrics, which each node exports to Prometheus.

cluster/README.md says what to watch in them, and cluster/grafana has a dashboard of them.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

GAUGES = {
    "agent_steps_per_s": "Agent steps a second over all lanes.",
    "rollout_actors": "Rollout actors that are there.",
    "policy_lag": "Versions of the weights by which the oldest unroll of a batch was behind.",
    "queue_depth": "Unrolls that waited for the learner.",
    "replay_size": "Transitions in the replay.",
    "replay_ratio": "Samples that the learner took per transition inserted.",
    "actors_wait_s": "Seconds of the last iteration in which actors were held back.",
    "learner_waits_s": "Seconds of the last iteration in which the learner had nothing to learn from.",
    "version": "Version of the weights.",
    "x_pos_mean": "Mean of the furthest x-positions of the last 100 episodes.",
    "clear_rate": "Share of the last 100 episodes that reached the flag.",
    "return_mean": "Mean return of the last 100 episodes.",
}
"""What goes up and down."""

COUNTERS = {
    "agent_steps": "Agent steps.",
    "episodes": "Episodes that ended.",
    "actor_restarts": "Rollout actors that died.",
    "lost_unrolls": "Unrolls that went with their node before the learner had them.",
    "late_unrolls": "Unrolls that were too old by their turn.",
    "crowded_out_unrolls": "Unrolls that were pushed out of a full queue.",
    "dropped_steps": "Agent steps that nobody learned from.",
    "replay_lost": "Transitions that went with a replay shard.",
    "replay_shard_restarts": "Replay shards that died.",
}
"""What only grows; Prometheus sees each as a total since this process began."""


class RayMetricsSink:
    """A ``Sink``. ``mario_NAME`` with the run's id as a tag; Ray adds ``ray_`` to it."""

    def __init__(self, run_id: str, agent_steps: int, episodes: int) -> None:
        """agent_steps, episodes: that a resumed run begins with."""
        self._tags = {"run_id": run_id}
        self._gauges = {name: Gauge(f"mario_{name}", text, ("run_id",)) for name, text in GAUGES.items()}
        self._counters = {
            name: Counter(f"mario_{name}", text, ("run_id",)) for name, text in COUNTERS.items()
        }
        self._last: dict[str, float] = {"agent_steps": agent_steps, "episodes": episodes}

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None:
        values = {**values, "agent_steps": agent_steps}
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name], self._tags)
        for name, counter in self._counters.items():
            last = self._last.get(name, 0.0)
            if values.get(name, 0.0) > last:
                counter.inc(values[name] - last, self._tags)
                self._last[name] = values[name]
