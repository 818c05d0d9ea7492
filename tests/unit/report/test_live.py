"""The live view: lines where nobody watches, a dashboard where somebody does."""

import io
import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from mario_dist.config import RunConfig
from mario_dist.report.live import LiveView
from mario_dist.report.progress import Progress

CONFIG = RunConfig(name="ppo-1-1")
METRICS = {
    "policy_loss": -0.01234,
    "value_loss": 0.345678,
    "entropy": 1.31,
    "approx_kl": 0.0081,
    "clip_fraction": 0.12,
    "explained_variance": 0.71,
    "lr": 2.5e-4,
}
FULL = Progress(
    agent_steps=420_000,
    total_steps=2_000_000,
    start_steps=400_000,
    wall_s=25.0,
    agent_steps_per_s=731.2,
    env_frames_per_s=2924.8,
    episodes=1234,
    x_pos_mean=812.4,
    x_pos_best=3161,
    clear_rate=0.07,
    return_mean=12.345,
    policy_lag=1,
    queue_depth=2,
    version=58,
    metrics=METRICS,
    evaluation=(0.3, 1822.0),
)
EMPTY = replace(
    FULL,
    episodes=0,
    x_pos_mean=None,
    x_pos_best=None,
    clear_rate=None,
    return_mean=None,
    metrics={},
    evaluation=None,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 100, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, force_terminal=True, color_system=None, width=width, height=40)


def shown(console: Console) -> str:
    """Everything that was written, without cursor movements."""
    console.file.seek(0)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.read())


def test_plain_lines_are_first_last_and_one_in_five_seconds() -> None:
    clock, file = Clock(), io.StringIO()
    with LiveView("r1", CONFIG, Console(file=file), clock=clock) as view:
        for second in range(13):
            clock.now = float(second)
            view.update(replace(FULL, agent_steps=400_000 + second))
    header, *lines = file.getvalue().splitlines()
    assert header == "run=r1 name=ppo-1-1 algo=ppo levels=1-1 total_steps=2000000"
    assert [line.split()[0] for line in lines] == [
        "steps=400000",
        "steps=400005",
        "steps=400010",
        "steps=400012",
    ]


def test_the_last_plain_line_is_not_repeated() -> None:
    file = io.StringIO()
    with LiveView("r1", CONFIG, Console(file=file), clock=Clock()) as view:
        view.update(FULL)
    assert len(file.getvalue().splitlines()) == 2


def test_the_last_plain_line_survives_an_exception() -> None:
    file = io.StringIO()

    def train() -> None:
        with LiveView("r1", CONFIG, Console(file=file), clock=Clock()) as view:
            view.update(FULL)
            view.update(replace(FULL, agent_steps=430_000))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train()
    assert file.getvalue().splitlines()[-1].startswith("steps=430000 ")


def test_a_plain_line_is_pairs_of_key_and_value() -> None:
    file = io.StringIO()
    with LiveView("r1", CONFIG, Console(file=file)) as view:
        view.update(FULL)
    pairs = dict(pair.split("=") for pair in file.getvalue().splitlines()[1].split(" "))
    assert pairs == {
        "steps": "420000",
        "steps/s": "731",
        "frames/s": "2925",
        "done": "21.0%",
        "elapsed": "0:00:25",
        "eta": "0:32:55",
        "episodes": "1234",
        "x_mean": "812",
        "x_best": "3161",
        "clear_rate": "0.07",
        "return": "12.3",
        "eval_clear_rate": "0.30",
        "eval_x_mean": "1822",
        "version": "58",
        "lag": "1",
        "queue": "2",
        "policy_loss": "-0.0123",
        "value_loss": "0.346",
        "entropy": "1.31",
        "approx_kl": "0.0081",
        "clip_fraction": "0.12",
        "explained_variance": "0.71",
        "lr": "0.00025",
    }


