"""Ray itself: started here or joined, and what it has to spare."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError, RayError
from ray.util.placement_group import placement_group, remove_placement_group

from mario_dist import machine
from mario_dist.errors import UserError
from mario_dist.system.plan import Cores
from mario_dist.system.ray import LEARNER, get, wait_a_while

_SETTLE_S = 5.0
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has to spare."""

    cores: Cores
    gpu: bool
    memory_bytes: float
    largest_memory_bytes: float
    """Of one node."""


@contextmanager
def connected(address: str | None, dashboard_port: int | None, *, cores: int) -> Iterator[None]:
    """Ray, started here with room for ``cores`` (address None) or joined.

    Raises ``UserError`` where it can't be.
    """
    local = address is None
    if local and dashboard_port is not None:
        _check_port(dashboard_port)
    try:
        if local:
            _start(dashboard_port, max(machine.cores(), cores))
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
            raise UserError(
                f"Ray at {address} wants a token: set RAY_AUTH_MODE=token, and put the cluster's token into"
                " ~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot reach Ray at {address or 'local'} ({reason}); start it: ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts meanwhile listens on 127.0.0.1 alone, as it does on macOS and Windows.

    Ray has no public way to that: ``_node_ip_address`` turns loopback into the machine's address again, and
    the constant's environment variable is read at the import, too early for a process that may join a
    cluster instead.
    """
    several_machines = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several_machines


def _start(dashboard_port: int | None, cores: int) -> None:
    for attempt in range(_STARTS):
        try:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=dashboard_port is not None,
                    dashboard_port=dashboard_port,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            with suppress(OSError):  # Ray lets every user of the machine read it
                (Path.home() / ".ray" / "auth_token").chmod(0o600)
            return
        except Exception as error:
            # Ray gives its processes 30 s, too little on a busy machine, and has no type for that.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise UserError("this machine is too busy to start Ray; try again later") from error


def spare_resources() -> Resources:
    """What others hold is not there for this run: it would wait for it without a word."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    learners = [node for node in alive if LEARNER in node]

    def most(name: str, nodes: list[dict[str, float]]) -> float:
        return max((node.get(name, 0.0) for node in nodes), default=0.0)

    cores = max(1, int(free.get("CPU", 1)))
    largest = max(1, min(cores, int(most("CPU", alive))))
    return Resources(
        Cores(cores, largest, max(1, min(cores, int(most("CPU", learners or alive)))), bool(learners)),
        free.get("GPU", 0) >= 1,
        free.get("memory", 0.0),
        most("memory", learners or alive),
    )


def wait_for_room(*, cores: int, gpu: bool, wait_s: float, note: Callable[[str], None]) -> None:
    """Wait until a joined cluster has so many cores to spare, and a GPU where one is asked for.

    It is asked for meanwhile, so that an autoscaler brings it. Raises ``UserError`` after ``wait_s`` seconds.
    """
    wanted = {"CPU": cores, **({"GPU": 1} if gpu else {})}

    def missing() -> list[str]:
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return [f"{free.get(k, 0):.0f} of {n} free {k}s" for k, n in wanted.items() if free.get(k, 0) < n]

    if not (lacking := missing()):
        return
    what = " and ".join(lacking)
    if wait_s > 0:
        note(f"the cluster has {what}; waiting up to {wait_s:,.0f} s for it (system.wait_s)")
    asked = placement_group([{name: 1.0} for name, count in wanted.items() for _ in range(count)])
    ready: Any = asked.ready()
    try:
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if wait_a_while([ready]):
                get(ready)
                break
    finally:
        remove_placement_group(asked)
    # What the placement held is free a moment later.
    until = time.monotonic() + _SETTLE_S
    while time.monotonic() < until:
        if not missing():
            return
        time.sleep(0.1)
    raise UserError(
        f"the cluster has {what} (ray status shows who holds what); add nodes, stop what runs there,"
        " or wait longer with system.wait_s"
    )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        # As Ray's own server does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} is taken ({error.strerror}); choose another system.dashboard_port"
            ) from error
