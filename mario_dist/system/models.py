"""Policies as versions of registered models: packed, registered, fetched and verified."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from mario_dist import config as configuration
from mario_dist.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint
from mario_dist.config import RunConfig
from mario_dist.env import make_env
from mario_dist.env.actions import action_names
from mario_dist.errors import UserError
from mario_dist.evaluation import Player
from mario_dist.learner import network_arrays
from mario_dist.nets import Network, get_weights
from mario_dist.paths import runs_dir
from mario_dist.registry import (
    CHECKPOINT,
    REPLAYED,
    ModelRegistry,
    PackageError,
    Version,
    evaluation_metrics,
    load_model,
    write_model,
)
from mario_dist.store import RunStore
from mario_dist.system.build import make_network
from mario_dist.system.judging import Policy
from mario_dist.system.run import check_network
from mario_dist.types import F32, U8, part

WEIGHTS = "mario_dist.weights_sha256"
_KEPT = ("run_id", "counters", "config", "wall_s", "origin")
_LANES, _STEPS_BETWEEN, _LOOKS = 8, 16, 4
_TOLERANCE = 1e-3
"""Of scores, relative to the largest: other CPUs and versions of PyTorch add up in another order."""


class Scores(nn.Module):
    """A network as others use it: uint8 stacks [B, K, H, W] to float32 [B, A], the log-odds of actions or,
    of a Q-network, their values."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, stack_BKHW: Tensor) -> Tensor:
        scores: Tensor = self.network(stack_BKHW).logits_BA
        return scores


def policy_of(state: TrainState, source: str, rom: Path | None = None) -> Policy:
    """The policy of a checkpoint.

    It plays on the fastest emulator of this machine, with this machine's ROM or ``rom``, whatever it was
    trained on: all play the same game. Raises ``UserError`` where it does not fit its own configuration.
    """
    config = configuration.parse(state.meta["config"])
    with torch.device("meta"):
        # A configuration may ask for any size; here its network takes no memory.
        check_network(make_network(config), state)
    network = make_network(config)
    check_network(network, state)
    run_id, steps = str(state.meta["run_id"]), int(state.meta["counters"]["agent_steps"])
    return Policy(network.eval(), here(config, rom), source, run_id, steps)


def here(config: RunConfig, rom: Path | None = None) -> RunConfig:
    """The configuration with this machine's emulator and ROM."""
    return replace(config, env=replace(config.env, emulator="auto", rom=str(rom or "")))


def model_name(config: RunConfig) -> str:
    """``mario-<level set>-<algo>``."""
    levels = config.env.levels
    named = "+".join(levels)
    if len(levels) > 4:
        named = f"{len(levels)}-levels-{hashlib.sha256(named.encode()).hexdigest()[:6]}"
    return f"mario-{named}-{config.algo.name}"


def pack(directory: Path, policy: Policy, state: TrainState, report: Mapping[str, Any]) -> None:
    """Write the package of a policy, whose checkpoint is ``state``, with the report that it earned."""
    actions = action_names(policy.config.env.actions)
    stack_BKHW = observations(policy)
    network = policy.network.eval().requires_grad_(False)
    write_model(directory, Scores(network), stack_BKHW, actions)
    weights = network_arrays(part(state.arrays, "learner."))
    kept = {key: state.meta[key] for key in _KEPT if key in state.meta}
    light = TrainState(
        {f"learner.network.{name}": array for name, array in weights.items()},
        {**kept, "actions": list(actions), "evaluation": dict(report)},
    )
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        saved = save_checkpoint(Path(folder), int(state.meta["counters"]["agent_steps"]), light)
        saved.rename(directory / CHECKPOINT)
    save_file({"stack": stack_BKHW, "scores": scores(network, stack_BKHW)}, directory / REPLAYED)
    (directory / REPLAYED).chmod(0o644)  # as the other files, for whoever else verifies it


def observations(policy: Policy) -> U8:
    """Stacks, uint8 [B, K, H, W], that the policy sees when it plays: always the same ones."""
    env = make_env(replace(policy.config.env, noop_max=30), _LANES, (0,), threads=1)
    try:
        player = Player(policy.network, env, seed=0, greedy=False)
        looks = []
        for _ in range(_LOOKS):
            for _ in range(_STEPS_BETWEEN):
                player.step()
            looks.append(player.stack_NKHW())
        return np.concatenate(looks)
    finally:
        env.close()


def scores(network: Network, stack_BKHW: U8) -> F32:
    """float32 [B, A]."""
    with torch.no_grad():
        return np.asarray(Scores(network)(torch.from_numpy(stack_BKHW)).numpy(), dtype=np.float32)


