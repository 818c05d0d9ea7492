"""How fast the run store takes rows, and how long what the command line and the report ask of it takes."""

import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import batched, islice
from pathlib import Path
from typing import Any

from mario_dist import machine
from mario_dist.bench.postgres import installed, temporary_postgres
from mario_dist.config import RunConfig, to_tree
from mario_dist.errors import UserError
from mario_dist.evaluation import EvalProtocol, summarise
from mario_dist.report.run_data import read_run
from mario_dist.store import CheckpointRow, EvaluationRow, RunRow, RunStore, StoreWriter
from mario_dist.store.rows import Rows, episode_values, metric_values
from mario_dist.types import Episode, EpisodeRecord

_LISTED = 20
_ASKED = 7
_ROUNDS = 5
_ROUND_ROWS = 20_000
_BATCH = 1000
_FILLED = 5000
_CALL = 20
_REPORTS = 200
_METRICS = 25
_STEPS = 2048
_JUDGED = 16
_PATIENCE_S = 600.0


def bench_store(
    rows: int, runs: int, postgres_url: str | None, announce: Callable[[str], None]
) -> dict[str, Any]:
    """What SQLite and PostgreSQL do with ``rows`` episodes, spread over ``runs`` runs.

    queries_ms: median and maximum of 7 times, after one to warm up, of what is asked of one of the runs; of
    ``runs list`` from opening the store on; and of all that the HTML report reads (``report``).
    one_run_queries_ms: the same of a further run that has as many rows as all of these together.
    rows_per_s: episodes by ``RunStore.write``, 1,000 in a transaction; writer_rows_per_s: by a
    ``StoreWriter`` in calls of 20, from the first call to the return of ``close``; medians of 5 rounds of
    20,000 rows, or of ``rows`` where that is less, into the database with all of this in it.

    Every run has 200 reports of 25 metrics, 16 evaluated checkpoints and an evaluation by ``eval``.
    postgres_url: an empty database, which is filled; by default a server of the benchmark's own, where the
    dev dependencies are installed. Raises ``UserError`` where a database cannot be used or has runs.
    """
    document: dict[str, Any] = {"machine": machine.describe(), "rows": rows, "runs": runs}
    with tempfile.TemporaryDirectory(prefix="mario-dist-store-") as directory, ExitStack() as stack:
        urls = {"sqlite": f"sqlite:///{directory}/mario.db"}
        if postgres_url is not None:
            urls["postgres"] = postgres_url
        elif installed():
            urls["postgres"] = stack.enter_context(temporary_postgres()).url
        else:
            document["note"] = "SQLite alone: for PostgreSQL give --postgres URL, or run 'uv sync'"
            announce(document["note"])
        stores = {name: stack.enter_context(_open_empty(url)) for name, url in urls.items()}
        for name, store in stores.items():
            announce(f"{name}: filling it with {rows:,} episodes of {runs:,} runs")
            document[name] = _measure(store, urls[name], Path(directory), rows, runs, announce)
    document["ratio"] = {
        name: document["sqlite"]["rows_per_s"] / document[name]["rows_per_s"]
        for name in urls
        if name != "sqlite"
    }
    return document


def _open_empty(url: str) -> RunStore:
    store = RunStore(url)
    if store.list_runs(1):
        store.close()
        raise UserError(f"{store.where} has runs; give an empty database, which the benchmark fills")
    return store


