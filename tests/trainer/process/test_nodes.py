"""Several machines of one run, each with an address of the loopback and a scratch folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from tests.runs import QUICK, QUICK_STEPS, Run
from trainer.contract import (
    CRASH,
    Exit,
    Lease,
    LostRunError,
    RunEnv,
    UserError,
    checkpoint_key,
    parse_manifest_key,
    run_key,
)
from trainer.process.nodes import (
    BROKEN,
    LEASE_SECONDS,
    MEETING,
    as_node,
    interface_of,
    meeting_place,
    torchrun_environ,
)
from trainer.store import open_store
from trainer.upload import machines
from trainer.upload.machines import Scout

ENV = RunEnv(store="out", run_id="r", scratch_dir="s", nodes="2", address="127.0.0.2", node="a")
LONG = (*QUICK[:4], "200", *QUICK[5:], "--checkpoint.every-seconds", "1", "--data.workers", "1")
Make = Callable[..., Run]


def goes_on() -> bool:
    return False


def machine(new_run: Make, tmp_path: Path, number: int, **environ: str) -> Run:
    return new_run(
        TRAINER_NODES="2", TRAINER_ADDRESS=f"127.0.0.{number}", TRAINER_NODE=f"node-{number}",
        TRAINER_SCRATCH_DIR=str(tmp_path / f"scratch-{number}"), TRAINER_LEASE_SECONDS="4", **environ,
    )  # fmt: skip


def end_at_once(run: Run) -> None:
    """As a machine without power, but that the kernel closes its connections."""
    for pid in run.workers():  # first: whoever reads the output waits for all that could write to it
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.kill_everything()


def die_in_every_attempt(run: Run) -> None:
    """As a machine whose GPU fails, or whose memory is too small, as soon as it has met the others."""
    assert run.process is not None
    while run.process.poll() is None:
        if run.status().get("nodes") == 2:
            for pid in run.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


@pytest.mark.slow
def test_machines_that_come_and_are_lost_train_one_run_to_its_end(new_run: Make, tmp_path: Path) -> None:
    """The second one dies, the first goes on alone; it comes back, and the first, which leads, is told to stop. That
    one is broken when it comes back, and leaves for good.
    """
    first, second = (machine(new_run, tmp_path, number) for number in (2, 3))

    def trains_on(nodes: int, after: int) -> Callable[[], bool]:
        def a_step_of_so_many() -> bool:
            status = first.status()
            return status.get("nodes", 1) == nodes and status.get("step", 0) > after and bool(first.lease().newest)

        return a_step_of_so_many

    first.start(*LONG)
    second.start(*LONG)
    first.until(trains_on(2, 3), 90)
    assert {first.json(f"nodes/node-{number}.json")["role"] for number in (2, 3)} == {"head", "member"}
    leads, joins = (first, second) if first.json("nodes/node-2.json")["role"] == "head" else (second, first)
    first = leads  # whose lines and status are looked at
    end_at_once(joins)
    leads.until(trains_on(1, 5), 90)
    joins.start(*LONG)
    leads.until(trains_on(2, 6), 90)
    assert leads.stop(signal.SIGTERM) == Exit.INTERRUPTED
    newest = leads.lease().newest

    def the_other_leads() -> bool:
        return joins.lease().newest != newest

    joins.until(the_other_leads, 90)
    leads.start(*LONG)
    Thread(target=die_in_every_attempt, args=[leads], daemon=True).start()
    assert leads.wait(120) == BROKEN, leads.output
    assert leads.output.count("exitcode  : -9") == 2, "what it met too late to join was no crash of its own"
    assert "2 attempts have ended by an error of this machine" in leads.output
    newest = joins.lease().newest
    joins.until(the_other_leads, 90)
    assert joins.stop(signal.SIGTERM) == Exit.INTERRUPTED
    lease = joins.lease()
    last = parse_manifest_key(lease.newest)
    assert last is not None
    assert [row["step"] for row in joins.metrics() if "train/loss" in row] == list(range(1, last[1] + 1))
    assert lease.attempt >= 4
    ends = [joins.json(f"attempts/{number}.json") for number in range(1, lease.attempt + 1)]
    assert [end.get("exit") for end in ends][-3:] == [CRASH, CRASH, Exit.INTERRUPTED]
    assert {end.get("nodes", 1) for end in ends} == {1, 2}
    assert joins.json(f"nodes/{joins.environ['TRAINER_NODE']}.json")["role"] == "head"


@pytest.mark.slow
def test_a_machine_with_other_options_is_refused_and_the_one_that_leads_goes_on_alone(
    new_run: Make, tmp_path: Path
) -> None:
    leads, wrong = (machine(new_run, tmp_path, number) for number in (2, 3))

    def goes_on() -> bool:
        return leads.lease().attempt > attempt and bool(leads.status().get("step", 0))

    attempt = 0
    leads.start(*LONG)
    leads.until(goes_on, 90)
    wrong.start(*LONG, "--seed", "1")
    assert wrong.wait(90) == Exit.USER, wrong.output
    said = "the processes of this run would not train the same. --seed: 0 (rank 0 on node-2), 1 (rank 1 on node-3)."
    assert f"error: {said} node-2 leads the run: give this machine the same code, options" in wrong.output
    attempt = int(wrong.json("nodes/node-3.json")["attempt"])
    leads.until(goes_on, 90)
    assert leads.stop(signal.SIGTERM) == Exit.INTERRUPTED
    refused = leads.json(f"attempts/{attempt}.json")
    assert (refused["exit"], refused["message"]) == (
        CRASH, f"{said} The run goes on without node-3, since node-2 leads it"
    )  # fmt: skip
    assert "runs/quick/failed.json" not in leads.stored()


@pytest.mark.slow
def test_two_machines_of_two_processes_compute_what_four_of_one_machine_do(new_run: Make, tmp_path: Path) -> None:
    """The one that leads has the place to meet from its user, and the other one finds it in the store."""
    options = (*QUICK[:4], "1", *QUICK[5:], "--deterministic")
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        place = f"127.0.0.2:{free.getsockname()[1]}"
    cores = tmp_path / "cores"  # four, however many there are: each process needs one
    cores.mkdir()
    (cores / "sitecustomize.py").write_text("import os\nos.sched_getaffinity = lambda pid: {0, 1, 2, 3}\n")
    one = new_run(
        run_id="one", PET_NPROC_PER_NODE="4", PYTHONPATH=str(cores), TRAINER_SCRATCH_DIR=str(tmp_path / "scratch-1")
    )
    first = machine(new_run, tmp_path, 2, PET_NPROC_PER_NODE="2", TRAINER_RENDEZVOUS=place)
    second = machine(new_run, tmp_path, 3, PET_NPROC_PER_NODE="2")

    def it_leads() -> bool:
        return first.lease().rendezvous == place

    first.start(*options).until(it_leads)
    second.start(*options)
    assert (first.wait(150), second.wait(150)) == (Exit.FINISHED, Exit.FINISHED), first.output + second.output
    assert one.run(*options) == Exit.FINISHED, one.output
    ours, theirs = first.tensors(), one.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    status = first.json("heartbeat.json")
    assert (status["nodes"], status["processes"], one.json("heartbeat.json")["processes"]) == (2, 4, 4)
    assert 2 * first.manifest()["step"] == QUICK_STEPS


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nodes": "0"}, "NODES=0 is no number of machines: write one from 1 to 16"),
        ({"nodes": "17"}, "write one from 1 to 16"),
        ({"nodes": "two"}, "NODES=two"),
        ({"nodes": "1", "rendezvous": "a:29500"}, "for several machines: say how many"),
        ({"rendezvous": "10.0.0.5"}, "no name or IPv4 address with a port"),
        ({"rendezvous": "[::1]:29500"}, "IPv6 is not supported"),
        ({"rendezvous": "10.0.0.5:99999"}, "with a port of 10 to 65535"),
        ({"address": "::1"}, "TRAINER_ADDRESS=::1 is no IPv4 address of this machine: write one that `ip -4 address`"),
        ({"address": "localhost"}, "TRAINER_ADDRESS=localhost is no IPv4 address"),
        ({"address": "0.0.0.0"}, "TRAINER_ADDRESS=0.0.0.0 is no IPv4 address"),
        ({"address": "192.0.2.7"}, "TRAINER_ADDRESS=192.0.2.7 is no IPv4 address of this machine"),
        ({"rendezvous": "no.such.name.invalid:29500", "address": ""}, "no way leads to no.such.name.invalid"),
        ({"node": "a/b"}, "'a/b' is no name of a machine"),
    ],
)
def test_a_wrong_variable_is_refused_with_its_value_and_the_rule(changed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        as_node(replace(ENV, **changed))
    assert said in str(error.value)


def test_a_machine_of_several_has_a_name_an_address_and_a_short_lease() -> None:
    env = as_node(replace(ENV, address="", node=""))
    assert socket.inet_aton(env.address)
    assert env.node.endswith(f"-{env.address}")
    assert env.lease_seconds == LEASE_SECONDS
    assert as_node(replace(ENV, nodes="1")).lease_seconds == ENV.lease_seconds, "alone it keeps the long one"


def test_only_the_machine_of_the_rendezvous_leads_and_only_with_a_free_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="another program has the port"):
            meeting_place(replace(ENV, rendezvous=f"127.0.0.2:{port}"))
    assert meeting_place(replace(ENV, rendezvous=f"127.0.0.2:{port}")) == f"127.0.0.2:{port}"
    assert meeting_place(replace(ENV, rendezvous="192.0.2.7:29500")) == ""
    assert meeting_place(ENV).startswith("127.0.0.2:")


def test_torchrun_is_told_of_this_attempt_alone_and_a_user_names_another_interface() -> None:
    told = torchrun_environ(replace(ENV, attempt="3"), "127.0.0.2:5", 7.25, is_head=False, given={})
    assert (told["PET_RDZV_ID"], told["PET_NNODES"], told["TRAINER_IS_HEAD"]) == ("r-3-7.250", "1:2", "0")
    assert told["GLOO_SOCKET_IFNAME"] == interface_of("127.0.0.1") == "lo"
    given = {"GLOO_SOCKET_IFNAME": "eth7"}
    assert torchrun_environ(ENV, "a:5", 0.0, is_head=True, given=given)["GLOO_SOCKET_IFNAME"] == "eth7"
    assert interface_of("192.0.2.7") == ""


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunEnv:
    for name, seconds in (("HEADLESS_SECONDS", 0.5), ("MISTAKE_SECONDS", 0.1), ("SCOUT_SECONDS", 0.01)):
        monkeypatch.setattr(machines, name, seconds)
    monkeypatch.setenv(MEETING, "")
    (tmp_path / "store").mkdir()
    return replace(ENV, store=str(tmp_path / "store"), scratch_dir=str(tmp_path), lease_seconds="60")


def test_a_rendezvous_that_nobody_hears_is_told_with_its_address(hurried: RunEnv) -> None:
    env = replace(hurried, rendezvous="127.0.0.9:1")
    with pytest.raises(LostRunError, match=r"127\.0\.0\.9:1 has not answered for 0\.5 s: is that machine up"):
        Scout(env, open_store(env.store)).head()


def test_a_store_that_the_others_do_not_see_is_told(hurried: RunEnv) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        env = replace(hurried, rendezvous=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(LostRunError, match="all machines need one store that all of them see"):
            Scout(env, open_store(env.store)).head()


def test_a_head_that_answers_is_joined_but_not_for_an_attempt_that_is_over(
    hurried: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(hurried.store)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        lease = Lease(attempt=4, owner="b", renewed=1, rendezvous=f"127.0.0.1:{other.getsockname()[1]}")
        store.put(checkpoint_key("r", "HEAD.json"), lease.to_json())
        assert Scout(hurried, store).head() == lease
        monkeypatch.setenv("TRAINER_LAST_ATTEMPT", "4")
        with pytest.raises(LostRunError, match="has not answered"):
            Scout(hurried, store).head()


@pytest.mark.parametrize("may_lead", ["127.0.0.2:29500", ""])
@pytest.mark.parametrize(
    ("seen", "attempt", "ends"), [("3", 3, True), ("3", 4, True), ("3", 2, False), ("0", 3, False), ("3", None, False)]
)
def test_a_machine_that_saw_the_run_fail_ends_with_its_message_and_a_fresh_one_tries_again(
    may_lead: str, seen: str, attempt: int | None, ends: bool, hurried: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(hurried.store)
    failed = {"attempt": attempt, "exit": 78, "message": "labels out of range"} if attempt else ["of nobody"]
    store.put(run_key("r", "failed.json"), json.dumps(failed).encode())
    monkeypatch.setenv(MEETING, may_lead)
    monkeypatch.setenv("TRAINER_SEEN_ATTEMPT", seen)
    scout = Scout(hurried, store)
    scout.modesty = 0.0
    if ends:
        with pytest.raises(UserError, match="labels out of range"):
            scout.head()
    elif may_lead:
        assert scout.head() is None
    else:
        with pytest.raises(LostRunError):
            scout.head()
