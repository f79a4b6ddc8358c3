"""Machines as network namespaces: what joins them, what parts them, and that nothing is left of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.lab import wait_for
from tests.chaos.network import Host, Network, NoNamespacesError

pytestmark = pytest.mark.slow

HEAR = "import socket\nserver = socket.create_server(('', 9000))\nwhile True: server.accept()[0].sendall(bytes({size}))"
ASK = """
import socket, sys, time
began, count = time.monotonic(), 0
link = socket.create_connection((sys.argv[1], 9000), timeout=float(sys.argv[2]))
while part := link.recv(1 << 20): count += len(part)
print(count, time.monotonic() - began)
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    with Network(tmp_path) as network:
        yield [network.add() for _ in range(3)]


def listen(host: Host, size: int = 1) -> None:
    host.start([sys.executable, "-c", HEAR.format(size=size)], Path("/"))
    wait_for(lambda: ask(host, host), 20, "a machine hears itself")


def ask(host: Host, other: Host, patience: float = 5) -> list[float]:
    """Bytes that came and seconds; empty where nothing was heard."""
    words = [sys.executable, "-c", ASK, other.address, str(patience)]
    process = host.start(words, Path("/"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return [float(word) for word in process.communicate(timeout=60)[0].split()]


def test_machines_hear_each_other_until_a_link_is_cut_or_a_firewall_is_between_them(hosts: list[Host]) -> None:
    one, other, third = hosts
    listen(one)
    assert ask(other, one)
    one.refuse(other.address)
    assert not ask(other, one, 0.3)
    assert ask(third, one), "the others still reach it"
    one.mend()
    assert ask(other, one)
    one.cut()
    assert not ask(third, one, 0.3)
    one.mend()
    assert ask(third, one)


def test_a_link_has_the_bandwidth_that_it_was_given(hosts: list[Host]) -> None:
    one, other, _ = hosts
    listen(one, size=2_000_000)
    for rate in (10e6, 40e6):
        one.shape(rate)
        count, seconds = ask(other, one)
        assert count == 2_000_000
        assert 0.5 < 8 * count / seconds / rate < 1.15  # the first burst costs no time


def test_a_killed_machine_ends_with_all_its_processes_and_comes_back_empty(hosts: list[Host]) -> None:
    one, other, _ = hosts
    process = one.start(["sh", "-c", "setsid sleep 100 & exec sleep 100"], Path("/"))
    wait_for(lambda: len(one.pids()) == 2, 5, "two processes")
    one.kill()
    assert process.wait(5) != 0
    assert not one.pids()
    one.boot()
    listen(one)
    assert ask(other, one)


def test_a_machine_has_its_own_name_which_leads_to_no_address_of_use(hosts: list[Host]) -> None:
    look = "import socket; print(socket.gethostname(), socket.gethostbyname(socket.gethostname()))"
    said = hosts[1].start([sys.executable, "-c", look], Path("/"), stdout=subprocess.PIPE).communicate()[0]
    assert said.decode().split() == ["node-2", "127.0.1.1"]


def test_nothing_outlives_a_laboratory_that_is_killed(tmp_path: Path) -> None:
    words = f"""
from pathlib import Path; from tests.chaos.network import Network; import time
with Network(Path({str(tmp_path)!r})) as network:
    host = network.add()
    host.start(["sleep", "100"], Path("/"))
    while len(host.pids()) < 1: time.sleep(.01)
    print(host.first, *host.pids(), flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE) as laboratory:
        assert laboratory.stdout is not None
        pids = laboratory.stdout.readline().split()
        assert len(pids) == 2
        laboratory.kill()
    alive = [Path("/proc") / pid.decode() for pid in pids]
    deadline = time.monotonic() + 10
    while any(path.exists() for path in alive) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(path.exists() for path in alive)


def test_what_is_missing_is_said_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoNamespacesError, match=r"unshare, nsenter, ip, tc, iptables: not installed.*make ci-deps"):
        Network(tmp_path).__enter__()


def test_a_kernel_that_allows_no_namespace_is_said_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Docker without --privileged: unshare itself says why."""
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with pytest.raises(NoNamespacesError, match=r"Operation not permitted; user namespaces must be allowed"):
        Network(tmp_path).__enter__()


def test_a_socket_of_this_process_is_heard_in_the_network(tmp_path: Path) -> None:
    with Network(tmp_path) as network, network.listener() as listener:
        host, (address, port) = network.add(), listener.getsockname()
        words = f"import socket; socket.create_connection(({address!r}, {port}), 5).sendall(b'here')"
        host.start([sys.executable, "-c", words], Path("/"))
        with listener.accept()[0] as link:
            assert link.recv(4) == b"here"


def test_a_machine_that_comes_back_cuts_nobody_off(hosts: list[Host]) -> None:
    """Who knew the hardware address of another, or of the bridge, goes on with it."""
    one, other, third = hosts
    with one.network.listener() as listener:
        listener.settimeout(10)
        words = f"import socket; socket.create_connection({listener.getsockname()!r}, 1).sendall(b'here')"
        for _ in range(3):
            for machine in (one, third):
                machine.start([sys.executable, "-c", words], Path("/"))
                with listener.accept()[0] as link:
                    assert link.recv(4) == b"here"
            other.kill()
            other.boot()
