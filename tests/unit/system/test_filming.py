"""What stays of a run's clips."""

from pathlib import Path

from mario_dist.system.filming import prune_clips


def names(videos: Path) -> list[str]:
    return sorted(path.name for path in videos.iterdir())


def make(videos: Path, *steps: int) -> None:
    for step in steps:
        (videos / f"best-step-{step:012d}.mp4").touch()


def test_the_newest_clips_and_best_mp4_stay(tmp_path: Path) -> None:
    make(tmp_path, 100, 200, 1000, 3000)
    for name in ("best.mp4", "mine.mp4", ".writing-best-step-000000000050.mp4"):
        (tmp_path / name).touch()
    prune_clips(tmp_path, tmp_path / "best-step-000000003000.mp4", keep=2)
    assert names(tmp_path) == [
        "best-step-000000001000.mp4",
        "best-step-000000003000.mp4",
        "best.mp4",
        "mine.mp4",
    ]


def test_clips_of_a_branch_that_was_left_do_not_push_out_the_runs_own(tmp_path: Path) -> None:
    make(tmp_path, 100, 200, 5000, 6000)
    prune_clips(tmp_path, tmp_path / "best-step-000000000200.mp4", keep=3)
    assert names(tmp_path) == ["best-step-000000000100.mp4", "best-step-000000000200.mp4"]