def weights_sha256(network: Network) -> str:
    """By which the same network is found again, wherever it comes from."""
    digest = hashlib.sha256()
    for name, array in sorted(get_weights(network, 0).arrays.items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


def register(
    registry: ModelRegistry,
    store: RunStore,
    state: TrainState,
    source: str,
    kind: str,
    report_of: Callable[[Policy], Mapping[str, Any]],
) -> tuple[Version, bool]:
    """Make a checkpoint the next version of its model, and say whether it was not one already.

    source: where the checkpoint is. kind: best, final or another word for people. report_of: judges it.
    Raises ``UserError``.
    """
    policy = policy_of(state, source)
    name, weights = model_name(policy.config), weights_sha256(policy.network)
    if (known := _known(registry, name, weights)) is not None:
        return known, False
    report = report_of(policy)
    run = store.find_run(policy.run_id)
    low, high = report["clear_rate_ci"]
    tags = {
        WEIGHTS: weights,
        "mario_dist.run_id": str(policy.run_id),
        "mario_dist.kind": kind,
        "mario_dist.agent_steps": str(policy.agent_steps),
        "mario_dist.algo": policy.config.algo.name,
        "mario_dist.levels": ",".join(policy.config.env.levels),
        "mario_dist.clear_rate": f"{report['clear_rate']:.4g}",
        "mario_dist.clear_rate_ci": f"{low:.4g} to {high:.4g}",
        "mario_dist.protocol": json.dumps(report["protocol"]),
        "mario_dist.source": source,
        **({} if run is None else {"mario_dist.store": store.where, "mario_dist.directory": run.directory}),
        **({} if run is None or run.git_commit is None else {"mario_dist.git_commit": run.git_commit}),
    }
    protocol = report["protocol"]["name"]
    with tempfile.TemporaryDirectory() as folder, store.exclusive(f"register {name}"):
        if (known := _known(registry, name, weights)) is not None:  # by another process, just now
            return known, False
        package = Path(folder) / "package"
        pack(package, policy, state, report)
        made = registry.register(
            name,
            package,
            title=f"{policy.run_id}-{policy.agent_steps}",
            description=f"cleared {report['clear_rate']:.0%} of {report['episodes']} episodes ({protocol})",
            tags=tags,
            metrics=evaluation_metrics(report),
            agent_steps=int(policy.agent_steps or 0),
            mlflow_run_id=None if run is None else run.mlflow_run_id,
        )
    return made, True


def _known(registry: ModelRegistry, name: str, weights: str) -> Version | None:
    return next((v for v in registry.versions(name) if v.tags.get(WEIGHTS) == weights), None)


def cached_checkpoint(registry: ModelRegistry, version: Version) -> Path:
    """The checkpoint of a version on this machine. Raises ``UserError`` where it must not be used."""
    return registry.fetch(version, runs_dir() / "models") / CHECKPOINT


def fetched_policy(registry: ModelRegistry, version: Version) -> Policy:
    """The policy of a version on this machine. Raises ``UserError`` where it must not be used."""
    try:
        return policy_of(load_checkpoint(cached_checkpoint(registry, version)), version.target)
    except CheckpointError as error:
        raise UserError(str(error)) from error


def verify(registry: ModelRegistry, version: Version) -> Policy:
    """The policy of a version, got anew from the registry, where it is what was registered.

    Its files must be the registered ones, and both its checkpoint's network and its MLflow model must say of
    the replayed observations what the network said when it was registered. Raises ``PackageError``, a
    ``UserError``, where it must not be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = registry.fetch(version, Path(folder))
        try:
            return _verified(package, version)
        except PackageError as error:
            raise PackageError(f"{version.target} must not be used: {error}") from error


def _verified(package: Path, version: Version) -> Policy:
    try:
        state = load_checkpoint(package / CHECKPOINT)
        policy = policy_of(state, version.target)
        replayed = load_file(package / REPLAYED)
        stack_BKHW, wanted_BA = replayed["stack"], replayed["scores"]
        found_BA = scores(policy.network, stack_BKHW)
    except Exception as error:  # whoever registered it, and whatever is wrong with it
        raise PackageError(f"cannot read it: {' '.join(str(error).split())[:300]}") from error
    if policy.config.env.kind != "mario" or model_name(policy.config) != version.name:
        raise PackageError(f"it plays as {model_name(policy.config)}, which is not what the model is called")
    if not len(stack_BKHW) or not _same(found_BA, wanted_BA):
        raise PackageError("its checkpoint is another network than the one that was registered")
    if not _same(load_model(package)(stack_BKHW), wanted_BA):
        raise PackageError("its MLflow model is another network than the one that was registered")
    return policy


def _same(found_BA: F32, wanted_BA: F32) -> bool:
    if found_BA.shape != wanted_BA.shape or not np.isfinite([found_BA, wanted_BA]).all():
        return False
    scale = max(1.0, float(np.abs(wanted_BA).max()))
    return bool(np.abs(found_BA - wanted_BA).max() <= _TOLERANCE * scale)
