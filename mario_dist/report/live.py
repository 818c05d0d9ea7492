"""The live view of a training run: a dashboard on a terminal, plain lines anywhere else.

Everything goes to standard error: standard output is for results.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mario_dist.config import RunConfig
from mario_dist.report.progress import History, Progress, duration, number, sparkline

_PLAIN_EVERY_S = 5.0
_STALE_S = 10.0
_CELL_WIDTH = 19
_SPARK_WIDTH = _CELL_WIDTH
_MAX_WIDTH = 100
_BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = ("agent_steps_per_s", "return_mean", "x_pos_mean", "clear_rate")
"""Of ``Progress``, those that the dashboard draws."""
_ASCII_BLOCKS = "_.-=+*#"
_METRIC_NAMES = {
    "policy_loss": "policy",
    "value_loss": "value",
    "approx_kl": "kl",
    "clip_fraction": "clipped",
    "explained_variance": "explained",
    "q_target_mean": "q target",
    "importance_mean": "weight",
    "replay_shard_restarts": "shards died",
    "actors_wait_s": "actors wait s",
    "learner_waits_s": "waiting s",
}


class LiveView:
    """Shows one run while it trains; a context manager around the training loop.

    plain: lines instead of the dashboard; None decides by whether the console's file is a terminal.
    """

    def __init__(
        self,
        run_id: str,
        config: RunConfig,
        console: Console | None = None,
        plain: bool | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run_id
        self._config = config
        self._console = console or Console(stderr=True)
        self._plain = not _is_terminal(self._console) if plain is None else plain
        self._clock = clock
        self._progress: Progress | None = None
        self._updated = self._printed = -math.inf
        self._unprinted = False
        self._history = {name: History() for name in CURVES}
        self._live: Live | None = None

    def __enter__(self) -> "LiveView":
        if self._plain:
            self._write(plain_header(self._run_id, self._config))
        else:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                # Enough for a person, and next to nothing of a core that emulates meanwhile.
                refresh_per_second=2,
                # A result printed meanwhile belongs on standard output, not in this view.
                redirect_stdout=False,
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._unprinted and self._progress is not None:
            self._print(self._progress)

    def update(self, progress: Progress) -> None:
        """Show ``progress``; cheap enough to call many times a second."""
        self._progress = progress
        self._updated = self._clock()
        for name in CURVES:
            self.recall(name, [getattr(progress, name)])
        if self._plain:
            self._unprinted = True
            if self._updated - self._printed >= _PLAIN_EVERY_S:
                self._print(progress)

    def recall(self, curve: str, values: Iterable[float | None]) -> None:
        """What one of ``CURVES`` was before, oldest first."""
        for value in values:
            if value is not None:
                self._history[curve].add(value)

    def note(self, text: str) -> None:
        """One line that stays: a checkpoint was written, an actor was restarted."""
        # A note may quote another program's error, colours and line breaks included.
        clean = " ".join(Text.from_ansi(text).plain.split())
        if self._plain:
            self._write(f"note: {clean}")
        else:
            self._console.print(Text.assemble((time.strftime("%H:%M:%S "), "dim"), clean), soft_wrap=True)

    def _print(self, progress: Progress) -> None:
        self._write(plain_line(progress))
        self._printed = self._clock()
        self._unprinted = False

    def _write(self, line: str) -> None:
        # Past Rich, which would wrap the line at a width that a file does not have.
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def _render(self) -> RenderableType:
        blocks = _BLOCKS if self._console.encoding.startswith("utf") else _ASCII_BLOCKS
        title = Text.assemble("mario-dist ", (self._config.name, "bold"), f" {self._run_id}")
        if self._progress is None:
            body: RenderableType = Text("starting", style="dim")
        else:
            sparks = {
                name: sparkline(history.values, _SPARK_WIDTH, blocks)
                for name, history in self._history.items()
            }
            body = dashboard(self._progress, sparks)
        silent_s = self._clock() - self._updated
        return Panel(
            body,
            title=title,
            title_align="left",
            # A pause is normal (an evaluation, a checkpoint), but a person should see that it is one.
            subtitle=f"last update {duration(silent_s)} ago" if _STALE_S < silent_s < math.inf else None,
            subtitle_align="right",
            border_style="dim",
            width=min(_MAX_WIDTH, self._console.width),
        )


def plain_header(run_id: str, config: RunConfig) -> str:
    """The first line of a log: which run this is."""
    levels = ",".join(config.env.levels)
    what = f"name={config.name} algo={config.algo.name} levels={levels}"
    return f"run={run_id} {what} total_steps={config.total_steps}"


def plain_line(progress: Progress) -> str:
    """One line of ``key=value`` pairs; values that do not exist yet are left out."""
    p = progress
    pairs: dict[str, str | None] = {
        "steps": str(p.agent_steps),
        "steps/s": f"{p.agent_steps_per_s:.0f}",
        "frames/s": f"{p.env_frames_per_s:.0f}",
        "done": f"{100 * p.done:.1f}%",
        "elapsed": duration(p.wall_s).replace(" ", ""),
        "eta": duration(p.eta_s).replace(" ", ""),
        "episodes": str(p.episodes),
        "x_mean": None if p.x_pos_mean is None else f"{p.x_pos_mean:.0f}",
        "x_best": None if p.x_pos_best is None else f"{p.x_pos_best:.0f}",
        "clear_rate": None if p.clear_rate is None else f"{p.clear_rate:.2f}",
        "return": None if p.return_mean is None else number(p.return_mean),
        "eval_clear_rate": None if p.evaluation is None else f"{p.evaluation[0]:.2f}",
        "eval_x_mean": None if p.evaluation is None else f"{p.evaluation[1]:.0f}",
        "version": str(p.version),
        "lag": str(p.policy_lag),
        "queue": str(p.queue_depth),
        **{name: number(value) for name, value in p.metrics.items()},
    }
    return " ".join(f"{key}={value}" for key, value in pairs.items() if value is not None)


def dashboard(progress: Progress, sparks: Mapping[str, str]) -> RenderableType:
    """The rows of the terminal view; ``sparks`` has the curves so far, by name of ``CURVES``."""
    p = progress
    steps = Table.grid(padding=(0, 2), expand=True)
    steps.add_column(ratio=1)
    steps.add_column(justify="right", no_wrap=True)
    steps.add_row(
        ProgressBar(total=p.total_steps, completed=min(p.agent_steps, p.total_steps)),
        Text.assemble((f"{100 * p.done:.1f}%", "bold"), f"  {p.agent_steps:,} of {p.total_steps:,} steps"),
    )
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(ratio=1)
    rows.add_row("time", _cells({"elapsed": duration(p.wall_s), "left": duration(p.eta_s)}))
    speed = {"steps/s": f"{p.agent_steps_per_s:,.0f}", "frames/s": f"{p.env_frames_per_s:,.0f}"}
    rows.add_row("speed", _with_spark(_cells(speed), sparks, "agent_steps_per_s"))
    mean_return = "-" if p.return_mean is None else number(p.return_mean)
    episodes = _cells({"ended": f"{p.episodes:,}", "mean return": mean_return})
    rows.add_row("episodes", _with_spark(episodes, sparks, "return_mean"))
    x_pos = _cells({"mean": _whole(p.x_pos_mean), "best": _whole(p.x_pos_best)})
    rows.add_row("x-position", _with_spark(x_pos, sparks, "x_pos_mean"))
    flags = {"cleared": _percent(p.clear_rate)}
    if p.evaluation is not None:
        rate, mean_x = p.evaluation
        flags |= {"best eval": _percent(rate), "its mean x": _whole(mean_x)}
    rows.add_row("flag", _with_spark(_cells(flags), sparks, "clear_rate"))
    pipeline = {"version": f"{p.version:,}", "lag": str(p.policy_lag), "queue": str(p.queue_depth)}
    rows.add_row("policy", _cells(pipeline))
    if p.metrics:
        named = {_METRIC_NAMES.get(name, name): value for name, value in p.metrics.items()}
        broken = {name for name, value in named.items() if not math.isfinite(value)}
        rows.add_row("learner", _cells({name: number(value) for name, value in named.items()}, broken))
    if p.alarm is not None:
        rows.add_row("alarm", Text(p.alarm, style="bold red"))
    whole = Table.grid(expand=True)
    whole.add_row(steps)
    whole.add_row(rows)
    return whole


def _cells(values: Mapping[str, str], alarming: Collection[str] = ()) -> Columns:
    """``name value`` cells of one width, so that they line up over the rows; as many a line as fit."""
    cells: list[Text] = []
    for name, value in values.items():
        style = "bold red" if name in alarming else "bold"
        cell = Text.assemble((f"{name} ", "dim"), (value, style), no_wrap=True, overflow="crop")
        cell.pad_right(_CELL_WIDTH - cell.cell_len)
        cells.append(cell)
    # Not Columns' own width, with which it fails on a terminal that is narrower.
    return Columns(cells, equal=True, padding=(0, 1))


def _with_spark(cells: Columns, sparks: Mapping[str, str], name: str) -> Columns:
    if spark := sparks.get(name):
        cells.add_renderable(Text(spark.ljust(_CELL_WIDTH), style="green", no_wrap=True, overflow="crop"))
    return cells


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _is_terminal(console: Console) -> bool:
    """Whether a person watches. Not Rich's own answer, which FORCE_COLOR makes true for a file."""
    return console.file.isatty() and not console.is_dumb_terminal
