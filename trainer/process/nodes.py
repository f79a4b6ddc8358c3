"""Which machine of a run this one is: its name and address, where the machines meet, and what torchrun is told of it.

Standard library only. Who leads is decided in the store: whoever owns the run's lease does (`upload/machines.py`).
"""

from __future__ import annotations

import errno
import fcntl
import math
import platform
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from trainer.contract import CRASH, Exit, MachineError, RunEnv, UserError, parse_manifest_key
from trainer.text import say

MOST_NODES = 16
MEETING = "TRAINER_MEETING"  # tells the uploader where this machine would meet the others; "": it may not lead
HAS_LED = "TRAINER_HAS_LED"  # tells it that this machine led the attempt before, so that it need not wait
LAST_ATTEMPT = "TRAINER_LAST_ATTEMPT"  # and the number of that attempt, which is over
SEEN_ATTEMPT = "TRAINER_SEEN_ATTEMPT"  # the last one that it was told of, whether or not it took part
LEASE_SEEN = "TRAINER_LEASE_SEEN"  # and which lease it saw last, and when: JSON of etag and time.monotonic()
# Of a run of several machines, so that the others need not wait long for one that has died. At 5 s a renewal it costs
# $.0036 an hour in S3's requests ($5 for a million).
LEASE_SECONDS = "20"
LAST_CALL_SECONDS = 8  # how long those who have met wait for others
PORT_SECONDS = 30  # how long another program may have the port of RENDEZVOUS= between two attempts
CURRENT, OVER, LEFT = "current", "over", "left"  # an attempt that is led, one that another follows, one without a head
MOST_LOSSES = 8  # attempts one after the other without a new checkpoint in between
MOST_CRASHES = 2  # of them those that ended by an error of this machine's own
BROKEN = 70  # the exit code then, if this machine has not got the run on at all
OF_ONE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM)  # another one may have room
NAME_RULE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
LAST_PORT = 65535
ELSEWHERE = "192.0.2.1"  # nobody's (RFC 5737): the route to it is that to the world
GET_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h


def has_others(env: RunEnv) -> bool:
    """Whether the run may have several machines."""
    return env.nodes != "1"


@contextmanager
def blaming_this_machine(env: RunEnv) -> Iterator[None]:
    """Of several machines, a full or read-only disk or too little memory is the fault of this one, and not of the run.

    Raises MachineError in place of the UserError that names it.
    """
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        is_full = isinstance(cause, OSError) and cause.errno in OF_ONE_MACHINE
        if has_others(env) and (is_full or isinstance(cause, MemoryError)):
            raise MachineError(str(error)) from error
        raise


def as_node(env: RunEnv) -> RunEnv:
    """The run's variables, checked, with this machine's address and name where it is one of several.

    Raises UserError.
    """
    if not re.fullmatch(r"[1-9][0-9]?", env.nodes) or int(env.nodes) > MOST_NODES:
        raise UserError(f"NODES={env.nodes} is no number of machines: write one from 1 to {MOST_NODES}")
    if env.rendezvous and not has_others(env):
        raise UserError(f"RENDEZVOUS={env.rendezvous} is for several machines: say how many, for example NODES=2")
    if not has_others(env):
        return env
    place = re.fullmatch(r"[A-Za-z0-9.-]+:([1-9][0-9]{1,4})", env.rendezvous)
    if env.rendezvous and not (place and int(place[1]) <= LAST_PORT):
        raise UserError(
            f"RENDEZVOUS={env.rendezvous} is no name or IPv4 address with a port of 10 to {LAST_PORT}, as in "
            "RENDEZVOUS=10.0.0.5:29500: it is the machine that leads the run, and a free port there (IPv6 is not "
            "supported)"
        )
    address = env.address or address_for_others(env.rendezvous.partition(":")[0] or ELSEWHERE)
    if not re.fullmatch(r"[1-9][0-9]{0,2}(\.[0-9]{1,3}){3}", address) or not has_address(address):
        raise UserError(
            f"TRAINER_ADDRESS={address} is no IPv4 address of this machine: write one that `ip -4 address` shows, by "
            "which the others reach it, or leave it out"
        )
    name = env.node or f"{platform.node()}-{address}"
    if not re.fullmatch(NAME_RULE, name):
        raise UserError(f"TRAINER_NODE={name!r} is no name of a machine: letters, digits, '.', '_' and '-'")
    seconds = LEASE_SECONDS if env.lease_seconds == RunEnv.lease_seconds else env.lease_seconds
    return replace(env, node=name, address=address, lease_seconds=seconds)


