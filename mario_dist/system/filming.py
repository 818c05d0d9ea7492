"""The best evaluation's best episode as a clip in the run's videos/, while the run trains."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from mario_dist import config as configuration
from mario_dist.checkpoint import load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.evaluation import best_played, read_protocol
from mario_dist.learner import network_arrays
from mario_dist.nets import set_weights
from mario_dist.system.build import make_network
from mario_dist.types import U8, part

_PREFIX = "best-step-"
_TEMPORARY = ".writing-"
BEST = "best.mp4"


def clip_wanted(config: RunConfig) -> bool:
    return config.evaluation.clip and config.env.kind == "mario"


def film_best(checkpoint: Path, keep: int, note: Callable[[str], None]) -> float:
    """Film the best episode of the evaluation that a run's new best checkpoint holds.

    The clip is videos/best-<checkpoint>.mp4 beside the run's checkpoints, and best.mp4 a copy of it; of
    older clips ``keep - 1`` stay. One line to ``note`` says what came of it. Returns the seconds it took.
    """
    started = time.monotonic()
    videos = checkpoint.parents[1] / "videos"
    try:
        ended = _film(checkpoint, videos, keep)
    except Exception as error:
        # A clip is for people to look at: no full disk, codec or unlike machine may end a training for it.
        note(f"no clip of the best episode: {' '.join(str(error).split()) or type(error).__name__}")
        return time.monotonic() - started
    seconds = time.monotonic() - started
    note(f"best episode filmed: {clip_path(videos, checkpoint)} ({ended}; {seconds:.1f} s)")
    return seconds


def clip_path(videos: Path, checkpoint: Path) -> Path:
    """The clip of a checkpoint step-<agent steps>."""
    return videos / f"best-{checkpoint.name}.mp4"


def prune_clips(videos: Path, newest: Path, keep: int) -> None:
    """Remove all clips but ``newest`` and the ``keep - 1`` before it, and what a crash left half-written.

    Those of more agent steps are of a branch that the run left when it was resumed.
    """
    clips = sorted(videos.glob(f"{_PREFIX}*.mp4"), reverse=True)
    older = [path for path in clips if path.name < newest.name]
    for path in [path for path in clips if path.name > newest.name] + older[keep - 1 :]:
        path.unlink()
    for path in videos.glob(f"{_TEMPORARY}*"):
        path.unlink()


def _film(checkpoint: Path, videos: Path, keep: int) -> str:
    """How the filmed episode ended."""
    # Here, as PyAV is no part of training: whatever keeps it from loading keeps the clip only.
    from mario_dist.report.film import film_episode
    from mario_dist.report.video import VideoWriter

    state = load_checkpoint(checkpoint)
    config = configuration.parse(state.meta["config"])
    network = make_network(config)
    set_weights(network, network_arrays(part(state.arrays, "learner.")))
    report = state.meta["evaluation"]
    wanted = best_played(report["per_level"])
    label = f"{state.meta['run_id']} at {state.meta['counters']['agent_steps']:,} steps"
    videos.mkdir(exist_ok=True)
    clip = clip_path(videos, checkpoint)
    temporary = videos / f"{_TEMPORARY}{clip.name}"
    try:
        with VideoWriter(temporary, fps=60, scale=1) as video:

            def show(picture: U8) -> bool:
                video.add(picture)
                return True

            film_episode(network, config.env, read_protocol(report["protocol"]), wanted, label, show)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.rename(clip)
    shutil.copyfile(clip, videos / f"{_TEMPORARY}{BEST}")
    os.replace(videos / f"{_TEMPORARY}{BEST}", videos / BEST)
    prune_clips(videos, clip, keep)
    return f"{wanted.level}: {wanted.end} at x {wanted.x_pos}"
