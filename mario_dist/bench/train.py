"""The whole training loop, ours beside the peers', each in a process of its own, one after the other."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mario_dist import machine
from mario_dist.bench.peers import Settings, check_peer, run_peer
from mario_dist.bench.peers.process import run_in_child

OURS = "mario-dist"
VARIANTS: dict[str, dict[str, str]] = {
    "small": {"torso": "small"},
    "nes-py": {"emulator": "nes-py"},
}
"""Ours once more: with the default configuration's small CNN, and on the slow emulator."""
_MODULES = {"PPO": "ours", "DQN": "ours_apex", "IMPALA": "ours_impala"}
_TIMEOUT_S = 1800.0


def bench_train(
    settings: Settings, peers: Sequence[str], variants: Sequence[str], announce: Callable[[str], None]
) -> dict[str, Any]:
    """``{"machine", "settings", "mario-dist": {...}, "mario-dist VARIANT": {...}, peer: {...},
    "ratio": {peer: ours / theirs}, "ratio_of": {"mario-dist VARIANT": {peer: ...}}}``.

    Raises ``UserError`` where a peer is unknown, missing or lacks the algorithm, before anything is measured,
    and where one fails.
    """
    for peer in peers:
        check_peer(peer, settings)
    document: dict[str, Any] = {"machine": machine.describe(), "settings": dataclasses.asdict(settings)}
    # The peers' threads are what the caller asked for; ours are what our plan says.
    ours = {OURS: settings} | {
        f"{OURS} {name}": dataclasses.replace(settings, **VARIANTS[name])  # type: ignore[arg-type]
        for name in variants
    }
    for name, workload in ours.items():
        announce(f"measuring {name}")
        module = f"{__package__}.{_MODULES[settings.algo]}"
        result = run_in_child(module, dataclasses.replace(workload, torch_threads=0), _TIMEOUT_S)
        document[name] = dataclasses.asdict(result)
    for peer in peers:
        announce(f"measuring {peer}")
        document[peer] = dataclasses.asdict(run_peer(peer, settings, _TIMEOUT_S))

    def ratios(name: str) -> dict[str, float]:
        rate = document[name]["agent_steps_per_s"]
        return {peer: rate / document[peer]["agent_steps_per_s"] for peer in peers}

    return {**document, "ratio": ratios(OURS), "ratio_of": {name: ratios(name) for name in ours}}
