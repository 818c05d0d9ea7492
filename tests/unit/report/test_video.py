"""Videos, decoded again by PyAV; windows, where there is an X server to show them on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from mario_dist.errors import UserError
from mario_dist.report import video
from mario_dist.report.video import VideoWriter, Window, has_display, video_codec
from mario_dist.types import U8

HEIGHT, WIDTH = 48, 64
TOLERANCE = 12.0  # mean absolute difference that lossy coding of a flat picture stays far below


def picture(i: int) -> U8:
    """A grey background whose brightness names the frame, with a white square in the top left corner."""
    frame = np.full((HEIGHT, WIDTH, 3), 20 + 10 * i, dtype=np.uint8)
    frame[:16, :16] = 255
    return frame


def decode(path: Path) -> list[U8]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_shows(decoded: list[U8], count: int, scale: int) -> None:
    assert len(decoded) == count
    for i, frame in enumerate(decoded):
        expected = picture(i).repeat(scale, axis=0).repeat(scale, axis=1).astype(float)
        assert frame.shape == expected.shape
        assert np.abs(frame - expected).mean() < TOLERANCE


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_every_frame_comes_back_as_it_was_fed(tmp_path: Path, scale: int) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=30, scale=scale) as writer:
        for i in range(20):
            writer.add(picture(i))
        assert writer.frame_count == 20
    decoded = decode(path)
    assert_shows(decoded, 20, scale)
    brightness = [frame[-8:, -8:].mean() for frame in decoded]
    steps = np.diff(brightness)
    assert (steps > 5).all(), "successive frames must differ as the fed ones do"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 30
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_frames_are_copied(tmp_path: Path) -> None:
    # An emulator's picture is one buffer that every step overwrites.
    buffer = picture(0)
    with VideoWriter(tmp_path / "clip.mp4", scale=1) as writer:
        for i in range(12):
            buffer[:] = picture(i)
            writer.add(buffer)
            buffer[:] = 0
    assert_shows(decode(tmp_path / "clip.mp4"), 12, 1)


def test_a_video_whose_block_raised_plays(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"

    def play() -> None:
        with VideoWriter(path, scale=1) as writer:
            for i in range(7):
                writer.add(picture(i))
            raise RuntimeError("the policy tripped")

    with pytest.raises(RuntimeError, match="the policy tripped"):
        play()
    assert_shows(decode(path), 7, 1)


def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, scale=1) as writer:
        writer.add(picture(5)[:47, :63])
    (frame,) = decode(path)
    assert frame.shape == (48, 64, 3)
    assert np.abs(frame[-1].astype(float) - frame[-2]).mean() < TOLERANCE


def test_the_second_best_codec_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_CODECS", {"mpeg4": video._CODECS["mpeg4"]})
    with VideoWriter(tmp_path / "clip.mp4", scale=2) as writer:
        for i in range(5):
            writer.add(picture(i))
    assert_shows(decode(tmp_path / "clip.mp4"), 5, 2)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_h264_is_first_where_it_is_there() -> None:
    assert video_codec() == "libx264" or "libx264" not in av.codecs_available


def test_no_codec_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_CODECS", {"no-such-codec": {}})
    with pytest.raises(UserError, match=r"no H\.264 or MPEG-4 encoder"):
        VideoWriter(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/clip.mp4", "No such file or directory"),
        ("folder.mp4", "Is a directory"),
        ("clip.xyz", "name it clip.mp4"),
        ("clip", "name it clip.mp4"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=message) as raised:
        VideoWriter(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"], "nothing may be left behind"


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys, numpy as np\n"
        "from mario_dist.errors import UserError\n"
        "from mario_dist.report.video import VideoWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "noise = np.random.default_rng(0)\n"
        "try:\n"
        "    with VideoWriter(sys.argv[1], scale=1) as writer:\n"
        "        for _ in range(300):\n"
        "            writer.add(noise.integers(0, 255, (120, 160, 3), dtype=np.uint8))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "clip.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"cannot write {tmp_path / 'clip.mp4'}: File too large\n"


def test_a_block_without_frames_leaves_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        pass
    assert writer.frame_count == 0
    assert not list(tmp_path.iterdir())


def test_a_frame_must_be_an_rgb_picture_of_the_videos_size(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", scale=1) as writer:
        writer.add(picture(0))
        with pytest.raises(ValueError, match="uint8"):
            writer.add(picture(0)[:, :, 0])
        with pytest.raises(ValueError, match="uint8"):
            writer.add(picture(0).astype(np.float32))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="frames are"):
            writer.add(picture(0)[:16, :16])
    with pytest.raises(ValueError, match="closed"):
        writer.add(picture(0))
    assert writer.frame_count == 1


def test_a_window_without_a_display_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for display in (None, ":54321"):  # none named, and one where no server answers
        monkeypatch.delenv("DISPLAY", raising=False)
        if display:
            monkeypatch.setenv("DISPLAY", display)
        if sys.platform == "linux":
            assert not has_display()
            with pytest.raises(UserError, match=r"no display: use --out clip\.mp4"):
                Window("title")


@pytest.fixture
def x_server() -> Iterator[str]:
    """The name of an X server without a screen, of our own."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    ours, theirs = os.pipe()
    command = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "640x600x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[theirs], stderr=subprocess.DEVNULL)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        name = f":{pipe.readline().strip()}"
    yield name
    server.terminate()
    server.wait()


@pytest.mark.parametrize("toolkit", ["_PygletScreen", "_CvScreen"])
def test_a_window_shows_frames_until_it_is_closed(x_server: str, toolkit: str) -> None:
    # In a process of its own: a toolkit connects to one display for good.
    program = (
        "import sys, numpy as np\n"
        "from mario_dist.report import video\n"
        "screen = getattr(video, sys.argv[1])\n"
        "video._open_screen = lambda title, scale: screen(title, scale)\n"
        "with video.Window('Mario', scale=2) as window:\n"
        "    shown = [window.show(np.full((240, 256, 3), i, np.uint8)) for i in range(15)]\n"
        "    shown += [window.show(np.full((262, 300, 3), i, np.uint8)) for i in range(15)]\n"
        "    window.close()\n"
        "    shown.append(window.show(np.zeros((240, 256, 3), np.uint8)))\n"
        "print(shown == [True] * 30 + [False])\n"
    )
    command = [sys.executable, "-c", program, toolkit]
    env = os.environ | {"DISPLAY": x_server}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout == "True\n", done.stderr
