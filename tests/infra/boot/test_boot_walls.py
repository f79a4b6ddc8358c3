"""What somebody who got into the container can reach: attacks from inside, on a machine that has booted."""

from __future__ import annotations

import json

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.emulator.aws import REGION
from tests.emulator.principals import put_role
from tests.infra.boot.boot_machines import METADATA, Machine

pytestmark = pytest.mark.engine
ASK = f"docker exec resnet-spot sh -c 'echo GET / HTTP/1.0 | nc -w 3 {METADATA} 80'"
RULE = f"DOCKER-USER --destination {METADATA} --jump REJECT"
LARGE = b"{" + b" " * (1 << 20) + b"}"


def check_credentials(handed: dict[str, str], machine: Machine) -> None:
    """They reach the run's own files and its dataset, and nothing else."""
    session = boto3.Session(handed["AccessKeyId"], handed["SecretAccessKey"], handed["SessionToken"], REGION)
    s3 = session.client("s3", endpoint_url=machine.aws.endpoint)

    def may(operation: str, key: str) -> bool:
        code = ""
        try:
            getattr(s3, operation)(Bucket="bucket", Key=key)
        except ClientError as error:
            code = str(error.response["Error"]["Code"])
        assert code in ("", "NoSuchKey", "AccessDenied")
        return code != "AccessDenied"

    for key in (f"runs/{machine.run}/heartbeat.json", f"checkpoints/{machine.run}/HEAD.json"):
        assert may("put_object", key)
    assert may("get_object", "datasets/d/1/index.json")
    for key in ("runs/rn50-2/x", "checkpoints/rn50-2/HEAD.json", "datasets/d/1/x", f"runs/{machine.run}/spec.json"):
        assert not may("put_object", key)
    for key in ("runs/rn50-2/x", "checkpoints/rn50-2/HEAD.json", "datasets/d/2/index.json"):
        assert not may("get_object", key)


def check_walls(machine: Machine) -> None:
    """What came of each attack that the stand-in of the trainer tried in its first life."""
    walls = dict(line.split(": ", 1) for line in (machine.scratch / "walls.1").read_text().splitlines())
    kib = int(machine.sh("sed -n 's/^MemTotal: *//p' /proc/meminfo").split()[0])
    assert walls.pop("AWS").startswith("HTTP/1.")
    assert walls == {
        "metadata service": f"nc: can't connect to remote host ({METADATA}): Connection refused",
        "interfaces": "eth0 lo",
        "writes its root": "no",
        "writes what it is handed": "no",
        "runs what it writes to /tmp": "yes",  # as torch.compile does
        "processes": "4096",
        "core": "0",
        "shared memory": str(1 << 20),
        "capabilities": "0000000000000000",
        "memory": str((kib - (1 << 20)) * 1024 // 4096 * 4096),
    }


def test_the_container_reaches_aws_but_neither_the_metadata_service_nor_the_machine(machine: Machine) -> None:
    """And without the wall no further container starts. One machine for both, since a boot takes long."""
    machine.settings["RUN_ROLE"] = put_role(machine.aws.client("iam"), "train-run")
    machine.launched().boot("hold 137", "exit 0")
    machine.wait_for_life(1)
    check_credentials(json.loads(machine.sh("docker exec resnet-spot cat /run/handover/credentials.json")), machine)
    check_walls(machine)
    machine.sh(f"iptables --delete {RULE}")  # without the wall the same attack gets an answer
    assert "401" in machine.sh(ASK)

    machine.sh("iptables --flush && iptables --delete-chain DOCKER-USER")  # so there is no chain for the wall
    machine.sh("echo 3 >/var/lib/resnet-spot/starts")  # the next start is the last
    machine.aws.client("s3").put_object(Bucket="bucket", Key=f"checkpoints/{machine.run}/HEAD.json", Body=LARGE)
    machine.let_go(1)
    machine.wait_until_off()
    failed = machine.failed()
    assert failed is not None
    assert "the metadata service cannot be closed to the container: iptables: No chain" in failed["message"]
    assert (machine.lives(), machine.desired()) == (1, 0)
    assert "HEAD.json: bytes 0-1048575/1048578" in machine.console()
