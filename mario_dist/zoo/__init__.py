"""Trained policies that come with the package: ``zoo:1-1`` and others.

Each is a checkpoint, in a folder of its name, of the network alone; its meta says how it was trained and
what a protocol with a seed of its own said of it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mario_dist.checkpoint import TrainState, load_checkpoint, save_checkpoint
from mario_dist.errors import UserError
from mario_dist.types import Arrays, part

PREFIX = "zoo:"
_PLACE = Path(__file__).parent
_NETWORK = "learner.network."
_KEPT = ("run_id", "counters", "config", "wall_s")
"""Of a checkpoint's meta; the rest says how to train on."""


def zoo_names(place: Path = _PLACE) -> list[str]:
    return sorted(path.parent.name for path in place.glob("*/manifest.json"))


def zoo_checkpoint(name: str, place: Path = _PLACE) -> Path:
    """The checkpoint of ``zoo:<name>``. Raises ``UserError`` where there is none."""
    names = zoo_names(place)
    if name not in names:
        known = ", ".join(PREFIX + known for known in names) or "no policy"
        raise UserError(f"there is no {PREFIX}{name}; the zoo has {known}")
    return place / name


def zoo_entry(name: str, place: Path = _PLACE) -> Mapping[str, Any]:
    """What is known of a policy: run_id, counters, config, wall_s, evaluation and origin."""
    return load_checkpoint(zoo_checkpoint(name, place)).meta


def half_precision(state: TrainState) -> TrainState:
    """The network alone, as float16: half the download, and it plays as before (its report is of this)."""
    network = part(state.arrays, _NETWORK)
    arrays: Arrays = {_NETWORK + name: array.astype(np.float16) for name, array in network.items()}
    return TrainState(arrays, {key: state.meta[key] for key in _KEPT if key in state.meta})


def add_to_zoo(
    name: str,
    state: TrainState,
    evaluation: Mapping[str, Any],
    origin: Mapping[str, Any],
    place: Path = _PLACE,
) -> Path:
    """Keep a ``half_precision`` state as ``zoo:<name>``, in place of what had that name.

    evaluation: an ``EvalReport`` of it as a mapping. origin: how it was trained, for people to read.
    """
    meta = {**state.meta, "evaluation": dict(evaluation), "origin": dict(origin)}
    steps = int(state.meta["counters"]["agent_steps"])
    written = save_checkpoint(place, steps, TrainState(state.arrays, meta))
    shutil.rmtree(place / name, ignore_errors=True)
    return written.rename(place / name)
