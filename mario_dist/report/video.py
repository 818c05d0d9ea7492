"""RGB frames to where people watch them: a video file, or a window where there is a display."""

import contextlib
import ctypes
import ctypes.util
import importlib
import os
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

# Before PyAV: both bundle xcb libraries, and OpenCV's window hangs where PyAV's were loaded first.
import cv2  # isort: skip
import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from mario_dist.errors import UserError
from mario_dist.report.overlay import enlarged
from mario_dist.types import U8

_CODECS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libopenh264": {},
    "h264_videotoolbox": {},
    "mpeg4": {"b": "4M"},
}
"""Encoders in order of preference, set to keep pixel art sharp. mpeg4 plays in fewer places."""

_SCREEN = (240, 256)  # an NES picture: height, width
NO_DISPLAY = "no display: use --out clip.mp4"


def video_codec() -> str:
    """The best encoder that this PyAV was built with. Raises ``UserError`` where it has none."""
    for name in _CODECS:
        if name in av.codecs_available:
            return name
    raise UserError("PyAV has no H.264 or MPEG-4 encoder: reinstall it with 'uv sync --reinstall-package av'")


class VideoWriter:
    """Writes frames to a video file; the file is complete after the ``with`` block, however it ends.

    scale: each pixel becomes a square of this size, so that pixels stay sharp.
    A block that adds no frame leaves no file.
    """

    def __init__(self, path: Path | str, fps: int = 60, scale: int = 2) -> None:
        if fps < 1 or scale < 1:
            raise ValueError("fps and scale must be at least 1")
        self._path = Path(path)
        self._fps = fps
        self._scale = scale
        self._codec = video_codec()
        self._stream: VideoStream | None = None
        self._shape: tuple[int, ...] = ()
        self.frame_count = 0
        self._container: OutputContainer | None = None
        try:
            with self._explained():
                # PyAV opens the file with the first frame only: learn now whether it can be written.
                self._path.open("wb").close()
                # faststart moves the index to the front, so that a browser can play while it loads.
                self._container = av.open(str(self._path), "w", container_options={"movflags": "+faststart"})
            if self._codec not in self._container.supported_codecs:
                self._container.close()
                raise ValueError
        except ValueError:
            self._path.unlink()
            raise UserError(f"{self._path.name} does not say which video format: name it clip.mp4") from None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, rgb_HW3: U8) -> None:
        """Append a copy of a uint8 frame of shape [H, W, 3]. All frames of a file have one shape."""
        if rgb_HW3.dtype != np.uint8 or rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3:
            raise ValueError(f"a frame is uint8 [H, W, 3], not {rgb_HW3.dtype}{list(rgb_HW3.shape)}")
        picture = enlarged(rgb_HW3, self._scale)
        # yuv420p stores colour for 2x2 pixels, so sides are even: repeat the last row or column.
        odd_h, odd_w = picture.shape[0] % 2, picture.shape[1] % 2
        if odd_h or odd_w:
            picture = np.pad(picture, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
        if self._container is None:
            raise ValueError(f"{self._path} is closed")
        with self._explained():
            if self._stream is None:
                self._stream = self._open_stream(self._container, picture)
            if picture.shape != self._shape:
                raise ValueError(f"this video's frames are {self._shape}, not {picture.shape}")
            # OpenCV's conversion takes a third of the time of FFmpeg's, which is as long as the encoding.
            yuv = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
            frame.pts = self.frame_count
            frame.time_base = Fraction(1, self._fps)
            self._container.mux(self._stream.encode(frame))
        self.frame_count += 1

    def close(self) -> None:
        """Finish the file. Closing twice is harmless."""
        container, self._container = self._container, None
        if container is None:
            return
        with self._explained():
            try:
                if self._stream is not None:
                    container.mux(self._stream.encode(None))
            finally:
                container.close()
        if self.frame_count == 0:
            self._path.unlink(missing_ok=True)

    def _open_stream(self, container: OutputContainer, picture: U8) -> VideoStream:
        stream = container.add_stream(self._codec, rate=self._fps, options=_CODECS[self._codec])
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        self._shape = picture.shape
        return stream

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one line what the system refused: a missing folder, no permission, a full disk."""
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error


class _Screen(Protocol):
    """A toolkit's window."""

    def show(self, rgb_HW3: U8) -> bool:
        """Show a frame; False once the window was closed, or q or Esc pressed in it."""

    def close(self) -> None:
        """Take the window away."""


class _CvScreen:
    """OpenCV's window."""

    def __init__(self, title: str, scale: int) -> None:
        self._title, self._scale = title, scale
        # Fails at once where OpenCV was built without a window system (opencv-python-headless).
        cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)

    def show(self, rgb_HW3: U8) -> bool:
        picture = cv2.cvtColor(enlarged(rgb_HW3, self._scale), cv2.COLOR_RGB2BGR)
        cv2.imshow(self._title, picture)
        key = cv2.waitKey(1) & 0xFF
        return key not in (27, ord("q")) and self._is_open()

    def _is_open(self) -> bool:
        try:
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # how the Qt build says that its last window was closed
            return False

    def close(self) -> None:
        if self._is_open():
            cv2.destroyWindow(self._title)
            cv2.waitKey(1)  # windows go with the next look at events


