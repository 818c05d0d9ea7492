"""What a run leaves behind: its directory, its rows in the store, its MLflow run, its line on the screen."""

import dataclasses
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.checkpoint import (
    FILES,
    CheckpointError,
    TrainState,
    best_checkpoint,
    has_replay,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
    set_aside_newer,
)
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.registry import RunEnd, Tracker
from mario_dist.report.live import LiveView
from mario_dist.report.progress import Progress
from mario_dist.report.sinks import Sink, check_tracking, open_sinks
from mario_dist.store import (
    CheckpointKind,
    CheckpointRow,
    RunChanges,
    RunRow,
    RunStore,
    StoreUnavailable,
    StoreWriter,
    replay,
)
from mario_dist.system.collapse import Alarm, CollapseDetector
from mario_dist.system.copies import Copies
from mario_dist.system.filming import clip_path, clip_wanted, film_best
from mario_dist.system.run_lock import lock_run, make_run_directory
from mario_dist.system.topology import Counters, Iteration, Judge, Recovery
from mario_dist.types import Arrays, EpisodeRecord, EvalReport, part

JOURNAL = "journal"
"""The folder, in a run's directory, of rows that are on their way to the run store."""

_RECENT_EPISODES = 100
_RATE_WINDOW = 10
_FILM_SHARE = 0.03
"""Of the run's time, what clips may take before its end: training waits for them."""
_BUSY_EVERY_S = 0.5
"""The kernel counts hundredths of a second, at its leisure."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a run goes on: what its checkpoint says beside the arrays.

    incarnation: the one that this process's workers begin with, so that no episode's number comes twice.
    wall_s: seconds of training that earlier processes spent on it. collapse_best: what the collapse alarm
    measures by.
    """

    counters: Counters
    mlflow_run_id: str | None
    best: tuple[float, float] | None
    incarnation: int
    wall_s: float
    collapse_best: Mapping[str, float] = field(default_factory=dict)


