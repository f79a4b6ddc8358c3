"""The machine's life, from its first boot to its power-off, with infra/boot as it ships: real systemd, a real Docker
engine, a real AWS CLI against the emulator. The trainer is a stand-in that ends as its plan says.

Here the run goes on until it is done or cannot go on; test_boot_ends.py has the other ends. A group whose machine
powers off while it wants one gets another: so wherever the end of a machine is checked, the group's capacity is, too.
It can only have become 0 before, since the scripts end with the machine.
"""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest

from tests.infra.boot.boot_machines import CANARY, DEADLINE, ECR, Machine, poll

pytestmark = pytest.mark.engine
SPY = "while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >>/var/tmp/seen; sleep 0.02; done"
WEBHOOK = "https://hooks.example.org/canary"
LOST = "InternalServiceError"  # with status 400, at which the CLI itself does not try again


def test_a_run_that_finishes_leaves_no_machine_and_its_token_is_nowhere_but_in_the_container_s_file(
    machine: Machine,
) -> None:
    machine.launched(arguments=("rn50", "--note", 'it\'s $HOME "here"'), data="ILSVRC/imagenet-1k")
    machine.aws.fault("secretsmanager.GetSecretValue", LOST, "lost", times=1)
    machine.aws.fault("sts.AssumeRole", LOST, "no role", times=1)
    machine.settings["RENEW_SECONDS"] = "1"
    machine.boot("hold 0", spy=SPY)
    machine.wait_for_life(1)
    seen = machine.sh("docker inspect resnet-spot; docker history --no-trunc $(docker images -q); cat /var/tmp/seen")
    handed = "docker exec resnet-spot cat /run/handover/credentials.json"
    first = machine.sh(handed)
    poll("the credentials are renewed", lambda: machine.sh(handed) != first)
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
        "TRAINER_NODE": machine.instance,
        "TRAINER_DATA": "ILSVRC/imagenet-1k",
        "TRAINER_SCRATCH_DIR": "/scratch",
        "TRAINER_HANDOVER_DIR": "/run/handover",
        "TRAINER_SECRETS_DIR": "/run/secrets",
        "TRAINER_DEADLINE": str(int(machine.imds.documents[DEADLINE]) - 120),
        "TRAINER_IMAGE": machine.image,
    }
    credentials = json.loads(first)
    assert credentials["Version"] == 1
    assert 3000 < datetime.fromisoformat(credentials["Expiration"]).timestamp() - time.time() < 3600
    assert [line for line in machine.log("boot") if "credentials cannot be renewed" in line and "no role" in line]
    assert [line for line in machine.log("boot") if "credentials are renewed again" in line]
    assert len([line for line in machine.log("boot") if line.startswith("the session policy, packed: ")]) == 1
    for line in ("this machine will be gone ", "credentials are renewed again", "the container ended with exit code"):
        assert line in machine.console()  # one of each unit, as EC2's console output has it
    assert (machine.scratch / "uid.1").read_text() == "10001\n"
    assert " tmpfs ro," in (machine.scratch / "mounts.1").read_text()
    assert machine.log("1") == ["life 1: hold 0"]
    assert [line for line in machine.log("boot") if "exit code 0" in line]
    assert machine.log("boot")[0].startswith("this machine will be gone at ")

    assert [line for line in machine.log("boot") if line.startswith("the Hugging Face token: ") and "lost" in line]
    assert (machine.scratch / "secrets.1").read_text().strip() == CANARY
    assert "/opt/resnet-spot/run" in seen
    assert ECR in seen
    for text in (seen, machine.console(), *machine.log("boot"), *machine.log("1")):
        assert CANARY not in text


def test_an_interrupted_run_goes_on_but_not_on_a_machine_that_is_reclaimed_and_a_reboot_lets_it_save(
    machine: Machine,
) -> None:
    machine.files["var/lib/resnet-spot/starts"] = b"2\n"  # after two crashes; that AWS gives no credentials is none
    machine.settings["CREDENTIALS_SECONDS"] = "1"
    machine.launched().aws.fault("sts.AssumeRole", LOST, "no role")
    secrets = json.dumps({"hf_token": CANARY, "webhook": WEBHOOK})
    machine.aws.client("secretsmanager").put_secret_value(
        SecretId=machine.installation.secret_name, SecretString=secrets
    )
    machine.boot("exit 75", "serve", "serve", "exit 0")
    machine.wait_for("there are no credentials for the container")
    machine.aws.heal()
    machine.wait_for_life(2)
    machine.imds.set_notice()
    machine.wait_for("this machine is reclaimed")
    assert (machine.scratch / "saved.2").exists()
    assert (machine.lives(), machine.desired()) == (2, 1)
    assert (machine.scratch / "secrets.2").read_text() == WEBHOOK  # and no token: its data are in the bucket

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
    machine.launched().boot("exit 1", "hold 137", "exit 1", "serve", "exit 1", "exit 3")
    machine.wait_for_life(2)
    machine.put(f"checkpoints/{machine.run}/HEAD.json", {"attempt": 2, "newest": r"step\n\061"})
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


def test_an_image_or_a_token_that_cannot_be_fetched_counts_as_a_crash(machine: Machine) -> None:
    machine.image = machine.image[:-4] + "0000"
    machine.files["var/lib/resnet-spot/starts"] = b"2\n"  # after two crashes
    machine.launched(data="").aws.fault("secretsmanager.GetSecretValue", LOST, times=3)
    machine.boot("serve")
    machine.wait_until_off()
    failed = machine.failed()
    assert failed is not None
    assert failed["message"].endswith("the image cannot be pulled")
    assert (machine.lives(), machine.desired()) == (0, 0)
    token, image = machine.console().split("the Hugging Face token cannot be read: ")
    assert token.count("the Hugging Face token: ") == 3
    assert image.count("the image cannot be pulled: ") >= 3