class _PygletScreen:
    """pyglet's window, which nes-py brings along."""

    def __init__(self, title: str, scale: int) -> None:
        self._pyglet: Any = importlib.import_module("pyglet")
        self._scale = scale
        self._ended = False
        height, width = _SCREEN
        # Opened here rather than with the first frame, so that a machine without OpenGL is known now.
        self._window: Any = self._pyglet.window.Window(
            caption=title, width=width * scale, height=height * scale, vsync=False
        )
        self._window.push_handlers(on_close=self._end, on_key_press=self._key)

    def show(self, rgb_HW3: U8) -> bool:
        picture = np.ascontiguousarray(enlarged(rgb_HW3, self._scale))
        height, width = picture.shape[:2]
        self._window.switch_to()
        if (self._window.width, self._window.height) != (width, height):
            self._window.set_size(width, height)  # a grid, or a picture with an overlay
        self._window.dispatch_events()
        if self._ended:
            return False
        # A negative pitch says that the first row is the top one.
        image = self._pyglet.image.ImageData(width, height, "RGB", picture.tobytes(), pitch=-3 * width)
        self._window.clear()
        image.blit(0, 0, width=self._window.width, height=self._window.height)
        self._window.flip()
        return True

    def _key(self, symbol: int, modifiers: int) -> bool:
        if symbol in (self._pyglet.window.key.ESCAPE, self._pyglet.window.key.Q):
            self._ended = True
        return True  # handled: pyglet's own handler would close the window under us

    def _end(self) -> bool:
        self._ended = True
        return True

    def close(self) -> None:
        self._window.close()


class Window:
    """Shows frames on the screen, at most ``fps`` a second; closing it, q or Esc make ``show`` return False.

    Raises ``UserError`` where there is no display, or no toolkit that can open a window on it. Use it from
    the main thread, as every toolkit demands.
    """

    def __init__(self, title: str, scale: int = 2, fps: int = 60) -> None:
        if not has_display():
            raise UserError(NO_DISPLAY)
        self._frame_s = 1 / fps
        self._due = time.monotonic()
        self._screen: _Screen | None = _open_screen(title, scale)

    def __enter__(self) -> "Window":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, rgb_HW3: U8) -> bool:
        """Show a uint8 frame of shape [H, W, 3] when it is due; False once the person closed the window."""
        # The game's own pace: emulation alone would run many times as fast. A late frame is not made up.
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due, time.monotonic()) + self._frame_s
        if self._screen is not None and not self._screen.show(rgb_HW3):
            self.close()
        return self._screen is not None

    def close(self) -> None:
        """Take the window away. Closing twice is harmless."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None


def has_display() -> bool:
    """Whether a window can be opened here. On Linux this asks the X server (XWayland included)."""
    if sys.platform != "linux":
        return True
    if not os.environ.get("DISPLAY"):
        return False
    # Ask before a toolkit does: Qt aborts the whole process where DISPLAY names no server.
    name = ctypes.util.find_library("X11")
    if name is None:
        return False
    x11 = ctypes.CDLL(name)
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = x11.XOpenDisplay(None)
    if not display:
        return False
    x11.XCloseDisplay(ctypes.c_void_p(display))
    return True


def _open_screen(title: str, scale: int) -> _Screen:
    """The first toolkit that opens a window."""
    reasons = []
    # OpenCV's Qt on Linux aborts where pyglet raises; pyglet 1.5 is the shakier of the two on macOS.
    toolkits = (_PygletScreen, _CvScreen) if sys.platform == "linux" else (_CvScreen, _PygletScreen)
    for toolkit in toolkits:
        try:
            return toolkit(title, scale)
        except Exception as error:
            # Each toolkit fails in its own way (no GUI built in, no OpenGL); the last resort is a file.
            reasons.append(f"{toolkit.__name__[1:-6]}: {' '.join(str(error).split())}")
    raise UserError(f"no window can be opened here ({'; '.join(reasons)}): use --out clip.mp4")
