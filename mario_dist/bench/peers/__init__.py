"""The measured peers: Stable-Baselines3 and RLlib on the same level, picture, network and PPO settings.

They run on the environment stack that their users have (``gym_stack``), in processes of their own;
``sb3_vectorenv`` is SB3 on our environment, which tells emulator and training loop apart. Nothing
here imports a peer: ``run_peer`` works, and says what is missing, where the dev group is not installed.
"""

import importlib.util

from mario_dist.bench.peers.process import run_in_child
from mario_dist.bench.peers.settings import DQNSettings, PeerResult, PeerSettings, Settings
from mario_dist.errors import UserError

PEERS = {"sb3": "stable_baselines3", "rllib": "ray", "sb3_vectorenv": "stable_baselines3"}
"""The package that each peer needs."""
DQN_PEERS = ("sb3", "rllib")
"""The peers that run the Q-learning workload too, by their DQN."""

__all__ = ["DQN_PEERS", "PEERS", "DQNSettings", "PeerResult", "PeerSettings", "Settings", "run_peer"]


def run_peer(name: str, settings: Settings, timeout_s: float = 1800.0) -> PeerResult:
    """Measure the peer ``name`` (a key of ``PEERS``) in a fresh process.

    Raises ``UserError`` where there is no such peer, its package is not installed, it fails or it takes
    longer than ``timeout_s``.
    """
    if name not in PEERS:
        raise UserError(f"there is no peer {name!r}; peers are {', '.join(PEERS)}")
    q_learning = isinstance(settings, DQNSettings)
    if q_learning and name not in DQN_PEERS:
        raise UserError(f"the peer {name} has no DQN; {' and '.join(DQN_PEERS)} have")
    if settings.torso != "nature":
        raise UserError(f"the peers have no torso {settings.torso!r}; they run nature")
    if importlib.util.find_spec(PEERS[name]) is None:
        raise UserError(f"the peer {name} needs {PEERS[name]}; install the dev group: uv sync")
    return run_in_child(f"{__name__}.{name}{'_dqn' if q_learning else ''}", settings, timeout_s)