class Session:
    """The ``Observer`` of one run in this process. Open it with ``open_session``."""

    def __init__(
        self,
        run_id: str,
        config: RunConfig,
        directory: Path,
        writer: StoreWriter,
        tracker: Tracker,
        view: LiveView,
        resumed: Resumed,
        mlflow_run_id: str,
        sinks: Sequence[Sink],
        copies: Copies | None = None,
    ) -> None:
        self._copies = copies
        self.run_id = run_id
        self.directory = directory
        self.counters = resumed.counters
        self.best = resumed.best
        self._config = config
        self._writer = writer
        self._tracker = tracker
        self._sinks = sinks
        self._view = view
        self._mlflow_run_id = mlflow_run_id
        self._incarnation = resumed.incarnation
        self._start_steps = resumed.counters.agent_steps
        self._started_at = time.monotonic()
        self._wall_before_s = resumed.wall_s
        self._marks: deque[tuple[float, int]] = deque([(self._started_at, self._start_steps)], _RATE_WINDOW)
        self._paused_s = 0.0
        self._filmed: Path | None = None
        self._filmed_s = 0.0
        self._recent: deque[EpisodeRecord] = deque(maxlen=_RECENT_EPISODES)
        self._x_best: int | None = None
        self._actors: int | None = None
        self._restarts = 0
        self._replay_lost = 0
        self._detector = CollapseDetector(config.collapse, dict(resumed.collapse_best))
        self._alarm: Alarm | None = None
        self._restore_due = False
        self._restores = 0
        self.finished = False
        """Whether the run has done what it was to do; else it can go on."""
        self.collapsed = False
        """Whether the run should end for it: ``collapse.on_collapse: stop``."""
        self._busy = (self._started_at, machine.busy_core_seconds())

    @property
    def alarm(self) -> str | None:
        """What the last alarm said."""
        return None if self._alarm is None else self._alarm.text

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def note(self, text: str) -> None:
        self._view.note(text)

    def iterated(self, iteration: Iteration) -> None:
        counters = self.counters = iteration.counters
        self._writer.episodes(counters.agent_steps, iteration.episodes)
        self._recent.extend(iteration.episodes)
        for record in iteration.episodes:
            self._x_best = max(self._x_best or 0, record.episode.x_pos_max)
        lost = int(iteration.report.metrics.get("replay_lost", 0))
        if lost > self._replay_lost:
            self.note(
                f"a replay shard died with {lost - self._replay_lost:,} transitions;"
                " training goes on with the others while it fills again"
            )
            self._replay_lost = lost
        if iteration.restarts > self._restarts:
            self.note(f"{iteration.restarts - self._restarts} rollout actor(s) died; others take their place")
            self._restarts = iteration.restarts
        if iteration.actors != self._actors:
            if self._actors is not None:
                self.note(f"{iteration.actors} rollout actor(s), and were {self._actors}")
            self._actors = iteration.actors
        progress = self._progress(iteration)
        metrics = {
            **iteration.report.metrics,
            "agent_steps_per_s": progress.agent_steps_per_s,
            "collect_s": iteration.collect_s,
            "learn_s": iteration.learn_s,
            **{f"worker_{name}_s": seconds for name, seconds in iteration.worker_seconds.items()},
            "version": float(iteration.report.version),
            "queue_depth": float(iteration.queue_depth),
            "rollout_actors": float(iteration.actors),
            "actor_restarts": float(iteration.restarts),
            "episodes": float(counters.episodes),
            **self._cores_busy(),
        }
        for name in ("x_pos_mean", "x_pos_best", "clear_rate", "return_mean"):
            value = getattr(progress, name)
            if value is not None:
                metrics[name] = float(value)
        self._record(metrics)
        self._view.update(progress)
        alarms = self._detector.episodes([record.episode for record in iteration.episodes])
        alarms += self._detector.report(iteration.report.metrics)
        for alarm in alarms:
            self._raise_alarm(alarm)

    def recovery(self) -> Recovery | None:
        """The best checkpoint's learner, where a collapse asks for it; for ``topology.train``."""
        if not self._restore_due:
            return None
        self._restore_due = False
        path = best_checkpoint(self.checkpoints)
        if path is None:
            self._detector.restart()  # it will say so again
            self.note(
                "there is no evaluated checkpoint yet to go back to (evaluation.every_steps makes them)"
            )
            return None
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            self.note(f"cannot go back to the best checkpoint: {error}")
            return None
        self._restores += 1
        self._detector.restart()
        factor = self._config.collapse.lr_factor
        self.note(f"back to the weights of {path}, with the learning rate times {factor:g}")
        return Recovery(part(state.arrays, "learner."), factor)

    def _raise_alarm(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._record({f"alarm/{alarm.measure}": alarm.value})
        self._tracker.tag("mario_dist.alarm", f"at {self.counters.agent_steps} steps: {alarm.text}")
        best = best_checkpoint(self.checkpoints)
        kept = f" (the best checkpoint is kept: {best})" if best is not None else ""
        self.note(f"ALARM at {self.counters.agent_steps:,} steps: {alarm.text}{kept}")
        match self._config.collapse.on_collapse:
            case "stop":
                self.collapsed = True
            case "restore" if self._restores < self._config.collapse.max_restores:
                self._restore_due = True
            case _:
                pass

    def evaluated(self, counters: Counters, report: EvalReport, by: Judge) -> None:
        self._paused_s += report.seconds
        clear_rate, x_mean = report.rank
        self._record(
            {f"{by}/clear_rate": clear_rate, f"{by}/x_pos_mean": x_mean, f"{by}/seconds": report.seconds}
        )
        self.note(
            f"evaluation at {counters.agent_steps:,} steps: {clear_rate:.0%} of {report.episodes} episodes"
            f" cleared, mean x {x_mean:.0f} ({report.seconds:.0f} s)"
        )
        if by == "stop":
            wanted, protocol = self._config.stop.clear_rate, report.protocol["name"]
            assert wanted is not None
            says = "the run ends with this checkpoint" if clear_rate >= wanted else "training goes on"
            self.note(f"that was {protocol}, of which {wanted:.0%} is to be cleared: {says}")

    def checkpoint(
        self,
        counters: Counters,
        learner: Arrays,
        workers: list[Arrays],
        evaluation: EvalReport | None,
        *,
        last: bool,
        done: bool = False,
        save_replay: Callable[[Path], None] | None = None,
    ) -> None:
        # Rows first: a checkpoint never knows more episodes than the store.
        self._writer.flush()
        best = evaluation is not None and (self.best is None or evaluation.rank > self.best)
        if evaluation is not None and best:
            self.best = evaluation.rank
        arrays: Arrays = {f"learner.{name}": array for name, array in learner.items()}
        for actor, state in enumerate(workers):
            arrays |= {f"worker.{actor}.{name}": array for name, array in state.items()}
        meta: dict[str, Any] = {
            "run_id": self.run_id,
            "mlflow_run_id": self._mlflow_run_id,
            "counters": dataclasses.asdict(counters),
            "finished": done,
            "workers": len(workers),
            "incarnation": self._incarnation + self._restarts,
            "best": self.best,
            "wall_s": self._wall_s(),
            "collapse_best": self._detector.best,
            "evaluation": None if evaluation is None else dataclasses.asdict(evaluation),
            "config": configuration.to_tree(self._config),
        }
        path = save_checkpoint(self.checkpoints, counters.agent_steps, TrainState(arrays, meta), save_replay)
        if save_replay is not None and not has_replay(path):
            self.note("the checkpoint is without the replay: a shard of it was down")
        if evaluation is not None and best:
            mark_best(self.checkpoints, path, dataclasses.asdict(evaluation))
        prune(self.checkpoints, self._config.checkpoint.keep)
        kind: CheckpointKind = "final" if last else "best" if best else "latest"
        self._writer.checkpoint(
            CheckpointRow(
                agent_steps=counters.agent_steps, path=str(path), kind=kind, evaluation=meta["evaluation"]
            )
        )
        self._writer.run(agent_steps=counters.agent_steps)
        if best:
            self._tracker.artifacts(path, "checkpoints/best", FILES)
        if kind == "final":
            self._tracker.artifacts(path, "checkpoints/final", FILES)
        self.note(f"checkpoint {path}{' (the best so far)' if best else ''}")
        self._copy(last=last)
        if (last or evaluation is not None) and clip_wanted(self._config):
            self._film(last=last)

    def _film(self, *, last: bool) -> None:
        """The best checkpoint, once: where the run ends, or as soon as little time went into clips."""
        best = best_checkpoint(self.checkpoints)
        if best in (None, self._filmed) or clip_path(self.directory / "videos", best).exists():
            return
        if last or self._filmed_s <= _FILM_SHARE * self._wall_s():
            self._filmed = best
            seconds = film_best(best, self._config.checkpoint.keep, self.note)
            self._filmed_s += seconds
            self._paused_s += seconds
            self._copy(last=last)

    def _copy(self, *, last: bool) -> None:
        if self._copies is not None:
            self._copies.bring(self.run_id, self.directory, self.note, last=last)

    def _cores_busy(self) -> dict[str, float]:
        """How many of this machine's cores were busy since the last time; empty where that was just now."""
        (then, busy_then), now = self._busy, time.monotonic()
        if now - then < _BUSY_EVERY_S:
            return {}
        busy = machine.busy_core_seconds()
        self._busy = now, busy
        if busy is None or busy_then is None:
            return {}
        return {"cores_busy": (busy - busy_then) / (now - then)}

    def _wall_s(self) -> float:
        """Seconds of training since the run began, over all its processes."""
        return self._wall_before_s + time.monotonic() - self._started_at

    def _record(self, metrics: Mapping[str, float]) -> None:
        self._writer.metrics(self.counters.agent_steps, self._wall_s(), metrics)
        self._tracker.metrics(self.counters.agent_steps, metrics)
        for sink in self._sinks:
            sink.metrics(self.counters.agent_steps, metrics)

    def _progress(self, iteration: Iteration) -> Progress:
        # Pauses for evaluations are no part of the training's speed.
        now = time.monotonic() - self._paused_s
        self._marks.append((now, iteration.counters.agent_steps))
        then, steps_then = self._marks[0]
        seconds = now - then
        rate = (iteration.counters.agent_steps - steps_then) / seconds if seconds > 0 else 0.0
        episodes = [record.episode for record in self._recent]
        n = len(episodes)
        return Progress(
            agent_steps=iteration.counters.agent_steps,
            total_steps=self._config.total_steps,
            start_steps=self._start_steps,
            wall_s=time.monotonic() - self._started_at,
            agent_steps_per_s=rate,
            env_frames_per_s=rate * self._config.env.frame_skip,
            episodes=iteration.counters.episodes,
            x_pos_mean=sum(e.x_pos_max for e in episodes) / n if n else None,
            x_pos_best=self._x_best,
            clear_rate=sum(e.flag_get for e in episodes) / n if n else None,
            return_mean=sum(e.episode_return for e in episodes) / n if n else None,
            policy_lag=int(iteration.report.metrics["policy_lag"]),
            queue_depth=iteration.queue_depth,
            version=iteration.report.version,
            metrics=iteration.report.metrics,
            evaluation=self.best,
            alarm=self.alarm,
        )


@contextmanager
def open_session(
    run_id: str,
    config: RunConfig,
    directory: Path,
    *,
    store_url: str,
    tracking_uri: str,
    details: Mapping[str, object],
    resumed: Resumed | None,
    named: bool = False,
    copies: Copies | None = None,
    extra_sinks: Sequence[Sink] = (),
) -> Iterator[Session]:
    """Open everything that a run writes to, and close it with how the run ended.

    ``details`` (the plan, say) are kept with the machine's description. Nothing of the run exists until
    every door was found open. named: as in ``run_training``. Raises ``UserError`` where one is shut.
    """
    check_tracking(config.tracking)
    fresh = resumed is None
    resumed = resumed or Resumed(Counters(), None, None, 0, 0.0)
    directory = directory.resolve()
    with ExitStack() as stack:
        store = stack.enter_context(RunStore(store_url))
        known = store.find_run(run_id)
        if fresh and known is not None and (lost := store.checkpoints(run_id)):
            raise UserError(
                f"{run_id} has checkpoints that are not here, in {Path(lost[-1].path).parent}; set"
                " MARIO_DIST_RUNS or MARIO_DIST_STORAGE to where they are, or choose another --run-id"
            )
        if not (fresh or known or named):
            store.get_run(run_id)  # a checkpoint of another store's run is refused before anything changes
        tracker = Tracker(tracking_uri)
        new = make_run_directory(directory)
        stack.enter_context(lock_run(directory))
        commit, dirty = machine.git_state(Path(__file__).parent)
        tree = configuration.to_tree(config)
        try:
            sinks = stack.enter_context(
                open_sinks(
                    config.tracking,
                    directory,
                    run_id=run_id,
                    name=config.name,
                    tree=tree,
                    resumed_at=None if fresh else resumed.counters.agent_steps,
                )
            )
            mlflow_run_id = tracker.start(
                config.name,
                configuration.flatten(tree),
                configuration.dump(config),
                {"mario_dist.run_id": run_id, "git_commit": commit or "", "directory": str(directory)},
                resumed.mlflow_run_id or (None if known is None else known.mlflow_run_id),
            )
        except BaseException:
            if new:
                shutil.rmtree(directory)  # it holds the lock and empty event files only
            raise
        session: Session | None = None
        status: RunEnd = "failed"
        try:
            (directory / "config.yaml").write_text(configuration.dump(config))
            changes: RunChanges = {
                "total_steps": config.total_steps,
                "config": tree,
                "git_commit": commit,
                "git_dirty": bool(dirty),
                "versions": machine.versions(),
                "machine": {**machine.describe(), **details},
                "mlflow_run_id": mlflow_run_id,
            }
            if not known:
                level = ",".join(config.env.levels)
                row = RunRow(
                    id=run_id,
                    name=config.name,
                    seed=config.seed,
                    level=level,
                    algo=config.algo.name,
                    directory=str(directory),
                    **changes,
                )
                store.create_run(row)
            if known or not fresh:
                replay(store, run_id, directory / JOURNAL)
                store.rewind(run_id, resumed.counters.agent_steps)
                set_aside_newer(directory / "checkpoints", resumed.counters.agent_steps)
                again: RunChanges = {**changes, "status": "running", "ended_at": None}
                store.update_run(run_id, **again)
            writer = StoreWriter(store, run_id, directory / JOURNAL)
            view = stack.enter_context(LiveView(run_id, config))
            session = Session(
                run_id,
                config,
                directory,
                writer,
                tracker,
                view,
                resumed,
                mlflow_run_id,
                [*sinks, *extra_sinks],
                copies,
            )
            if not fresh and not known:
                session.note(f"{store.where} did not know {run_id}: its episodes and metrics begin here")
            try:
                yield session
                status = "finished" if session.finished else "stopped"
            except KeyboardInterrupt:
                status = "stopped"
                raise
            finally:
                _end(session, store, writer, status)
        finally:
            tracker.finish(status)
            if session is not None and tracker.dropped:
                session.note(f"{tracker.dropped} metric values did not reach MLflow")


def _end(session: Session, store: RunStore, writer: StoreWriter, status: RunEnd) -> None:
    """Write the run's end, and everything before it."""
    ended_at, steps = datetime.now(UTC), session.counters.agent_steps
    try:
        writer.run(status=status, ended_at=ended_at, agent_steps=steps)
        if not writer.close():
            session.note(
                f"the run database {store.where} did not take everything in time: the rest waits in"
                f" {session.directory / JOURNAL}, and 'mario-dist db replay' brings it there"
            )
    except Exception:  # whatever the writer met: it is raised again, and the run's row should not say running
        with suppress(StoreUnavailable):
            store.update_run(session.run_id, status="failed", ended_at=ended_at, agent_steps=steps)
        raise