def check_shares(env: RunEnv, recipe: Mapping[str, Any], processes: int) -> None:
    """Check that the run can train on every number of machines up to NODES=, with so many processes on each.

    Raises UserError. `recipe` is what `recipes.command_line` tells of the config.
    """
    nodes, batch, of_device = int(env.nodes), int(recipe["global_batch_size"]), int(recipe["device_batch_size"])
    parts, needed = batch // of_device, nodes * processes
    if nodes == 1:
        return
    if recipe["cuda_graphs"]:
        raise UserError(f"NODES={nodes}: --cuda-graphs works for one process; pass --no-cuda-graphs, or NODES=1")
    sizes = f"(--global-batch-size {batch} / --device-batch-size {of_device})"
    if parts < needed:
        fits = [f"NODES={parts // processes}"] + [f"NPROC={parts // nodes}"] * (processes > 1 and parts >= nodes)
        fits += [f"--device-batch-size {size}" for size in [largest_micro_batch(batch, needed)] if size]
        raise UserError(
            f"NODES={nodes}: with {processes} processes on each machine a step needs {needed} micro-batches, and it "
            f"has {parts} {sizes}: use {' or '.join(fits)}"
        )
    each = [processes * math.lcm(*range(1, count + 1)) for count in range(1, nodes + 1)]  # divide by so many
    if recipe["sync_norm"] and parts % each[-1]:
        fits = [f"NODES={sum(parts % number == 0 for number in each)}"] * (parts % processes == 0)
        fits += [f"--device-batch-size {batch // each[-1]}"] * (batch % each[-1] == 0)
        raise UserError(
            f"NODES={nodes} with --model.sync-norm: machines may come and be lost, so 1 to {nodes} of them, with "
            f"{processes} processes on each, must share out the {parts} micro-batches of a step {sizes} evenly: use "
            f"{' or '.join([*fits, '--no-model.sync-norm'])}"
        )


