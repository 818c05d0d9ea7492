"""Signals ask for a clean stop; the second one takes it."""

import os
import signal

import pytest

from mario_dist.system.stop import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    notices: list[str] = []
    before = signal.getsignal(number)
    with stop_on_signals(same_press_s=0.0) as stop:
        stop.notify(notices.append)
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert number.name in notices[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_signals_of_one_press_count_once() -> None:
    with stop_on_signals(same_press_s=60.0) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop()
