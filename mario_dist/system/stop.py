"""Ctrl-C and SIGTERM: the first asks for a clean stop, the second takes it at once."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked this process to stop, and who wants to be told when one does."""

    def __init__(self) -> None:
        self.requested = False
        self._notice: Callable[[str], None] = lambda text: None

    def __call__(self) -> bool:
        return self.requested

    def notify(self, notice: Callable[[str], None]) -> None:
        """Call ``notice`` with one line for the person when the signal comes."""
        self._notice = notice

    def request(self, name: str) -> None:
        self.requested = True
        self._notice(
            f"{name}: finishing this iteration, then a checkpoint;"
            " once more to stop now and lose what came after the last checkpoint"
        )


@contextmanager
def stop_on_signals(same_press_s: float = 1.0) -> Iterator[StopRequest]:
    """Within the block, the first signal makes the request; the next one interrupts.

    Signals within ``same_press_s`` of the first are the same press of Ctrl-C: `uv run` may forward what
    the terminal has sent to the whole group already.
    """
    request = StopRequest()
    requested_at = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        if request.requested:
            if time.monotonic() - requested_at < same_press_s:
                return
            raise KeyboardInterrupt
        requested_at = time.monotonic()
        request.request(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises ``KeyboardInterrupt`` as Ctrl-C does: what is held is given back."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
