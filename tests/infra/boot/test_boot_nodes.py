"""A machine of a run on several: what its container is told and can reach, and what becomes of one that breaks."""

from __future__ import annotations

import pytest

from tests.infra.boot.boot_machines import METADATA, Machine
from tests.infra.boot.test_boot_ends import put_counts

pytestmark = pytest.mark.engine
INFINIBAND = "mkdir /dev/infiniband && mknod -m 666 /dev/infiniband/uverbs0 c 231 192"  # as the driver of EFA does
# Keeps what Docker is asked for, and takes the limit out, which only a host with CAP_SYS_RESOURCE gives.
DOCKER = b"""#!/bin/sh
[ "$1" != run ] || echo "$*" >/opt/dlami/nvme/asked
for word; do
  shift
  [ "$word" != memlock=-1 ] || word=core=0
  set -- "$@" "$word"
done
exec /usr/bin/docker "$@"
"""
BROKEN = "4 crashes of this machine's own processes"
CRASHED = "4 crashes without a new checkpoint in between; the last: exit code 1"


def test_a_node_that_crashes_makes_room_for_another_and_ends_the_run_only_if_no_machine_gets_it_on(
    machine: Machine,
) -> None:
    """It has the machine's network and fast link, and still no way to the metadata service."""
    machine.imds.documents["/latest/meta-data/local-ipv4"] = "10.9.0.2"
    machine.files["usr/local/bin/docker"] = DOCKER
    machine.launched(nodes=2).boot("exit 1", before=INFINIBAND)
    machine.wait_until_off()
    told = machine.environ()
    names = ("TRAINER_NODES", "TRAINER_NODE", "TRAINER_ADDRESS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    assert [told[name] for name in names] == ["2", machine.instance, "10.9.0.2", "=eth0", "eth0"]
    walls = dict(line.split(": ", 1) for line in (machine.scratch / "walls.1").read_text().splitlines())
    assert walls["metadata service"] == f"nc: can't connect to remote host ({METADATA}): Connection refused"
    assert walls["AWS"].startswith("HTTP/1.")
    assert walls["interfaces"].split() == ["docker0", "eth0", "lo"]
    assert walls["InfiniBand"] == "uverbs0"
    assert "--ulimit memlock=-1" in (machine.folder / "asked").read_text()
    assert (machine.scratch / "uid.1").read_text().strip() == "10001"
    assert (machine.lives(), machine.desired(), machine.failed()) == (4, 1, None)
    assert f"{CRASHED}: another machine takes over" in machine.console()
    assert "autoscaling.SetDesiredCapacity" not in machine.aws.calls()

    put_counts(machine, 1, 21)  # twenty attempts since the newest checkpoint, on whichever machines
    machine.power_on()
    machine.wait_until_off()
    failed = machine.failed()
    assert failed is not None
    assert failed["message"] == CRASHED
    assert (machine.lives(), machine.desired()) == (8, 0)


def test_a_node_that_is_refused_goes_alone_and_the_one_that_leads_ends_the_run(machine: Machine) -> None:
    message = "the processes of this run would not train the same. torch: 2.14 (rank 0 on i-a), 2.15 (rank 1 on i-b)."
    machine.imds.documents["/latest/meta-data/local-ipv4"] = "10.9.0.2"
    machine.launched(nodes=2)
    machine.put(f"checkpoints/{machine.run}/HEAD.json", {"newest": "", "rendezvous": "10.9.0.20:40001"})
    machine.boot(f"exit 78 {message}")
    machine.wait_until_off()
    assert (machine.lives(), machine.desired(), machine.failed()) == (1, 0, None)
    assert machine.group_now()["Instances"] == []
    assert "autoscaling.SetDesiredCapacity" not in machine.aws.calls()
    assert f"this machine is refused, and the others go on without it: {message}" in machine.log("boot")

    machine.set_desired(1)
    machine.put(f"checkpoints/{machine.run}/HEAD.json", {"newest": "", "rendezvous": "10.9.0.2:40001"})
    machine.power_on()
    machine.wait_until_off()
    failed = machine.failed()
    assert failed is not None
    assert (machine.lives(), machine.desired(), failed["message"]) == (2, 0, message)


def test_a_node_that_only_crashes_makes_room_after_two_starts_though_the_others_save_in_between(
    machine: Machine,
) -> None:
    machine.imds.documents["/latest/meta-data/local-ipv4"] = "10.9.0.2"
    machine.launched(nodes=2)
    put_counts(machine, 2, 8)  # in each start of its container it has crashed in two attempts
    machine.boot("exit 70", "exit 1", "exit 70", "hold 70")
    machine.wait_for_life(4)
    put_counts(machine, 9, 12)
    machine.let_go(4)
    machine.wait_until_off()
    assert (machine.lives(), machine.desired(), machine.failed()) == (4, 1, None)
    assert f"{BROKEN}: another machine takes over" in machine.console()
