"""Clips as people get them: from the command line, and from a training on the real ROM."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.training import go

from mario_dist.checkpoint import best_checkpoint, list_checkpoints, load_checkpoint
from mario_dist.cli.config import read_config
from mario_dist.cli.main import main
from mario_dist.config import RunConfig, parse
from mario_dist.evaluation import best_played
from mario_dist.system.run import RunResult
from mario_dist.types import U8

TREE: dict[str, Any] = {
    "name": "filmed",
    "total_steps": 384,
    "env": {"frame_size": [42, 42], "max_steps": 60},
    "network": {"hidden": 32},
    "algo": {"epochs": 2, "minibatch": 32},
    "rollout": {"lanes": 4, "unroll_length": 24, "threads": 2},
    "learner": {"device": "cpu", "threads": 1},
    "system": {"driver": "local"},
    "checkpoint": {"every_steps": 384},
    "evaluation": {"every_steps": 192, "episodes": 2, "seed": 1},  # whose episodes are short
}
# Of the default configuration, which baselines play.
SKIP = read_config([]).env.frame_skip


def config(**evaluation: Any) -> RunConfig:
    return parse(TREE | {"evaluation": TREE["evaluation"] | evaluation})


def decode(path: Path) -> list[U8]:
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 60
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The command line ``mario-dist play``: the lines that it prints."""

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["mario-dist", "play", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert exit.value.code == 0, captured.err
        return captured.out.splitlines()

    return run


def test_a_grid_with_overlay_through_the_command_line(tmp_path: Path, play: Callable[..., list[str]]) -> None:
    clip = tmp_path / "x.mp4"
    first, *episodes = play(
        "baseline:random", "--grid", "2x2", "--overlay", "--seed", "8", "--out", str(clip)
    )
    assert len(episodes) == 4
    frames = decode(clip)
    assert first == f"{clip}: {len(frames)} frames"
    steps = [int(line.split(" after ")[1].split()[0]) for line in episodes]
    assert len(frames) == max(steps) * SKIP + 1
    # Two cells of 240 + 22 rows by 256 columns, enlarged twice, 2 pixels between them, and the footer.
    assert frames[0].shape == (2 * 2 * 262 + 2 + 24, 2 * 2 * 256 + 2, 3)
    assert frames[0][:480, :512].std() > 30, "the first picture shows the level"
    moves = [np.abs(a.astype(int) - b).max() > 8 for a, b in pairwise(frames[:160])]
    assert sum(moves) > len(moves) * 0.9, "one of four lanes always moves"


def test_the_best_of_several_episodes_through_the_command_line(
    tmp_path: Path, play: Callable[..., list[str]]
) -> None:
    clip = tmp_path / "x.mp4"
    first, episode = play("baseline:random", "--best-of", "2", "--seed", "1", "--out", str(clip))
    frames = decode(clip)
    assert first == f"{clip}: {len(frames)} frames"
    assert len(frames) == int(episode.split(" after ")[1].split()[0]) * SKIP
    assert frames[0].shape == (548, 512, 3)


def test_the_best_evaluations_best_episode_is_in_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = go(config(), tmp_path / "runs")
    videos = result.directory / "videos"
    best = best_checkpoint(result.directory / "checkpoints")
    assert best is not None
    clip = videos / f"best-{best.name}.mp4"
    names = {path.name for path in videos.iterdir()}
    assert {clip.name, "best.mp4"} <= names <= {"best.mp4", *_clips(result)}
    assert (videos / "best.mp4").read_bytes() == clip.read_bytes()

    played = best_played(load_checkpoint(best).meta["evaluation"]["per_level"])
    frames = decode(clip)
    assert len(frames) == played.agent_steps * 4, "the complete episode"
    assert frames[0].shape == (548, 512, 3)
    assert frames[0][:480].std() > 30, "the first picture shows the level"
    told = [line for line in capsys.readouterr().err.splitlines() if "best episode filmed" in line]
    assert len(told) == len(names) - 1
    assert f"{played.level}: {played.end} at x {played.x_pos}" in told[-1]


def _clips(result: RunResult) -> list[str]:
    return [f"best-{path.name}.mp4" for path in list_checkpoints(result.directory / "checkpoints")]


def test_a_clip_that_cannot_be_written_is_one_note_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mario_dist.system.run.new_run_id", lambda name: "run")
    (tmp_path / "runs" / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "videos").write_text("in the way")
    result = go(config(every_steps=384), tmp_path / "runs")
    assert (result.outcome, result.agent_steps) == ("finished", 384)
    notes = [line for line in capsys.readouterr().err.splitlines() if "no clip of the best episode" in line]
    assert len(notes) == 1
    assert "videos" in notes[0]
    assert (result.directory / "videos").read_text() == "in the way"


def test_no_clip_where_none_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = go(config(every_steps=384, clip=False), tmp_path / "runs")
    assert not (result.directory / "videos").exists()
    assert "best episode" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--grid", "4"), "--grid 4: write ROWSxCOLUMNS, such as 4x4"),
        (("--grid", "0x3"), "write ROWSxCOLUMNS"),
        (("--grid", "100x100"), "of 64 lanes at most"),
        (("--grid", "2x2", "--episodes", "3"), "shows 4 lanes: ask for as many --episodes, or more"),
        (("--grid", "2x2", "--best-of", "3"), "--best-of shows one episode"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_line(
    arguments: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = tmp_path / "x.mp4"
    monkeypatch.setattr(sys, "argv", ["mario-dist", "play", "baseline:right", *arguments, "--out", str(clip)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not clip.exists()


def test_training_does_not_wait_for_clips_that_the_end_makes_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time for clips is left after the first one: then the last best is filmed at the end alone."""
    monkeypatch.setattr("mario_dist.system.session._FILM_SHARE", 0.0)
    result = go(config(every_steps=96), tmp_path / "runs")
    said = capsys.readouterr().err
    best = best_checkpoint(result.directory / "checkpoints")
    assert best is not None
    clips = sorted(path.name for path in (result.directory / "videos").glob("best-*.mp4"))
    assert f"best-{best.name}.mp4" in clips
    assert len(clips) <= 2 < said.count("evaluation at")
