"""The machine's life, from its first boot to its power-off, with infra/boot as it ships: real systemd, a real Docker
engine, a real AWS CLI against the emulator. The trainer is a stand-in that ends as its plan says.

A group whose machine powers off while it wants one gets another: so wherever the end of a machine is checked, the
group's capacity is, too. It can only have become 0 before, since the scripts end with the machine.
"""

from __future__ import annotations

import json
import time

import pytest

from infra.config import Tag
from tests.infra.boot_machines import CANARY, ECR, Machine

pytestmark = pytest.mark.engine
SPY = "while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >>/var/tmp/seen; sleep 0.02; done"
DEADLINE = f"/latest/meta-data/tags/instance/{Tag.DEADLINE}"


def launched(machine: Machine, **spec: object) -> Machine:
    machine.prepare_account(**spec)
    machine.prepare_metadata()
    return machine


def test_a_run_that_finishes_leaves_no_machine_and_its_token_is_nowhere_but_in_the_container_s_file(
    machine: Machine,
) -> None:
    launched(machine, arguments=("rn50", "--note", 'it\'s $HOME "here"')).boot("hold 0", spy=SPY)
    machine.wait_for_life(1)
    seen = machine.sh("docker inspect resnet-spot; docker history --no-trunc $(docker images -q); cat /var/tmp/seen")
    login = json.loads(machine.sh("cat /run/resnet-spot/docker/config.json"))
    machine.let_go(1)
    machine.wait_until_off()

    assert machine.desired() == 0
    assert machine.failed() is None
    assert list(login["auths"]) == [machine.image.partition("/")[0]]
    assert machine.argv() == ["/bin/trainer", "rn50", "--note", 'it\'s $HOME "here"']
    environ = machine.environ()
    assert {name: value for name, value in environ.items() if name.startswith("TRAINER_")} == {
        "TRAINER_STORE": "s3://bucket",
        "TRAINER_RUN_ID": machine.run,
        "TRAINER_DATA": "s3://bucket/datasets/d/1",
        "TRAINER_SCRATCH_DIR": "/scratch",
        "TRAINER_SECRETS_DIR": "/run/secrets",
        "TRAINER_DEADLINE": str(int(machine.imds.documents[DEADLINE]) - 120),
        "TRAINER_IMAGE": machine.image,
    }
    assert (machine.scratch / "uid.1").read_text() == "10001\n"
    assert " tmpfs ro," in (machine.scratch / "mounts.1").read_text()
    assert machine.log("1") == ["life 1: hold 0"]
    assert [line for line in machine.log("boot") if "exit code 0" in line]
    assert machine.log("boot")[0].startswith("this machine will be gone at ")

    assert (machine.scratch / "secrets.1").read_text().strip() == CANARY
    assert "/opt/resnet-spot/run" in seen
    assert ECR in seen
    for text in (seen, machine.console(), *machine.log("boot"), *machine.log("1")):
        assert CANARY not in text


def test_an_interrupted_run_goes_on_but_not_on_a_machine_that_is_reclaimed_and_a_reboot_lets_it_save(
    machine: Machine,
) -> None:
    launched(machine).boot("exit 75", "hold 75", "serve", "exit 0")
    machine.wait_for_life(2)
    machine.imds.set_notice()
    machine.let_go(2)
    machine.wait_for("this machine is reclaimed")
    assert (machine.lives(), machine.desired()) == (2, 1)

    machine.cut_power()  # as the reclaim does; only that this one comes back
    machine.imds.documents = {path: text for path, text in machine.imds.documents.items() if "/spot/" not in path}
    machine.power_on()
    machine.wait_for_life(3)
    machine.sh("systemctl --no-block reboot")
    machine.wait_until_off()
    assert (machine.scratch / "saved.3").exists()
    assert machine.desired() == 1

    machine.power_on()
    machine.wait_until_off()
    assert (machine.lives(), machine.desired(), machine.failed()) == (4, 0, None)


def test_a_crash_loop_ends_the_run_after_four_starts_which_a_power_cut_does_not_reset_but_a_checkpoint_does(
    machine: Machine,
) -> None:
    launched(machine).boot("exit 1", "hold 137", "exit 1", "serve", "exit 1", "exit 3")
    machine.wait_for_life(2)
    machine.put(f"checkpoints/{machine.run}/HEAD.json", {"attempt": 2, "newest": "step-00000100.2"})
    machine.let_go(2)  # the third start is the first since the checkpoint
    machine.wait_for_life(4)
    machine.put(f"runs/{machine.run}/attempts/10.json", {})
    machine.put(f"runs/{machine.run}/attempts/9.json", {})
    machine.cut_power()
    machine.power_on()
    machine.wait_until_off()
    assert (machine.lives(), machine.desired()) == (6, 0)
    failed = machine.failed()
    assert failed is not None
    assert (failed["attempt"], failed["exit"]) == (10, 1)
    assert failed["message"] == "4 crashes without a new checkpoint in between; the last: exit code 3"


