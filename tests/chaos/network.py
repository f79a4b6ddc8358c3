"""Machines of a network on this one: a network, process and mount namespace each, joined by a bridge whose links have
the bandwidth that is asked for. Needs no root: all of it lies in a user namespace, and no packet leaves it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("unshare", "nsenter", "ip", "tc", "iptables")
SUBNET = "10.77.0."  # addresses exist in the namespace alone
GATEWAY = f"{SUBNET}254"  # of the bridge, where the store is heard. What is sent beyond goes nowhere
HARDWARE = "02:00:00:00:00:{:02x}"  # a machine that comes back has the address that the others know
GIGABIT = 1e9
# The first process of a namespace lives as long as its standard input is open: so nothing outlives the laboratory.
# It takes no notice of its children's ends, so that the kernel reaps them.
FIRST_PROCESS = "trap '' CHLD; echo ready; exec cat > /dev/null"
# The machine's name leads to a loopback address, as Debian's installer writes it: nobody else may be told of that one.
MACHINE = 'hostname "$1" && ip link set lo up && mount --bind "$2" /etc/hosts && ' + FIRST_PROCESS
HOSTS = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"

LISTEN = """
import socket, sys
found = socket.create_server((sys.argv[1], 0), backlog=128)
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"x"], [found.fileno()])
"""


class NoNamespacesError(Exception):
    """This machine cannot make the namespaces; the message says what is missing."""


def check_programs() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoNamespacesError(
            f"{', '.join(missing)}: not installed; hosts as network namespaces need them: make ci-deps, as root, or on "
            "Debian: apt install util-linux iproute2 iptables"
        )


def first_process(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start it; return once it is ready. NoNamespacesError with the kernel's reason where it does not begin."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        reason = process.communicate()[1].strip()
        raise NoNamespacesError(
            f"no namespace: {reason or command[0]}; user namespaces must be allowed (as root: sysctl -w "
            "user.max_user_namespaces=10000, on Ubuntu 24.04 also kernel.apparmor_restrict_unprivileged_userns=0; in "
            "Docker: --privileged)"
        )
    return process


def end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Host:
    """One machine. `boot` begins its namespaces, `kill` ends all of its processes at once, as a lost machine does."""

    network: Network
    number: int
    rate: float  # bits/s of its link, in each direction
    keeper: subprocess.Popen[str] | None = None
    first: int = 0  # the pid of its first process, as seen from outside
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return f"{SUBNET}{self.number}"

    @property
    def port(self) -> str:
        """The bridge's end of its link."""
        return f"port-{self.number}"

    def boot(self) -> None:
        names = self.network.folder / f"hosts-{self.number}"
        names.write_text(HOSTS.format(name=self.name))
        unshare = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
        self.keeper = first_process((*self.network.enter(), *unshare, "sh", "-c", MACHINE, "sh", self.name, str(names)))
        self.first = int(Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text())
        run = self.network.run
        ours = ("name", "eth0", "address", HARDWARE.format(self.number), "netns", str(self.first))
        run("ip", "link", "add", self.port, "type", "veth", "peer", *ours)
        run("ip", "link", "set", self.port, "master", "bridge", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", GATEWAY)
        self.shape(self.rate)

    def enter(self) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.first), "-U", "-n", "-m", "-p", "-u", "--preserve-credentials", "--")

    def run(self, *command: str) -> None:
        subprocess.run([*self.enter(), *command], check=True, capture_output=True)

    def start(self, command: Sequence[str], cwd: Path, **more: Any) -> subprocess.Popen[bytes]:
        """A process of this machine; the Popen is that of nsenter, which ends as its child does."""
        there = ("sh", "-c", 'cd "$0" && exec "$@"', str(cwd))  # nsenter begins in the namespace's own root
        words = [*self.enter(), *there, *command]
        self.started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, **more))
        return self.started[-1]

    def shape(self, rate: float) -> None:
        """Let both directions of the link have so many bits/s."""
        burst = str(max(128_000, int(rate / 8 / 1000)))  # bytes: a millisecond of it, or two of the largest packets
        limit = ("rate", f"{int(rate)}bit", "burst", burst, "latency", "50ms")
        self.network.run("tc", "qdisc", "replace", "dev", self.port, "root", "tbf", *limit)
        self.run("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *limit)

    def cut(self) -> None:
        """Nothing comes and nothing goes; the processes go on."""
        self.network.run("ip", "link", "set", self.port, "down")

    def mend(self) -> None:
        self.network.run("ip", "link", "set", self.port, "up")
        self.run("iptables", "-F")
        self.shape(self.rate)

    def refuse(self, *addresses: str) -> None:
        """A firewall that drops what comes from there and what goes there, and answers nothing."""
        for address in addresses:
            self.run("iptables", "-A", "INPUT", "-s", address, "-j", "DROP")
            self.run("iptables", "-A", "OUTPUT", "-d", address, "-j", "DROP")

    def let_through(self, port: int) -> None:
        """A firewall that lets others connect to one port alone, and drops every other first packet."""
        self.run("iptables", "-A", "INPUT", "!", "-i", "lo", "-p", "tcp", "--syn", "!", "--dport", str(port),
                 "-j", "DROP")  # fmt: skip

    def lose(self, share: float) -> None:
        """Drop this share of the packets that come, at random."""
        self.run("iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", str(share),
                 "-j", "DROP")  # fmt: skip

    def pids(self) -> list[int]:
        """All processes of this machine but its first one, as seen from outside; without those that are dead."""
        mine, found = self.namespace(self.first), list[int]()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine and self.namespace(int(path.name)) == mine and int(path.name) != self.first:
                    state = (path / "stat").read_text().rsplit(") ", 1)[1][0]
                    found += [int(path.name)] if state not in "ZX" else []
        return found

    @staticmethod
    def namespace(pid: int) -> str:
        try:
            return str(Path(f"/proc/{pid}/ns/pid").readlink())
        except OSError:
            return ""

    def kill(self) -> None:
        """The end of the machine: SIGKILL to all of its processes, and its link is gone."""
        if self.keeper is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        end(self.keeper)
        self.keeper = None
        while self.started:
            self.started.pop().wait(10)
        deadline = time.monotonic() + 10  # a network namespace is removed a moment after its last process
        while self.network.has(self.port) and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.network.has(self.port):
            self.network.run("ip", "link", "delete", self.port)


@dataclass
class Network:
    """A bridge in a user and network namespace of its own. To be used in a with statement."""

    folder: Path
    hosts: list[Host] = field(default_factory=list)

    def __enter__(self) -> Network:
        check_programs()
        self.keeper = first_process(("unshare", "-Urn", "sh", "-c", FIRST_PROCESS))
        try:
            # Else it takes an address from its ports, and each machine that boots may change it for all others.
            self.run("ip", "link", "add", "bridge", "address", HARDWARE.format(254), "type", "bridge")
            self.run("ip", "address", "add", f"{GATEWAY}/24", "dev", "bridge")
            self.run("ip", "link", "set", "bridge", "up")
        except subprocess.CalledProcessError as error:
            end(self.keeper)
            raise NoNamespacesError(f"{' '.join(error.cmd[6:])}: {error.stderr.decode().strip()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
        end(self.keeper)

    def enter(self) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.keeper.pid), "-U", "-n", "--preserve-credentials", "--")

    def run(self, *command: str) -> None:
        subprocess.run([*self.enter(), *command], check=True, capture_output=True)

    def refuse_store(self) -> None:
        """Whatever listens at GATEWAY hears nobody."""
        self.run("iptables", "-A", "INPUT", "-j", "DROP")

    def mend_store(self) -> None:
        self.run("iptables", "-F")

    def has(self, port: str) -> bool:
        command = [*self.enter(), "ip", "link", "show", port]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @contextlib.contextmanager
    def listener(self) -> Iterator[socket.socket]:
        """A socket that listens at GATEWAY, for this process: a socket stays in the namespace that it was made in."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [*self.enter(), sys.executable, "-c", LISTEN, GATEWAY, str(theirs.fileno())]
            subprocess.run(command, check=True, pass_fds=[theirs.fileno()])
            number = socket.recv_fds(ours, 1, 1)[1][0]
        with socket.socket(fileno=number) as found:
            yield found

    def add(self, rate: float = GIGABIT) -> Host:
        host = Host(self, len(self.hosts) + 1, rate)
        self.hosts.append(host)
        host.boot()
        return host


@contextlib.contextmanager
def network_of(folder: Path, count: int, rate: float = GIGABIT) -> Iterator[list[Host]]:
    with Network(folder) as network:
        yield [network.add(rate) for _ in range(count)]
