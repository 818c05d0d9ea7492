"""Start or resume a training run: validate, plan, connect, train."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.checkpoint import CheckpointError, TrainState, checkpoint_replay
from mario_dist.config import RunConfig
from mario_dist.emulator import make_emulator, native_problem, resolve_backend
from mario_dist.emulator.rom import rom_path
from mario_dist.env import EnvConfig
from mario_dist.errors import UserError
from mario_dist.learner import network_arrays
from mario_dist.learner.device import choose_device
from mario_dist.nets import set_weights
from mario_dist.paths import new_run_id
from mario_dist.report.sinks import Sink
from mario_dist.system.build import make_network
from mario_dist.system.copies import Copies
from mario_dist.system.feed import Feed, make_queue_feed, make_replay_feed
from mario_dist.system.local import LocalReplay, LocalRollouts, local_learner, local_replay_learner
from mario_dist.system.plan import Plan, check_replay, make_plan, reserved_cores, shard_bytes
from mario_dist.system.ports import Closes, LearnerPort, ReplayPort, Rollouts
from mario_dist.system.session import Resumed, Session, open_session
from mario_dist.system.stop import StopRequest, stop_on_signals
from mario_dist.system.topology import Counters, Outcome, train
from mario_dist.types import Arrays, part

if TYPE_CHECKING:
    from mario_dist.system.ray import RayLearner


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended in this process."""

    run_id: str
    outcome: Outcome
    agent_steps: int
    directory: Path
    best: tuple[float, float] | None
    alarm: str | None = None
    """What the collapse alarm said last, in this process."""


def finished_before(config: RunConfig, state: TrainState, runs: Path) -> RunResult | None:
    """How the run of a checkpoint ended, where it has done all that ``config`` asks for."""
    steps, run_id = int(state.meta["counters"]["agent_steps"]), str(state.meta["run_id"])
    before = configuration.parse(state.meta["config"])
    env = replace(before.env, emulator=config.env.emulator, rom=config.env.rom)  # they are settled there
    same = replace(before, env=env) == config
    if not (steps >= config.total_steps or (state.meta.get("finished") and same)):
        return None
    return RunResult(run_id, "finished", steps, runs / run_id, state.meta["best"])


