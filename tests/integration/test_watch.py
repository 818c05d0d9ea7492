"""`mario-dist watch` beside a training that really runs in another process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mario_dist.config import RunConfig, dump
from mario_dist.report.live import LiveView
from mario_dist.report.watch import look, progress_of, watch
from mario_dist.store import MetricRow, RunRow, RunStore

MakeConfig = Callable[..., RunConfig]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mario_dist.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_run_is_followed_to_its_end_from_another_process(
    probe_config: MakeConfig, tmp_path: Path, own_runs: Path
) -> None:
    config = probe_config(
        total_steps=10**8, evaluation={"every_steps": 640, "episodes": 2}, checkpoint={"every_steps": 10**7}
    )
    (tmp_path / "c.yaml").write_text(dump(config))
    training = subprocess.Popen(
        [sys.executable, "-m", "mario_dist.cli.main", "train", str(tmp_path / "c.yaml")],
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"sqlite:///{own_runs}/mario.db"
    try:
        assert training.stderr is not None
        run_id = training.stderr.readline().split()[0].removeprefix("run=")
        deadline = time.monotonic() + 60
        with RunStore(url) as store:
            while (progress := look(store, store.get_run(run_id), config)) is None or not progress.evaluation:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            shown = json.loads(cli("watch", "latest", "--json").stdout)
            assert shown["id"] == run_id
            assert shown["status"] == "running"
            assert shown["agent_steps"] >= progress.agent_steps
            assert shown["agent_steps_per_s"] > 0
            assert shown["version"] == shown["agent_steps"] // 64
            assert shown["eta_s"] > 0
            assert {"entropy", "grad_norm"} <= set(shown["metrics"])

            os.kill(training.pid, signal.SIGTERM)
            screen = StringIO()
            console = Console(file=screen, force_terminal=True, width=100, height=40)
            ended = watch(store, store.get_run(run_id), view=LiveView(run_id, config, console, plain=False))
            assert ended.status == "stopped"
            steps = store.get_run(run_id).agent_steps
        assert training.wait(timeout=60) == 0
        assert f"{steps:,} of 100,000,000 steps" in screen.getvalue(), "its last state was shown"
        done = cli("watch", run_id[:-1])
        assert done.stderr.splitlines()[-1] == f"stopped: {run_id} at {steps:,} agent steps"
        assert f"steps={steps} " in done.stderr
    finally:
        training.kill()
        training.communicate()


def test_ctrl_c_ends_the_watching_and_not_the_run(probe_config: MakeConfig, own_runs: Path) -> None:
    config = probe_config()
    row = RunRow(
        id="r1",
        name="r",
        seed=0,
        total_steps=512,
        level="1-1",
        algo="ppo",
        config=_tree(config),
        directory="r",
    )
    with RunStore(f"sqlite:///{own_runs}/mario.db") as store:
        store.create_run(row)
        nothing = cli("watch", "r1", "--json")
        assert (nothing.returncode, nothing.stderr) == (1, "error: r1 has not reported yet\n")
        store.add_metrics("r1", 64, 2.0, {"agent_steps_per_s": 32.0})
        watching = subprocess.Popen(
            [sys.executable, "-m", "mario_dist.cli.main", "watch", "r1"],
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job, as these tests may be, is deaf to Ctrl-C and makes its children so.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        assert watching.stderr is not None
        assert watching.stderr.readline().startswith("run=r1 ")
        assert watching.stderr.readline().startswith("steps=64 ")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0
        watching.stderr.close()
        assert store.get_run("r1").status == "running"


def _tree(config: RunConfig) -> dict[str, object]:
    from mario_dist.config import to_tree

    return to_tree(config)


def test_a_look_is_made_of_the_newest_report_the_best_evaluation_and_the_last_alarm(
    probe_config: MakeConfig,
) -> None:
    config = probe_config()
    run = RunRow(
        id="r1", name="r", seed=0, total_steps=1000, level="1-1", algo="ppo", config={}, directory="r"
    )

    def row(steps: int, name: str, value: float) -> MetricRow:
        return {"agent_steps": steps, "wall_s": steps / 10, "name": name, "value": value}

    newest = {"agent_steps_per_s": 10.0, "clear_rate": 0.2, "x_pos_best": 99.0, "worker_x_s": 1.0, "lr": 0.1}
    told = [
        row(100, "eval/clear_rate", 0.5),
        row(100, "eval/x_pos_mean", 70.0),
        row(200, "eval/clear_rate", 0.1),
        row(200, "eval/x_pos_mean", 90.0),
        row(200, "alarm/clear_rate", 0.1),
    ]
    progress = progress_of(run, config, [row(250, name, value) for name, value in newest.items()], told)
    assert (progress.agent_steps, progress.wall_s, progress.eta_s) == (250, 25.0, pytest.approx(75.0))
    assert progress.evaluation == (0.5, 70.0)
    assert progress.alarm == "clear_rate 0.1 at 200 steps"
    assert progress.metrics == {"lr": 0.1}
    assert (progress.clear_rate, progress.x_pos_mean, progress.x_pos_best) == (0.2, None, 99)
    assert progress.env_frames_per_s == 10 * config.env.frame_skip
