"""The measured peers: Stable-Baselines3 and RLlib on the same level, picture, network and settings.

They run on the environment stack that their users have (``gym_stack``), in processes of their own;
``sb3_vectorenv`` is SB3 on our environment, which tells emulator and training loop apart. Nothing
here imports a peer: ``run_peer`` works, and says what is missing, where the dev group is not installed.
"""

import importlib.util

from mario_dist.bench.peers.process import run_in_child
from mario_dist.bench.peers.settings import (
    DQNSettings,
    ImpalaSettings,
    PeerResult,
    PeerSettings,
    Settings,
)
from mario_dist.errors import UserError

PEERS = {"sb3": "stable_baselines3", "rllib": "ray", "sb3_vectorenv": "stable_baselines3"}
"""The package that each peer needs."""
MODULES = {
    "PPO": {"sb3": "sb3", "rllib": "rllib", "sb3_vectorenv": "sb3_vectorenv"},
    "DQN": {"sb3": "sb3_dqn", "rllib": "rllib_dqn"},
    "IMPALA": {"rllib": "rllib_impala"},
}
"""For each algorithm, the peers that have it and the modules that measure them."""

__all__ = [
    "MODULES",
    "PEERS",
    "DQNSettings",
    "ImpalaSettings",
    "PeerResult",
    "PeerSettings",
    "Settings",
    "check_peer",
    "run_peer",
]


def check_peer(name: str, settings: Settings) -> None:
    """Raises ``UserError`` where there is no peer ``name``, its package is not installed or it cannot run
    ``settings``."""
    if name not in PEERS:
        raise UserError(f"there is no peer {name!r}; peers are {', '.join(PEERS)}")
    able = MODULES[settings.algo]
    if name not in able:
        verb = "has" if len(able) == 1 else "have"
        raise UserError(f"the peer {name} has no {settings.algo}; {' and '.join(able)} {verb}")
    if settings.torso != "nature":
        raise UserError(f"the peers have no torso {settings.torso!r}; they run nature")
    if importlib.util.find_spec(PEERS[name]) is None:
        raise UserError(f"the peer {name} needs {PEERS[name]}; install the dev group: uv sync")


def run_peer(name: str, settings: Settings, timeout_s: float = 1800.0) -> PeerResult:
    """Measure the peer ``name`` (a key of ``PEERS``) in a fresh process.

    Raises ``UserError`` as ``check_peer`` does, and where it fails or takes longer than ``timeout_s``.
    """
    check_peer(name, settings)
    return run_in_child(f"{__name__}.{MODULES[settings.algo][name]}", settings, timeout_s)