def test_a_machine_that_is_not_needed_waits_three_times_for_the_other_and_then_goes_alone(machine: Machine) -> None:
    launched(machine).boot("exit 76")
    machine.wait_until_off()
    assert machine.lives() == 4
    assert "autoscaling.TerminateInstanceInAutoScalingGroup" in machine.aws.calls()
    assert "autoscaling.SetDesiredCapacity" not in machine.aws.calls()
    assert (machine.group_now()["Instances"], machine.desired()) == ([], 0)
    assert machine.failed() is None


def test_what_only_the_user_can_change_is_told_and_ends_a_prepare_without_its_token_until_a_later_attempt(
    machine: Machine,
) -> None:
    message = "no token: make secret"
    own = {"attempt": 2, "exit": 78, "message": "the trainer's own words"}
    machine.kind, machine.run = "prepare", "prepare-imagenet"
    launched(machine, arguments=("--data", "ILSVRC/imagenet-1k"), data="")
    machine.aws.fault("secretsmanager.GetSecretValue", code="AccessDeniedException", message="not allowed")
    machine.put(f"runs/{machine.run}/attempts/1.json", {})
    machine.boot(f"exit 78 {message}", "hold 78")
    machine.wait_until_off()
    assert machine.argv() == ["/bin/python", "-m", "trainer.prepare", "--data", "ILSVRC/imagenet-1k"]
    assert (machine.scratch / "secrets.1").read_text() == ""
    assert [line for line in machine.log("boot") if "without a Hugging Face token" in line and "not allowed" in line]
    assert (machine.desired(), machine.failed()) == (0, {"attempt": 1, "exit": 78, "message": message})

    machine.set_desired(1)  # and the group gets another machine, which finds the failure
    machine.power_on()
    machine.wait_until_off()
    assert (machine.lives(), machine.desired()) == (1, 0)

    machine.set_desired(1)
    machine.put(f"runs/{machine.run}/attempts/2.json", {})  # somebody has started it again since
    machine.power_on()
    machine.wait_for_life(2)
    machine.put(f"runs/{machine.run}/failed.json", own)
    machine.let_go(2)
    machine.wait_until_off()
    assert (machine.lives(), machine.desired(), machine.failed()) == (2, 0, own)


def test_at_the_deadline_the_run_saves_then_the_group_wants_no_machine_then_it_powers_off(machine: Machine) -> None:
    machine.settings["STOP_SECONDS"] = "2"
    launched(machine).boot("serve")
    machine.wait_for_life(1)
    machine.imds.documents[DEADLINE] = str(int(time.time()) + 8)
    machine.sh("systemctl kill --kill-whom=main --signal=KILL resnet-spot-deadline.service")  # it comes back, and reads
    machine.wait_until_off()
    saved = sorted(machine.scratch.glob("saved.*"))
    assert len(saved) == machine.lives()
    assert machine.desired() == 0
    told = [line for line in machine.log("boot") if line.startswith("the deadline")]
    assert told[-2:] == ["the deadline has come: stopping the run", "the deadline: scaling resnet-spot-train to 0"]


def test_a_machine_without_a_reason_to_live_powers_off_at_once_even_where_its_group_cannot_be_asked(
    machine: Machine,
) -> None:
    """In turn: its run is done, its deadline is past, it cannot learn its deadline."""
    machine.settings["IDENTIFY_SECONDS"] = "2"
    launched(machine)
    machine.put(f"runs/{machine.run}/done.json", {})
    machine.boot("serve")
    machine.wait_until_off()
    assert machine.desired() == 0

    machine.set_desired(1)
    machine.imds.documents[DEADLINE] = str(int(time.time()) + 100)  # too near for anything but to leave
    machine.power_on()
    machine.wait_until_off()
    assert machine.desired() == 0

    machine.set_desired(1)
    machine.imds.answering.clear()
    machine.power_on()
    machine.wait_until_off()
    machine.imds.answering.set()
    assert (machine.lives(), machine.desired()) == (0, 1)  # no role, no call: the guard's business


def test_an_image_that_cannot_be_pulled_counts_as_a_crash(machine: Machine) -> None:
    machine.image = machine.image[:-4] + "0000"
    machine.files["var/lib/resnet-spot/starts"] = b"3\n"  # after three crashes
    launched(machine).boot("serve")
    machine.wait_until_off()
    failed = machine.failed()
    assert failed is not None
    assert failed["message"].endswith("the image cannot be pulled")
    assert (machine.lives(), machine.desired()) == (0, 0)
    assert machine.console().count("the image cannot be pulled: ") == 3
