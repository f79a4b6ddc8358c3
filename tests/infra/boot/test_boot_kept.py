"""A machine on which the run has failed, and that its user wants to look at: KEEP= of the launch."""

from __future__ import annotations

import time

import pytest

from tests.infra.boot.boot_machines import DEADLINE, Machine

pytestmark = pytest.mark.engine
KEPT = "var/lib/resnet-spot/kept"


def test_a_machine_is_kept_after_a_failure_and_ends_with_a_stop_with_its_time_and_at_the_deadline(
    machine: Machine,
) -> None:
    """In turn: a stop ends it, it comes back and is kept still until the deadline, and a third time until its time."""
    machine.settings["STOP_SECONDS"] = "2"
    machine.launched(keep_minutes=50).boot("exit 1")
    machine.wait_for("this machine is kept until")
    failed = machine.failed()
    assert failed is not None
    assert failed["message"].startswith("4 crashes")
    assert (machine.lives(), machine.desired()) == (4, 1)
    assert machine.is_on()
    assert 2800 < float(machine.sh(f"cat /{KEPT}")) - time.time() < 3000
    began = time.monotonic()
    machine.sh("systemctl --no-block poweroff")  # so EC2 tells a machine that is terminated
    machine.wait_until_off(timeout=60)
    assert time.monotonic() - began < 30

    machine.imds.documents[DEADLINE] = str(int(time.time()) + 20)
    machine.power_on()
    machine.wait_until_off()
    assert time.time() > float(machine.imds.documents[DEADLINE]) - 3
    assert machine.desired() == 0
    assert [line for line in machine.log("boot") if line.startswith("the deadline: scaling")]

    machine.set_desired(1)
    machine.imds.documents[DEADLINE] = str(int(time.time()) + 3600)
    machine.files[KEPT] = f"{time.time() + 12:.0f}\n".encode()
    machine.write_files()
    machine.power_on()
    machine.wait_until_off()
    assert time.time() > float(machine.files[KEPT])
    assert "failed: scaling resnet-spot-train to 0" in machine.log("boot")[-2]
    assert (machine.lives(), machine.desired(), machine.failed()) == (4, 0, failed)


@pytest.mark.parametrize("code", [78, 1])
def test_both_machines_of_a_run_that_fails_are_kept_and_neither_ends_the_other(code: int, machine: Machine) -> None:
    """The test plays the other one, which has written why the run has failed, and is kept, too."""
    failed = {"attempt": 1, "exit": 78, "message": "the other machine's words"}
    machine.imds.documents["/latest/meta-data/local-ipv4"] = "10.9.0.2"
    machine.launched(nodes=2, keep_minutes=50)
    machine.aws.client("autoscaling").update_auto_scaling_group(
        AutoScalingGroupName=machine.group, MaxSize=2, DesiredCapacity=2
    )
    machine.put(f"runs/{machine.run}/attempts/1.json", {})
    machine.boot(f"hold {code}")
    machine.wait_for_life(1)
    machine.put(f"runs/{machine.run}/failed.json", failed)
    machine.let_go(1)
    machine.wait_for("this machine is kept until")
    assert machine.is_on()
    assert 2800 < float(machine.sh(f"cat /{KEPT}")) - time.time() < 3000
    assert (machine.lives(), machine.desired(), machine.failed()) == (1, 2, failed)
