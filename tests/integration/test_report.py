"""The report of real runs, made by the command line and opened in a real browser."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.browser import Browser, find_browser

from mario_dist.cli.main import main
from mario_dist.report.video import VideoWriter

REPO = Path(__file__).parents[2]
HOSTILE = "<script>window.hacked=1</script> %{x} & <b>bold</b>"
PROBE = (
    "env.kind=probe",
    "env.frame_size=[12,12]",
    "env.max_steps=20",
    "network.torso=mlp",
    "network.hidden=16",
    "total_steps=2048",
    "checkpoint.every_steps=1024",
    "evaluation.every_steps=1024",
    "evaluation.episodes=4",
)
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


def run_here(monkeypatch: pytest.MonkeyPatch, runs: Path, *arguments: str) -> int:
    """The command line in this process, which pays for the imports once."""
    monkeypatch.setenv("MARIO_DIST_RUNS", str(runs))
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", ["mario-dist", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert isinstance(exit.value.code, int)
    return exit.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Path:
    """The folder of two finished probe runs, the first of which has a hostile name."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for name, seed in ((HOSTILE, 1), ("tame", 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MARIO_DIST_DB", raising=False)
            patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
            command = ["train", "configs/smoke.yaml", f"name={json.dumps(name)}", f"seed={seed}", *PROBE]
            assert run_here(patch, folder, *command) == 0
    return folder


@pytest.fixture
def cli(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of a command on these runs."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = run_here(monkeypatch, runs, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        missing = "there is no Chromium; apt-get install chromium brings it"
        if "CI" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    with Browser(program, tmp_path / "profile") as opened:
        yield opened


def assert_drawn_and_alone(browser: Browser) -> None:
    """All charts hold curves, nothing complained, and nothing was asked for beside the page itself."""
    browser.wait_for("document.documentElement.dataset.drawn")
    empty = "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('.trace, .bars .point'))"
    assert browser.evaluate(f"{empty}.map(c => c.id)") == []
    assert browser.evaluate("document.querySelectorAll('.chart .trace path').length") > 20
    assert browser.evaluate("document.getElementById('problem').hidden")
    assert browser.complaints == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in browser.requests) == 1


def test_the_report_of_a_run_is_one_small_page_that_draws_its_charts_offline(
    cli: Callable[..., tuple[int, str, str]], runs: Path, browser: Browser
) -> None:
    (hostile,) = runs.glob("script-*")
    assert cli("eval", hostile.name, "--episodes", "5")[0] == 0
    (hostile / "videos").mkdir()
    with VideoWriter(hostile / "videos" / "clip.mp4", fps=60) as video:
        for shade in range(0, 250, 25):
            video.add(np.full((240, 256, 3), shade, dtype=np.uint8))
    code, out, _ = cli("report", hostile.name, "--json")
    assert code == 0
    document = json.loads(out)
    page = hostile / "report.html"
    assert document == {"report": str(page), "bytes": page.stat().st_size, "runs": [hostile.name]}
    assert document["bytes"] < 5_000_000

    browser.open(page.as_uri(), width=390, mobile=True)
    assert_drawn_and_alone(browser)
    assert browser.evaluate(OVERFLOW) == 0
    assert browser.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("typeof window.hacked") == "undefined"
    judged = browser.evaluate("[...document.querySelectorAll('td')].map(c => c.textContent)")
    assert {"eval", "training", "jitter-30 v2"} <= set(judged)
    assert browser.wait_for("document.querySelector('video').readyState >= 1")

    title = "document.querySelector('.chart .xtitle').textContent"
    assert browser.evaluate(title) == "agent steps"
    browser.evaluate("document.querySelector('input[value=wall]').click()")
    browser.wait_for("document.documentElement.dataset.drawn.endsWith('wall')")
    assert browser.evaluate(title).startswith("wall-clock")
    assert_drawn_and_alone(browser)

    assert cli("report", hostile.name, "--no-clip")[0] == 0
    assert "<video" not in page.read_text()


def test_runs_are_drawn_over_each_other_and_their_difference_comes_first(
    cli: Callable[..., tuple[int, str, str]], runs: Path, browser: Browser, tmp_path: Path
) -> None:
    (hostile,), (tame,) = runs.glob("script-*"), runs.glob("tame-*")
    page = tmp_path / "both.html"
    # A run that is named twice is shown once.
    assert cli("report", hostile.name, tame.name, "latest", "--out", str(page))[0] == 0
    browser.open(page.as_uri(), width=1280)
    assert_drawn_and_alone(browser)
    assert browser.evaluate(OVERFLOW) == 0
    assert browser.evaluate("typeof window.hacked") == "undefined"
    legend = "[...document.querySelector('.chart').querySelectorAll('.legendtext')].map(e => e.textContent)"
    assert browser.evaluate(legend) == [HOSTILE, "tame"]
    table = "[...document.querySelectorAll('#configuration + .scroll tr')].map(r => r.cells[0].textContent)"
    assert browser.evaluate(table) == ["key", "name", "seed"]


def test_bad_input_is_one_clear_line(
    cli: Callable[..., tuple[int, str, str]], runs: Path, tmp_path: Path
) -> None:
    for arguments, expected in (
        (["nobody"], "there is no run 'nobody'"),
        (["latest", "--out", str(tmp_path / "none" / "x.html")], "cannot write"),
        (["latest", "--out", str(tmp_path)], "cannot write"),
    ):
        code, out, err = cli("report", *arguments)
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert expected in line
    assert list(tmp_path.iterdir()) == []