def largest_micro_batch(batch: int, parts: int) -> int:
    """The largest --device-batch-size that makes a step of at least so many micro-batches; 0 where none does."""
    return next((size for size in range(batch // parts, 0, -1) if batch % size == 0), 0)


def address_towards(host: str) -> str:
    """This machine's IPv4 address on the way to another. Nothing is sent. Raises UserError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
        except OSError as error:
            raise UserError(
                f"no way leads to {host} ({error.strerror or error}), so this machine's own address is unknown: "
                "TRAINER_ADDRESS= tells it, and RENDEZVOUS= must name a machine that this one can reach"
            ) from error


def address_for_others(leader: str) -> str:
    """This machine's IPv4 address on the way to the one that leads, or to the world where it leads itself.

    A machine's own name leads to 127.0.1.1 there, where /etc/hosts is as Debian and Ubuntu write it. No other machine
    can reach that. It stays where RENDEZVOUS= itself is of the loopback. Raises UserError.
    """
    address = address_towards(leader)
    is_its_own_name = address.startswith("127.") and not re.match(r"127\.|localhost$", leader)
    return address_towards(ELSEWHERE) if is_its_own_name else address


def has_address(host: str) -> bool:
    """Whether this is an address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def meeting_place(env: RunEnv) -> str:
    """host:port where this machine meets the others if it leads; "" if another one is to lead. Raises UserError."""
    if not env.rendezvous:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((env.address, 0))
            return f"{env.address}:{probe.getsockname()[1]}"
    host, _, port = env.rendezvous.partition(":")
    if host != env.address and not has_address(host):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise UserError(
                f"RENDEZVOUS={env.rendezvous}: this machine cannot listen there ({error.strerror or error}): another "
                "program has the port, or another run; name another port, on all machines"
            ) from error
    return env.rendezvous


def meeting_place_again(env: RunEnv, is_stopped: Callable[[], bool]) -> str:
    """The same for a further attempt: another program that has the port meanwhile gets PORT_SECONDS to end.

    Once this machine is to stop it is to lead no more. Raises MachineError.
    """
    until = time.monotonic() + PORT_SECONDS
    while not is_stopped():
        try:
            return meeting_place(env)
        except UserError as error:
            if time.monotonic() > until:
                raise MachineError(f"{error}; the same command continues the run") from error
        time.sleep(PORT_SECONDS / 60)
    return ""


def interface_of(address: str) -> str:
    """The network interface that has this address; "" where none tells so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(found[20:24]) == address or (name == "lo" and address.startswith("127.")):
                return name
    return ""


def torchrun_environ(
    env: RunEnv, rendezvous: str, since: float, *, is_head: bool, given: Mapping[str, str]
) -> dict[str, str]:
    """What torchrun and the trainer are told of this attempt's machines. A user's own variables win.

    Whoever meets at `rendezvous` trains. The attempt ends where one is lost or comes (`PET_MAX_RESTARTS`). `since` is
    the moment at which it got the run, in Unix seconds: nobody meets there who has read a copy of the store.
    """
    conf = f"is_host={int(is_head)},join_timeout=600,last_call_timeout={LAST_CALL_SECONDS},close_timeout=5,"
    # torchrun would drop a machine whose clock is `keep_alive_max_attempt` times 5 s behind (torch 2.15,
    # dynamic_rendezvous.py, _sanitize). The lookout finds who is lost, by no other machine's clock: here 57 days.
    conf += "heartbeat_timeout=30,keep_alive_max_attempt=1000000"
    told = {
        "PET_STANDALONE": "0", "PET_NNODES": f"1:{env.nodes}", "PET_MAX_RESTARTS": "0",
        "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": rendezvous, "PET_RDZV_CONF": conf,
        "PET_RDZV_ID": f"{env.run_id}-{env.attempt}-{since:.3f}", "PET_LOCAL_ADDR": env.address,
        "TRAINER_IS_HEAD": str(int(is_head)),
        # Else torchrun keeps the address of its first round's store: a machine that trained alone and is not the first
        # one any more would wait there for the others, who are elsewhere (torch 2.15, dynamic_rendezvous.py).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    if interface := interface_of(env.address):  # else gloo takes what the host's name leads to, often the loopback
        told |= {name: given.get(name, interface) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    return told


@dataclass
class Meetings:
    """How often the machines of a run have met, and whether they may meet again."""

    has_led: bool = False
    attempt: int = 0  # the last one in which it took part; 0 before there was one
    seen_attempt: int = 0  # the last one
    newest: str = ""  # the newest checkpoint when the last attempt began
    losses: int = 0  # attempts since then
    crashes: int = 0  # by errors of this machine's own, since the last attempt of it that saved a checkpoint
    has_saved: bool = False  # whether there was such an attempt
    seen: str = '""'  # of the lease: JSON
    has_data: bool = False  # this machine has the data of the run, for sure

    def environ(self, env: RunEnv, is_stopped: Callable[[], bool]) -> dict[str, str]:
        """What the uploader is told. Raises UserError; MachineError where the port is lost between two attempts."""
        if not has_others(env):
            return {}
        place = meeting_place_again(env, is_stopped) if self.seen_attempt else meeting_place(env)
        told = {MEETING: place, HAS_LED: str(int(self.has_led)), LAST_ATTEMPT: str(self.attempt)}
        return told | {SEEN_ATTEMPT: str(self.seen_attempt), LEASE_SEEN: self.seen}

    def begin(self, attempt: int, newest: str, *, leads: bool) -> None:
        """An attempt begins, from this checkpoint. It may be one that the last attempt saved as it ended."""
        if newest != self.newest:
            saved, self.newest, self.losses = parse_manifest_key(newest), newest, 0
            if self.attempt and saved is not None and saved[0] == self.attempt:
                self.crashes, self.has_saved = 0, True
        self.has_led, self.attempt, self.seen_attempt = leads, attempt, attempt

    def join_failed(self) -> None:
        """No process of this machine took part in the attempt, which may go on without it: it may be joined again."""
        self.attempt = 0

    def end(self, code: int, message: str, newest: str, *, is_own: bool) -> int | None:
        """The exit code of this machine after an attempt that nobody here stopped; None: the machines meet again.

        `newest` is the newest checkpoint by now. `is_own`: an error of this machine ended the attempt. It may crash
        MOST_CRASHES times, however much the others get on in between.
        """
        saved = parse_manifest_key(newest)
        if self.attempt and saved is not None and saved[0] == self.attempt:
            self.newest, self.losses, self.crashes, self.has_saved = newest, 0, 0, True
        self.losses, self.crashes = self.losses + 1, self.crashes + is_own
        if code not in (Exit.INTERRUPTED, Exit.HELD, CRASH) or (code == Exit.HELD and not self.has_led):
            return code  # whoever has not led is held up by a run that has all of its machines
        if self.crashes >= MOST_CRASHES:
            say(
                f"error: {MOST_CRASHES} attempts have ended by an error of this machine, without a checkpoint in "
                f"between that it took part in: it leaves, and the others may go on. The last error: {message}"
            )
            return CRASH if self.has_saved else BROKEN
        if self.losses >= MOST_LOSSES:
            say(f"error: {MOST_LOSSES} attempts in a row have ended without a new checkpoint; the last one: {message}")
            return CRASH
        say(f"attempt {self.seen_attempt} has ended: {message}")
        return None
