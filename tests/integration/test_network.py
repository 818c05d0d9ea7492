"""The network that benchmarks give their machines: they hear each other until a cable is pulled."""

import subprocess
import sys

import pytest

from mario_dist.bench.network import network

SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=1) as connection:
    print(connection.recv(100).decode())
"""
LISTEN = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listens", flush=True)
    while True:
        connection, (peer, _) = server.accept()
        connection.sendall(peer.encode())
        connection.close()
"""


def test_machines_have_addresses_and_are_silent_once_their_cable_is_pulled() -> None:
    with network() as among:
        if among is None:
            pytest.skip("needs the right to make network namespaces, and `ip`")
        here, _ = among.join("listener")
        there, address = among.join("speaker")
        listening = subprocess.Popen(
            [*here, sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert listening.stdout is not None
            assert listening.stdout.readline() == "listens\n"
            speak = [*there, sys.executable, "-c", SAY, f"{among.address.rpartition('.')[0]}.2"]
            heard = subprocess.run(speak, capture_output=True, text=True, timeout=30)
            assert heard.stdout == f"{address}\n"
            among.cut("listener")
            assert "timed out" in subprocess.run(speak, capture_output=True, text=True, timeout=30).stderr
        finally:
            listening.kill()
            listening.communicate()
        bridge = among.bridge
    assert bridge not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    assert bridge not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