def _measure(
    store: RunStore, url: str, directory: Path, rows: int, runs: int, announce: Callable[[str], None]
) -> dict[str, Any]:
    shares = [rows * (n + 1) // runs - rows * n // runs for n in range(runs)]
    ids = [_leave_run(store, f"bench-{n}-run", share, _REPORTS) for n, share in enumerate(shares)]
    queries = _ask(store, url, ids[runs // 2], directory)
    announce(_slowest(queries))
    announce(f"  a run of {rows:,} episodes")
    one_run = _ask(store, url, _leave_run(store, "one-run", rows, _REPORTS * runs), directory)
    announce(_slowest(one_run))
    records = list(_play(min(rows, _ROUND_ROWS)))
    ways = {"rows_per_s": _write, "writer_rows_per_s": _write_by_writer}
    rounds = [
        {name: _rate(write, store, f"{name}-{n}", records, directory) for name, write in ways.items()}
        for n in range(_ROUNDS)
    ]
    rates = {name: statistics.median(one[name] for one in rounds) for name in ways}
    announce("  " + ", ".join(f"{rate:,.0f} {name}" for name, rate in rates.items()))
    return {**rates, "queries_ms": queries, "one_run_queries_ms": one_run}


def _slowest(queries: dict[str, dict[str, float]]) -> str:
    name, of = max(queries.items(), key=lambda item: item[1]["median"])
    return f"  slowest: {name}, {of['median']:,.1f} ms"


# What is asked


def _ask(store: RunStore, url: str, run_id: str, directory: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of each question."""

    def runs_list() -> object:
        with RunStore(url) as opened:
            return opened.list_runs(_LISTED)

    questions: dict[str, Callable[[], object]] = {
        "runs list": runs_list,
        "report": lambda: read_run(store, store.get_run(run_id), directory),
        "list_runs": lambda: store.list_runs(_LISTED),
        "get_run": lambda: store.get_run(run_id[:-1]),
        "episode_summary": lambda: store.episode_summary(run_id),
        "episodes": lambda: store.episodes(run_id),
        "metrics": lambda: store.metrics(run_id),
        "newest_metrics": lambda: store.newest_metrics(run_id),
        "checkpoints": lambda: store.checkpoints(run_id),
        "evaluations": lambda: store.evaluations(run_id),
    }
    return {name: _time_ms(question) for name, question in questions.items()}


def _time_ms(call: Callable[[], object]) -> dict[str, float]:
    taken = []
    for _ in range(_ASKED + 1):
        at = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - at))
    return {"median": statistics.median(taken[1:]), "max": max(taken[1:])}


# What is written


def _rate(
    write: Callable[[RunStore, str, Sequence[EpisodeRecord], Path], None],
    store: RunStore,
    run_id: str,
    records: Sequence[EpisodeRecord],
    directory: Path,
) -> float:
    """Episodes per second into a new run."""
    _create_run(store, run_id)
    at = time.perf_counter()
    write(store, run_id, records, directory)
    seconds = time.perf_counter() - at
    stored = store.episode_summary(run_id)["count"]
    if stored != len(records):
        raise RuntimeError(f"of {len(records)} episodes, {stored} are in the run store")
    return len(records) / seconds


def _write(store: RunStore, run_id: str, records: Sequence[EpisodeRecord], directory: Path) -> None:
    for batch in batched(records, _BATCH):
        store.write(run_id, Rows(episodes=[episode_values(0, record) for record in batch]))


def _write_by_writer(store: RunStore, run_id: str, records: Sequence[EpisodeRecord], directory: Path) -> None:
    with StoreWriter(store, run_id, directory / "journal", patience_s=_PATIENCE_S) as writer:
        for call in batched(records, _CALL):
            writer.episodes(0, call)


# What trainings leave


def _leave_run(store: RunStore, run_id: str, episodes: int, reports: int) -> str:
    """A run of so many rows, as far as a training and an ``eval`` leave them. Returns its id."""
    _create_run(store, run_id)
    number, records = random.Random(run_id), _play(episodes)
    rows = Rows()
    for report in range(1, reports + 1):
        steps = report * _STEPS
        played = islice(records, episodes * report // reports - episodes * (report - 1) // reports)
        rows.episodes += [episode_values(steps, record) for record in played]
        values = {f"metric/{n}": number.random() for n in range(_METRICS)}
        rows.metrics += metric_values(steps, report / 2, values)
        if len(rows) >= _FILLED or report == reports:
            store.write(run_id, rows)
            rows = Rows()
    judged = dataclasses.asdict(
        summarise([record.episode for record in _play(100)], EvalProtocol(("1-1",)), seconds=5.0)
    )
    for n in range(1, _JUDGED + 1):
        steps = reports * n // _JUDGED * _STEPS
        row = CheckpointRow(agent_steps=steps, path=f"step-{n}", kind="latest", evaluation=judged)
        store.add_checkpoint(run_id, row)
    store.add_evaluation(
        run_id,
        EvaluationRow(agent_steps=reports * _STEPS, path="step", protocol="jitter-30", report=judged),
    )
    return run_id


def _play(count: int) -> Iterator[EpisodeRecord]:
    number = random.Random(count)
    for n in range(count):
        x_pos = number.randrange(40, 3161)
        flag = x_pos > 2800
        episode = Episode(
            lane=n % 16,
            level="1-1",
            world=1,
            stage=1,
            episode_return=x_pos / 10 + number.random(),
            length=x_pos // 20,
            x_pos_max=x_pos,
            score=100 * number.randrange(20),
            coins=number.randrange(10),
            time_left=400 - x_pos // 50,
            life=2,
            status="small",
            flag_get=flag,
            end="flag" if flag else number.choice(("death", "stall", "time")),
            seconds=3 * number.random(),
        )
        yield EpisodeRecord(0, 0, n, n // 50, episode)


def _create_run(store: RunStore, run_id: str) -> None:
    config = RunConfig()
    store.create_run(
        RunRow(
            id=run_id,
            name="bench",
            seed=0,
            total_steps=config.total_steps,
            level="1-1",
            algo="ppo",
            config=to_tree(config),
            versions=machine.versions(),
            machine=machine.describe(),
            directory=f"runs/{run_id}",
        )
    )
