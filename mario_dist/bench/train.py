"""The whole training loop, ours beside the peers', each in a process of its own, one after the other."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mario_dist import machine
from mario_dist.bench.peers import PeerSettings, run_peer
from mario_dist.bench.peers.process import run_in_child

OURS = "mario-dist"
_TIMEOUT_S = 1800.0


def bench_train(
    settings: PeerSettings, peers: Sequence[str], announce: Callable[[str], None]
) -> dict[str, Any]:
    """``{"machine", "settings", "mario-dist": {...}, peer: {...}, "ratio": {peer: ours / theirs}}``.

    Raises ``UserError`` where a peer is unknown, missing or fails.
    """
    document: dict[str, Any] = {"machine": machine.describe(), "settings": dataclasses.asdict(settings)}
    announce(f"measuring {OURS}")
    # The peers' threads are what the caller asked for; ours are what our plan says.
    ours = run_in_child("mario_dist.bench.ours", dataclasses.replace(settings, torch_threads=0), _TIMEOUT_S)
    document[OURS] = dataclasses.asdict(ours)
    ratio = {}
    for peer in peers:
        announce(f"measuring {peer}")
        theirs = run_peer(peer, settings, _TIMEOUT_S)
        document[peer] = dataclasses.asdict(theirs)
        ratio[peer] = ours.agent_steps_per_s / theirs.agent_steps_per_s
    return {**document, "ratio": ratio}