def test_what_does_not_exist_yet_is_left_out() -> None:
    file = io.StringIO()
    with LiveView("r1", CONFIG, Console(file=file)) as view:
        view.update(EMPTY)
    line = file.getvalue().splitlines()[1]
    assert "episodes=0" in line
    assert not re.search("x_mean|x_best|clear_rate|return|eval|None|policy_loss", line)


def test_plain_has_no_escape_codes_even_with_forced_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with LiveView("r1", CONFIG, Console(file=file)) as view:
        view.note("actor 3 died: \x1b[31mKilled\x1b[0m\n  restarted [1/100]")
        view.update(FULL)
    assert "\x1b" not in file.getvalue()
    assert "note: actor 3 died: Killed restarted [1/100]\n" in file.getvalue()
    assert "\nsteps=420000 " in file.getvalue()


def test_everything_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView("r1", CONFIG) as view:
        view.update(FULL)
        view.note("checkpoint written")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "steps=420000" in captured.err
    assert "note: checkpoint written" in captured.err


@pytest.mark.parametrize("width", [100, 60, 20])
def test_the_dashboard_shows_every_figure(width: int) -> None:
    console = terminal(width)
    with LiveView("r1", CONFIG, console, plain=False) as view:
        view.update(FULL)
        view.note("checkpoint written [runs/r1]")
    text = shown(console)
    assert "checkpoint written [runs/r1]" in text
    if width == 20:
        return  # too narrow for figures, but no reason to stop a training
    for figure in (
        "ppo-1-1",
        "21.0%",
        "0:32:55",
        "731",
        "2,925",
        "1,234",
        "812",
        "3,161",
        "7%",
        "12.3",
        "30%",
        "1,822",
    ):
        assert figure in text
    for figure in ("version 58", "lag 1", "queue 2", "policy -0.0123", "kl 0.0081", "lr 0.00025"):
        assert figure in text


def test_the_dashboard_before_the_first_update_and_the_first_episode() -> None:
    console = terminal()
    with LiveView("r1", CONFIG, console, plain=False) as view:
        assert "starting" in shown(console)
        view.update(EMPTY)
    assert "None" not in shown(console)


def test_a_value_that_is_no_longer_a_number_is_shown() -> None:
    console = terminal()
    with LiveView("r1", CONFIG, console, plain=False) as view:
        view.update(replace(FULL, metrics={"policy_loss": math.nan, "value_loss": math.inf}))
    assert "policy nan" in shown(console)
    assert "value inf" in shown(console)


def test_the_dashboard_says_how_long_it_has_been_silent() -> None:
    clock, console = Clock(), terminal()
    with LiveView("r1", CONFIG, console, plain=False, clock=clock) as view:
        view.update(FULL)
        clock.now = 75.0
    assert "last update 0:01:15 ago" in shown(console)


def test_the_dashboard_on_a_terminal_without_unicode() -> None:
    console = terminal(encoding="ascii")
    with LiveView("r1", CONFIG, console, plain=False) as view:
        for x in (300.0, 500.0, 900.0):
            view.update(replace(FULL, x_pos_mean=x))
    assert "_.#" in shown(console).replace("-", ".")


def test_the_cursor_comes_back_after_an_exception() -> None:
    console = terminal()

    def train() -> None:
        with LiveView("r1", CONFIG, console, plain=False) as view:
            view.update(FULL)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    console.file.seek(0)
    written = console.file.read()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_on_a_real_terminal_standard_output_stays_for_results() -> None:
    program = (
        f"import runpy; here = runpy.run_path({__file__!r})\n"
        "from mario_dist.report.live import LiveView\n"
        "with LiveView('r1', here['CONFIG']) as view:\n"
        "    view.update(here['FULL'])\n"
        "    print('result')\n"
    )
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=env, timeout=120)
    written = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, written
    assert done.stdout == b"result\n"
    assert "\x1b[?25l" in written
    assert "420,000 of 2,000,000" in written
