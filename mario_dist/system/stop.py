"""Ctrl-C and SIGTERM: the first asks for a clean stop, the second takes it at once."""

import signal
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
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, the first signal makes the request; the next one interrupts."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.request(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