def run_training(
    config: RunConfig,
    runs: Path,
    *,
    run_id: str | None = None,
    store_url: str,
    tracking_uri: str,
    address: str | None = None,
    resume: TrainState | None = None,
    resumed_from: Path | None = None,
    init: TrainState | None = None,
    init_from: str = "",
    copies: Copies | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Train as ``config`` says, in a new run under ``runs`` or on from ``resume``, which was read from the
    checkpoint ``resumed_from``, in that run's directory.

    run_id: of the run, and that the user chose it: what the run store or the directory has of one that never
    came to a checkpoint is begun anew, and a store that does not know a resumed run takes it in.
    copies: where the run is copied to while it goes on.
    init: a checkpoint with whose network a new run begins; all else is its own. init_from: where it is.
    address: "local" for Ray on this machine, "auto" or a host for a cluster that runs, None for the plan's
    choice. announce: told what is waited for before the run exists.

    Raises ``UserError`` for what the user can mend, before anything of the run exists.
    """
    if address is not None and config.system.driver == "local":
        raise UserError("--address is for Ray, and this configuration says system.driver: local")
    config = _settle_emulator(config, None if resume is None else _env_before(resume))
    network = make_network(config)
    for state in (resume, init):
        if state is not None:
            check_network(network, state)
    named = run_id is not None
    run_id = str(resume.meta["run_id"]) if resume is not None else run_id or new_run_id(config.name)
    resumed = None if resume is None else _resumed(resume)
    if resumed is not None and resumed.counters.agent_steps >= config.total_steps:
        raise UserError(
            f"{run_id} has done {resumed.counters.agent_steps:,} of {config.total_steps:,} agent steps;"
            " give a larger total_steps to train on"
        )
    with ExitStack() as stack:
        plan, gpu = _plan(config, address, stack, announce)
        replay = _saved_replay(config, resume, resumed_from)
        request = stack.enter_context(stop_on_signals())
        session = stack.enter_context(
            open_session(
                run_id,
                config,
                runs / run_id if resumed_from is None else resumed_from.resolve().parents[1],
                store_url=store_url,
                tracking_uri=tracking_uri,
                details={
                    "plan": dataclasses.asdict(plan),
                    **({} if init is None else {"init": _name(init), "init_from": init_from}),
                },
                resumed=resumed,
                named=named,
                copies=copies,
                extra_sinks=_ray_metrics(run_id, resumed) if plan.driver == "ray" else (),
            )
        )
        request.notify(session.note)
        if config.env.emulator == "nes-py" and (problem := native_problem()):
            session.note(f"emulator: nes-py, the slow one; {problem}")
        session.note(
            f"{plan.driver} driver: {plan.actors} actor(s) x {plan.lanes} lanes,"
            f" {plan.env_threads} emulation thread(s) each, {plan.learner_threads} learner thread(s)"
        )
        if init is not None:
            session.note(f"begins with the network of {init_from} ({_name(init)}){_unlike(config.env, init)}")
        if resume is not None and plan.shards and replay is None:
            session.note(
                f"no replay to go on with: {config.replay.min_size:,} transitions come in before learning"
                " goes on (replay.checkpoint=true keeps it in checkpoints)"
            )
        outcome = _drive(config, plan, gpu, session, request, resume, resumed, replay, init)
        session.finished = outcome == "finished"
    return RunResult(
        run_id, outcome, session.counters.agent_steps, session.directory, session.best, session.alarm
    )


def _ray_metrics(run_id: str, resumed: Resumed | None) -> Sequence[Sink]:
    from mario_dist.system.ray_metrics import RayMetricsSink

    before = Counters() if resumed is None else resumed.counters
    return (RayMetricsSink(run_id, before.agent_steps, before.episodes),)


def _settle_emulator(config: RunConfig, before: EnvConfig | None) -> RunConfig:
    """Name the backend that all workers of the run will use, now and when it is resumed, and check the ROM.

    before: the environment of the run that is resumed, whose backend ``auto`` means then. Raises
    ``UserError`` where they are not there.
    """
    env = config.env
    if env.kind != "mario":
        return config
    rom_path(env.rom)
    backend = before.emulator if before is not None and env.emulator == "auto" else env.emulator
    return replace(config, env=replace(env, emulator=resolve_backend(backend), rom=""))


def _env_before(resume: TrainState) -> EnvConfig:
    """The environment of a checkpoint. Those that say ``auto`` were made when there was nes-py only."""
    env = configuration.parse(resume.meta["config"]).env
    return replace(env, emulator="nes-py") if env.kind == "mario" and env.emulator == "auto" else env


def check_network(network: torch.nn.Module, state: TrainState) -> None:
    """Raises ``UserError`` where the checkpoint is another network's."""
    try:
        set_weights(network, network_arrays(part(state.arrays, "learner.")))
    except ValueError as error:
        raise UserError(
            f"the checkpoint of {_name(state)} does not fit this configuration: {error}"
        ) from error


def _beginning(init: TrainState) -> Arrays:
    """A learner's state that has the network of ``init``, for a target network too, and nothing else."""
    network = network_arrays(part(init.arrays, "learner."))
    return {f"{role}.{name}": array for role in ("network", "target") for name, array in network.items()}


def _unlike(env: EnvConfig, init: TrainState) -> str:
    """Of what the network sees and does, what was otherwise where it learned; empty where nothing was."""
    before = configuration.parse(init.meta["config"]).env
    names = ("frame_skip", "frame_size", "hud_rows", "show_buttons", "actions")
    other = [f"env.{name}" for name in names if getattr(before, name) != getattr(env, name)]
    return f", which learned with other {', '.join(other)}" if other else ""


def _name(state: TrainState) -> str:
    return f"{state.meta['run_id']} at {state.meta['counters']['agent_steps']:,} steps"


def worker_states(state: TrainState) -> list[Arrays]:
    return [part(state.arrays, f"worker.{actor}.") for actor in range(int(state.meta["workers"]))]


def _plan(
    config: RunConfig, address: str | None, stack: ExitStack, note: Callable[[str], None]
) -> tuple[Plan, bool]:
    """Who runs where; connects to Ray where the plan needs it."""
    gpu = config.learner.device in ("auto", "cuda") and torch.cuda.is_available()
    plan = make_plan(config, machine.cores(), gpu=gpu, address=address)
    here = address in (None, "local")
    if here:
        try:
            choose_device(config.learner.device)
        except ValueError as error:
            raise UserError(f"learner: {error}") from error
        # Before Ray is started, which takes seconds.
        check_replay(config, plan, machine.available_gib() * 2**30)
    if plan.driver == "local":
        return plan, gpu
    from mario_dist.system.ray_cluster import connected, spare_resources, wait_for_room

    stack.enter_context(
        connected(None if here else address, config.system.dashboard_port, cores=reserved_cores(plan))
    )
    if not here:
        one = replace(config, rollout=replace(config.rollout, actors=1))
        least_cores = reserved_cores(make_plan(one, 1, gpu=gpu, address=address))
        cuda = config.learner.device == "cuda"
        wait_for_room(cores=least_cores, gpu=cuda, wait_s=config.system.wait_s, note=note)
    resources = spare_resources()
    if not here:
        gpu = resources.gpu and config.learner.device in ("auto", "cuda")
        plan = make_plan(config, resources.cores, gpu=gpu, address=address)
        plan = replace(plan, elastic=True)
    check_replay(config, plan, resources.memory_bytes)
    if plan.shards and shard_bytes(config, plan) > resources.largest_memory_bytes:
        raise UserError(
            f"a replay shard takes {shard_bytes(config, plan) / 2**30:.1f} GiB, and no node has that; raise"
            " replay.shards (up to rollout.actors) or lower replay.capacity"
        )
    # Actors that have no room yet come later, but one must have some, and what they feed.
    least = replace(plan, actors=1) if plan.elastic else plan
    if reserved_cores(least) > resources.cores.free:
        raise UserError(
            f"this run reserves {reserved_cores(least)} cores and the cluster has"
            f" {resources.cores.free} free; lower learner.threads, rollout.actors or rollout.threads"
        )
    return plan, gpu and resources.gpu


def _saved_replay(config: RunConfig, resume: TrainState | None, resumed_from: Path | None) -> Path | None:
    """The replay in the checkpoint that is resumed, if it has one that this run can learn from.

    Raises ``UserError`` where it is damaged.
    """
    if resume is None or resumed_from is None or not config.algo.replayed:
        return None
    if _env_before(resume) != config.env:
        return None  # other rewards, actions or pictures
    try:
        return checkpoint_replay(resumed_from)
    except CheckpointError as error:
        raise UserError(f"{error}; remove {resumed_from / 'replay'} to go on with an empty replay") from error


def _drive(
    config: RunConfig,
    plan: Plan,
    gpu: bool,
    session: Session,
    request: StopRequest,
    resume: TrainState | None,
    resumed: Resumed | None,
    replay: Path | None,
    init: TrainState | None,
) -> Outcome:
    """Build the plan's driver and run the topology on it."""
    counters = resumed.counters if resumed is not None else Counters()
    states = worker_states(resume) if resume is not None else []
    if resume is not None and not _workers_fit(config, plan, resume, states):
        session.note("other actors, lanes or environment than in the checkpoint: episodes start anew")
        states = []
    incarnation = resumed.incarnation if resumed is not None else 0
    learner_state = part(resume.arrays, "learner.") if resume is not None else None
    version = 0 if learner_state is None else int(learner_state["version"])
    if plan.driver == "ray":
        # Of networks, this process only plays evaluations' best episodes again: in one thread, as they were.
        torch.set_num_threads(1)
    with ExitStack() as stack:
        driver = _Driver(config, plan, gpu, stack, session.note, request)
        # It needs a place for all its cores at once; rollout actors fit in anywhere.
        learner, feed = driver.learner(learner_state, replay)
        rollouts = driver.rollouts(states, incarnation)
        if init is not None:
            learner.recover(_beginning(init), 1.0)
            version += 1
        return train(
            rollouts,
            learner,
            feed,
            config,
            counters,
            session,
            lambda: request() or session.collapsed,
            version,
            session.recovery,
        )


class _Driver:
    """The parts of a run on the plan's driver, each closed with ``stack``. ``note`` tells the user."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        gpu: bool,
        stack: ExitStack,
        note: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._should_stop = should_stop
        self._note = note
        self._config = config
        self._plan = plan
        self._gpu = gpu
        self._stack = stack

    def rollouts(self, states: list[Arrays], incarnation: int) -> Rollouts[Any, Any]:
        if self._plan.driver == "local":
            return self._closing(LocalRollouts(self._config, self._plan, states, incarnation))
        from mario_dist.system.ray_rollouts import ray_rollouts

        return self._closing(
            ray_rollouts(self._config, self._plan, states, incarnation, gpu=self._gpu, note=self._note)
        )

    def learner(self, state: Arrays | None, saved_replay: Path | None) -> tuple[LearnerPort[Any], Feed[Any]]:
        """The learner, and what feeds it."""
        if not self._config.algo.replayed:
            return self._queue_learner(state), make_queue_feed(self._config, self._plan)
        learner, replay = self._replay_learner(state)
        feed = make_replay_feed(self._config, self._plan, replay)
        if saved_replay is not None and state is not None:
            try:
                replay.load_replay(saved_replay)
            except ValueError as error:
                self._note(f"the checkpoint's replay cannot be used here, it is filled anew: {error}")
            else:
                feed.restore(state)
        return learner, feed

    def _queue_learner(self, state: Arrays | None) -> LearnerPort[Any]:
        if self._plan.driver == "local":
            return local_learner(self._config, self._plan, state)
        from mario_dist.system.ray import ray_learner

        return self._placed(ray_learner(self._config, self._plan, state, gpu=self._gpu))

    def _replay_learner(self, state: Arrays | None) -> tuple[LearnerPort[Any], ReplayPort[Any]]:
        if self._plan.driver == "local":
            here = LocalReplay(self._config, self._plan)
            return local_replay_learner(self._config, self._plan, state, here), here
        from mario_dist.system.ray_replay import ray_replay_learner
        from mario_dist.system.ray_shards import RayShards

        shards = self._closing(RayShards(self._config, self._plan))
        learner = ray_replay_learner(self._config, self._plan, state, shards, gpu=self._gpu)
        return self._placed(learner), shards

    def _placed(self, learner: "RayLearner") -> "RayLearner":
        """One of a cluster has its place before the rollout actors take what is left."""
        self._closing(learner)
        if self._plan.elastic:
            learner.wait_until_there(self._note, self._should_stop)
        return learner

    def _closing[C: Closes](self, opened: C) -> C:
        self._stack.callback(opened.close)
        return opened


def _loads(states: list[Arrays]) -> bool:
    """Whether the native core still reads the machines that a checkpoint kept."""
    try:
        for state in [state for state in states if state][:1]:
            make_emulator("native").load(state["env.machine.0"].tobytes())
    except ValueError:
        return False
    return True


def _workers_fit(config: RunConfig, plan: Plan, resume: TrainState, states: list[Arrays]) -> bool:
    """Whether the workers of a checkpoint can go on under this plan."""
    same_env = _env_before(resume) == config.env
    if same_env and config.env.kind == "mario" and config.env.emulator == "native":
        same_env = _loads(states)
    # Of each group of lanes.
    lanes = [[len(v) for k, v in state.items() if k.endswith(".clock.length")] for state in states if state]
    same_lanes = all(sum(n) == plan.lanes and len(n) == config.rollout.groups for n in lanes)
    same_actors = len(states) == plan.actors or plan.elastic
    return same_env and same_actors and same_lanes


def _resumed(state: TrainState) -> Resumed:
    meta: Any = state.meta
    best = meta["best"]
    return Resumed(
        counters=Counters(**meta["counters"]),
        mlflow_run_id=meta["mlflow_run_id"],
        best=None if best is None else (float(best[0]), float(best[1])),
        incarnation=int(meta["incarnation"]) + 1,
        wall_s=float(meta.get("wall_s", 0.0)),
        collapse_best={name: float(best) for name, best in meta.get("collapse_best", {}).items()},
    )


def resume_config(state: TrainState, overrides: list[str]) -> RunConfig:
    """The configuration that a checkpoint was trained with, with overrides."""
    return configuration.override(state.meta["config"], overrides)
