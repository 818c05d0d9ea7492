"""The commands as a person types them: real processes, real files, and what bad input gets."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from support.commands import Result

REPO = Path(__file__).parents[2]


def mario_dist(*arguments: str, cwd: Path = REPO, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mario_dist.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=240,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A finished smoke run: its environment, and its id as RUN."""
    runs = tmp_path_factory.mktemp("smoke") / "runs"
    result = mario_dist("train", "configs/smoke.yaml", "--json", MARIO_DIST_RUNS=str(runs))
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["outcome"] == "finished"
    assert "\x1b" not in result.stderr, "plain lines where there is no terminal"
    return {"MARIO_DIST_RUNS": str(runs), "RUN": document["run_id"]}


def test_play_writes_every_emulator_frame_and_they_differ(smoke: dict[str, str], tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    result = mario_dist("play", smoke["RUN"], "--out", str(clip), **smoke)
    assert result.returncode == 0, result.stderr
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 60
    steps = int(result.stdout.split(" after ")[1].split()[0])
    assert len(frames) == steps * 4
    changes = [np.abs(a.astype(int) - b).max() > 8 for a, b in pairwise(frames)]
    assert sum(changes) > len(changes) / 2


def test_runs_list_and_show(
    smoke: dict[str, str], here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_RUNS", smoke["MARIO_DIST_RUNS"])
    listed = json.loads(here("runs", "list", "--json").stdout)
    assert [(run["id"], run["status"], run["agent_steps"]) for run in listed] == [
        (smoke["RUN"], "finished", 1024)
    ]
    shown = json.loads(here("runs", "show", "latest", "--json").stdout)
    assert shown["checkpoints"][-1]["kind"] == "final"
    assert shown["config"]["name"] == "smoke"
    for command in (("runs", "list"), ("runs", "show", smoke["RUN"][:20])):
        result = here(*command)
        assert result.returncode == 0
        assert smoke["RUN"] in result.stdout


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(
    smoke: dict[str, str], here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_RUNS", smoke["MARIO_DIST_RUNS"])
    checkpoints = Path(smoke["MARIO_DIST_RUNS"]) / smoke["RUN"] / "checkpoints"
    older, newest = sorted(checkpoints.glob("step-*"))
    arrays = newest / "arrays.safetensors"
    content = arrays.read_bytes()
    arrays.write_bytes(content[: len(content) // 2])
    try:
        result = here("train", "--resume", smoke["RUN"], "total_steps=2048")
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert f"{newest} is damaged" in line
        assert f"mario-dist train --resume {older}" in line
    finally:
        arrays.write_bytes(content)


def test_a_checkpoint_of_another_network_is_refused(
    smoke: dict[str, str], here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_RUNS", smoke["MARIO_DIST_RUNS"])
    result = here("train", "--resume", smoke["RUN"], "network.hidden=99", "total_steps=2048")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"the checkpoint of {smoke['RUN']} at 1,024 steps does not fit this configuration" in line
    assert "these weights are of another network" in line


def test_a_finished_run_is_not_run_again(
    smoke: dict[str, str], here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_RUNS", smoke["MARIO_DIST_RUNS"])
    result = here("train", "--resume", "latest")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "has done 1,024 of 1,024 agent steps; give a larger total_steps" in line


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("train", "algo.gama=1"), 1, "unknown key algo.gama; did you mean gamma?"),
        (("train", "algo.gamma=high"), 1, "algo.gamma: input should be a valid number"),
        (("train", "nothing.yaml"), 1, "there is no configuration file nothing.yaml"),
        (("train", "env.levels=[9-9]"), 1, "there is no level '9-9'; levels are 1-1 to 8-4"),
        (("train", "env.frame_size=[8,8]"), 1, "frames of 8x8 are too small for this torso"),
        (("train", "learner.device=cuda"), 1, "this machine has no cuda device"),
        (("train", "--resume", "nobody"), 1, "there is no run"),
        (("train", "--bogus"), 2, "No such option: --bogus"),
        (("eval", "nobody"), 1, "there is no run"),
        (("eval", "nobody", "--episodes", "0"), 2, "--episodes"),
        (("eval", "baseline:left"), 1, "baselines are baseline:random and baseline:right"),
        (("eval", "baseline:right", "--protocol", "jitter"), 1, "protocols are jitter-30, "),
        (("eval", "baseline:right", "--levels", "9-1"), 1, "there is no level '9-1'"),
        (("runs", "compare", "baseline:right"), 2, "two targets or more"),
        (("runs", "export", "nobody"), 1, "there is no run"),
        (("watch", "nobody"), 1, "there is no run"),
        (("play", "nobody", "--out", "x.mp4"), 1, "there is no run"),
        (("runs", "show", "nobody"), 1, "there is no run"),
        (("runs", "list"), 1, "there is no run yet"),
        (("bench", "train", "--vs", "nobody"), 2, "there is no peer 'nobody'"),
        (("walk",), 2, "No such command 'walk'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_clear_line_and_no_half_made_run(
    arguments: tuple[str, ...], code: int, expected: str, own_runs: Path, here: Callable[..., Result]
) -> None:
    if expected == "this machine has no cuda device":
        import torch

        if torch.cuda.is_available():
            arguments, expected = ("train", "learner.device=mps"), "this machine has no mps device"
    result = here(*arguments)
    assert result.returncode == code
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert result.stdout == ""
    assert not [path for path in own_runs.glob("*") if path.is_dir()]


def test_a_database_that_does_not_answer_is_one_line(
    own_runs: Path, here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_DB", "postgresql://mario:secret@127.0.0.1:1/mario")
    result = here("train", "configs/smoke.yaml")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "127.0.0.1" in line
    assert "secret" not in line
    assert not [path for path in own_runs.glob("*") if path.is_dir()]


def test_an_unwritable_run_directory_is_one_line(
    tmp_path: Path, here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    monkeypatch.setenv("MARIO_DIST_RUNS", str(blocker / "runs"))
    result = here("train", "configs/smoke.yaml")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert str(blocker) in line


def test_debug_shows_the_traceback(here: Callable[..., Result]) -> None:
    result = here("train", "nothing.yaml", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


COMMANDS = ["", "train", "eval", "play", "watch", "report", "doctor"]
COMMANDS += ["runs list", "runs show", "runs export", "runs compare"]
COMMANDS += [
    "bench emulator",
    "bench parity",
    "bench rollout",
    "bench replay",
    "bench learner",
    "bench eval",
    "bench flag",
    "bench train",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, here: Callable[..., Result]) -> None:
    result = here(*command.split(), "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout
    assert not command or "Example:" in result.stdout
