"""Keep a run as evidence: its config, its curve as CSV and PNG.

uv run python scripts/export_run.py RUN docs/runs/NAME
"""

import argparse
import csv
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mario_dist.store import RunStore, default_url

COLUMNS = ("x_pos_mean", "clear_rate", "agent_steps_per_s")
LOSS_COLUMNS = {
    "ppo": ("entropy", "approx_kl", "explained_variance"),
    "impala": ("entropy", "approx_kl", "explained_variance", "policy_lag", "rho_mean", "dropped_steps"),
    "apex": ("q_mean", "td_error", "replay_size", "replay_ratio", "sample_age", "priority_spread"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with RunStore(default_url()) as store:
        run = store.get_run(arguments.run)
        columns = (*COLUMNS, *LOSS_COLUMNS[run.algo])
        metrics = store.metrics(run.id, [*columns, "eval/x_pos_mean", "eval/clear_rate"])
        episodes = store.episodes(run.id)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(run.directory) / "config.yaml", arguments.out / "config.yaml")

    steps: dict[int, dict[str, float]] = {}
    for row in metrics:
        steps.setdefault(row["agent_steps"], {"wall_s": row["wall_s"]})[row["name"]] = row["value"]
    with (arguments.out / "curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("agent_steps", "wall_s", *columns))
        for at, values in steps.items():
            writer.writerow((at, *(f"{values.get(name, float('nan')):.6g}" for name in ("wall_s", *columns))))

    figure, axes = plt.subplots(figsize=(8, 4), dpi=120)
    axes.scatter(
        [e["agent_steps"] for e in episodes],
        [e["x_pos_max"] for e in episodes],
        s=2,
        alpha=0.25,
        label="episodes of all lanes",
    )
    means = [(at, v["x_pos_mean"]) for at, v in steps.items() if "x_pos_mean" in v]
    axes.plot(*zip(*means, strict=True), color="tab:red", label="mean of the last 100 episodes")
    evaluations = [(at, v["eval/x_pos_mean"]) for at, v in steps.items() if "eval/x_pos_mean" in v]
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "k^", label="evaluation, mean")
    axes.set(xlabel="agent steps", ylabel="furthest x-position, pixels", title=f"{run.name}, seed {run.seed}")
    axes.legend(loc="upper left")
    figure.tight_layout()
    figure.savefig(arguments.out / "curve.png")
    print(f"{arguments.out}: {len(episodes)} episodes, {len(steps)} points, {run.machine.get('cpu')}")


if __name__ == "__main__":
    main()
