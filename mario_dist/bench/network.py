"""Machines of one's own in a network of their own, for one that has neither: Linux network namespaces."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_PREFIX_LENGTH = 24


@dataclass
class Network:
    """A bridge, at whose ``address`` this machine is, and the namespaces that hang on it."""

    bridge: str
    address: str
    _machines: list[str] = field(default_factory=list)
    _joined: int = 0

    def join(self, name: str) -> tuple[list[str], str]:
        """A new machine: the words before a command that runs there, and its address."""
        self._joined += 1
        address = f"{self.address.rpartition('.')[0]}.{self._joined + 1}"
        namespace, outside = self._names(name)
        _ip("netns", "add", namespace)
        self._machines.append(name)
        _ip(*("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace))
        _ip("link", "set", outside, "master", self.bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{address}/{_PREFIX_LENGTH}", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        return ["ip", "netns", "exec", namespace], address

    def cut(self, name: str) -> None:
        """Pull the cable: nobody hears another word from it, not even that its connections are closed."""
        _ip("link", "set", self._names(name)[1], "down")

    def leave(self, name: str) -> None:
        """Its processes have ended."""
        namespace, outside = self._names(name)
        self._machines.remove(name)
        _ip("link", "del", outside)
        _ip("netns", "del", namespace)

    def close(self) -> None:
        for name in list(self._machines):
            self.leave(name)

    def _names(self, name: str) -> tuple[str, str]:
        # A device's name has at most 15 characters.
        return f"{self.bridge}-{name}", f"{self.bridge}{name[:4]}"


@contextmanager
def network() -> Iterator[Network | None]:
    """None where this user may not make one, or there is no `ip`."""
    number = os.getpid()
    bridge, address = f"md{number}", f"10.213.{number % 254 + 1}.1"
    if os.geteuid() != 0 or shutil.which("ip") is None or not _may(bridge):
        yield None
        return
    made = Network(bridge, address)
    try:
        _ip("addr", "add", f"{address}/{_PREFIX_LENGTH}", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield made
    finally:
        made.close()
        _ip("link", "del", bridge)


def _may(bridge: str) -> bool:
    command = ["ip", "link", "add", bridge, "type", "bridge"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
