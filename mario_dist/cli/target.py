"""TARGETs: from what a person names to a checkpoint, and to the policy in it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from mario_dist.checkpoint import (
    CheckpointError,
    TrainState,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
)
from mario_dist.cli.config import read_config
from mario_dist.env.actions import action_names
from mario_dist.errors import UserError
from mario_dist.nets import ActorCritic
from mario_dist.paths import runs_dir
from mario_dist.registry import PREFIX as MODELS
from mario_dist.registry import ModelRegistry, default_tracking_uri, parse_reference
from mario_dist.storage import StorageError, default_storage
from mario_dist.store import RunStore, default_url
from mario_dist.system.build import make_network
from mario_dist.system.judging import Policy
from mario_dist.zoo import PREFIX, zoo_checkpoint


def run_directory(ref: str) -> Path:
    """The directory of a run: by path, by id or by a unique beginning of its id.

    Raises ``UserError`` where there is no such run.
    """
    path = Path(ref)
    if (path / "checkpoints").is_dir():
        return path
    with RunStore(default_url()) as store:
        run = store.get_run(ref)
    # The row remembers where the run was made; the whole runs folder may have been moved or copied since.
    here = next((d for d in (runs_dir() / run.id, Path(run.directory)) if d.is_dir()), None)
    if here is not None:
        return here
    return runs_dir() / run.id if fetch_run(run.id) else Path(run.directory)


def fetch_run(run_id: str) -> bool:
    """Bring what ``runs_dir`` lacks of a run's checkpoints from shared storage; whether they are there.

    Raises ``UserError`` where the storage fails.
    """
    storage = default_storage()
    try:
        return storage is not None and storage.fetch(run_id, runs_dir() / run_id)
    except StorageError as error:
        raise UserError(str(error)) from error


def find_checkpoint(target: str) -> tuple[Path, str]:
    """The checkpoint of a TARGET, and what to call it: for good, whatever the TARGET will mean later.

    A TARGET is a checkpoint's path, ``zoo:NAME``, a registered model or a run, whose best checkpoint is
    meant, or its newest. Raises ``UserError`` where the run or its checkpoints are not there.
    """
    if target.startswith(MODELS):
        from mario_dist.system.models import cached_checkpoint

        registry = ModelRegistry(default_tracking_uri())
        version = registry.version(parse_reference(target))
        return cached_checkpoint(registry, version), version.target
    if target.startswith(PREFIX):
        path = zoo_checkpoint(target.removeprefix(PREFIX))
        return path, str(path.resolve())
    path = Path(target)
    if not ((path / "manifest.json").is_file() or path.name.startswith("step-")):
        checkpoints = run_directory(target) / "checkpoints"
        found = best_checkpoint(checkpoints) or next(iter(list_checkpoints(checkpoints)), None)
        if found is None:
            raise UserError(f"{target} has no checkpoint yet")
        path = found
    return path, str(path.resolve())


def read_state(target: str) -> tuple[TrainState, str]:
    """What is in the checkpoint of a TARGET, and what to call it.

    Raises ``UserError`` where it can't be found or read.
    """
    path, name = find_checkpoint(target)
    try:
        return load_checkpoint(path.resolve()), name
    except CheckpointError as error:
        raise UserError(str(error)) from error


_CERTAIN = 1e4
"""A logit beside zeros that no sample misses."""

BASELINES = ("baseline:random", "baseline:right")
"""TARGETs that were never trained: each action of the default configuration equally often, or right alone."""


def load_policy(target: str, rom: Path | None = None) -> Policy:
    """The policy of a TARGET, as ``system.models.policy_of`` reads it.

    Raises ``UserError`` where it can't be found, read or does not fit its own configuration.
    """
    from mario_dist.system.models import here, policy_of

    if target in BASELINES:
        config = read_config([])
        network = make_network(config)
        assert isinstance(network, ActorCritic)
        with torch.no_grad():
            for parameter in network.policy.parameters():
                parameter.zero_()
            if target == "baseline:right":
                network.policy.bias[action_names(config.env.actions).index("right")] = _CERTAIN
        return Policy(network.eval(), here(config, rom), target)
    if target.startswith("baseline:"):
        raise UserError(f"there is no {target}; baselines are {' and '.join(BASELINES)}")
    return policy_of(*read_state(target), rom)


def resume_state(ref: str) -> tuple[TrainState, Path]:
    """The newest state of a run, or the one at a checkpoint's path, and the checkpoint's path.

    Raises ``UserError`` where it is damaged, naming it and the one before it.
    """
    path = find_checkpoint(ref)[0] if ref.startswith((PREFIX, MODELS)) else Path(ref)
    if (path / "manifest.json").is_file() or path.name.startswith("step-"):
        candidates = [path, *(p for p in list_checkpoints(path.parent) if p.name < path.name)]
    else:
        candidates = list_checkpoints(run_directory(ref) / "checkpoints")
    if not candidates:
        raise UserError(f"{ref} has no checkpoint to resume from; start it anew with mario-dist train")
    newest, *older = candidates
    try:
        state = load_checkpoint(newest)
    except CheckpointError as error:
        offer = f"; the one before it: mario-dist train --resume {older[0]}" if older else ""
        raise UserError(f"{error}{offer}") from error
    if "workers" not in state.meta:
        raise UserError(f"{ref} is a network alone; begin with it by mario-dist train --init {ref}")
    return state, newest


def newest_state(run_id: str, note: Callable[[str], None]) -> tuple[TrainState, Path] | None:
    """The newest state of a run that is not damaged, and its checkpoint's path; None where it has none.

    What shared storage has of it is brought here first, and again in the place of what is damaged here.
    Raises ``UserError`` where that fails, or no checkpoint can be used.
    """
    fetch_run(run_id)
    folder = runs_dir() / run_id / "checkpoints"
    problem: CheckpointError | None = None
    for path in list_checkpoints(folder):
        try:
            state = _load_or_fetch(run_id, path)
        except CheckpointError as error:
            problem = error
            note(f"{error}; trying the one before it")
            continue
        if "workers" not in state.meta:
            raise UserError(f"{path} is a network alone; begin with it by --init, under another --run-id")
        return state, path
    if problem is not None:
        raise UserError(f"{run_id} has no checkpoint that can be used; choose another --run-id to begin anew")
    return None


def _load_or_fetch(run_id: str, path: Path) -> TrainState:
    """A checkpoint, from shared storage where the one here is damaged. Raises ``CheckpointError``."""
    try:
        return load_checkpoint(path)
    except CheckpointError:
        if default_storage() is None:
            raise
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    try:
        fetch_run(run_id)
    finally:
        if not path.exists():
            aside.rename(path)
    return load_checkpoint(path)
