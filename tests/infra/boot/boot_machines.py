"""Machines that boot: a container with systemd and a Docker engine of its own, on which infra/boot is installed.

AWS, the metadata service and the registry are those of tests/emulator, behind a network of the machine's own. What an
AMI, the kernel and that network do is in the folder boot_machine/. A machine that has powered off is a container that
has ended, and can be started again.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import pytest
from docker.models.containers import Container

from infra.config import Installation, Tag
from infra.run.spec import Spec
from infra.stacks.user_data import travelling
from tests.emulator.aws import ACCOUNT, REGION, Aws
from tests.emulator.imds import Imds
from tests.emulator.principals import put_role
from tests.engine import LABEL

STAND_INS = Path(__file__).with_name("boot_machine")
MACHINE_IMAGE = "resnet-spot-test-machine:bookworm"
UP = ("running", "degraded")
PATIENCE_SECONDS = 300  # of a machine that shares two cores with other machines, each of which starts many processes
ECR = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
OUTSIDE = "10.9.0.1"  # the address of the emulators, and of that registry, on the machines
METADATA = "169.254.169.254"
DEADLINE = f"/latest/meta-data/tags/instance/{Tag.DEADLINE}"
RUN = f"/latest/meta-data/tags/instance/{Tag.RUN}"
CANARY = "hf_canaryCANARYcanary0123456789"
CAPABILITIES = [  # --privileged asks for more than some hosts have themselves
    "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_NICE", "SYS_PTRACE", "SYS_TTY_CONFIG", "SYSLOG", "NET_ADMIN", "MKNOD",
    "IPC_LOCK", "DAC_READ_SEARCH", "AUDIT_CONTROL", "LEASE", "LINUX_IMMUTABLE",
]  # fmt: skip
NO_WAITS = {"RETRY_SECONDS": "0", "CRASH_SECONDS": "0", "INTERRUPTED_SECONDS": "0", "LEASE_SECONDS": "0"}
NO_RESTART_WAIT = b"[Service]\nRestartSec=0\n"
DOCKER_ENVIRONMENT = b"[Service]\nEnvironment=AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing\n"


def poll(what: str, condition: Callable[[], Any], timeout: float = PATIENCE_SECONDS) -> Any:
    """Wait until it holds; what it returned."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {timeout} s")
        time.sleep(0.1)
    return found


@dataclass
class Machine:
    """One machine of the group `<installation>-<kind>`, whose run is `run`."""

    engine: docker.DockerClient
    aws: Aws
    imds: Imds
    image: str  # the trainer's, by digest
    folder: Path  # what is mounted at /opt/dlami/nvme
    run: str = "rn50-1"
    kind: str = "train"
    settings: dict[str, str] = field(default_factory=dict)  # further lines of /etc/resnet-spot.env
    files: dict[str, bytes] = field(default_factory=dict)  # further files, which are there at the first boot
    installation: Installation = field(default_factory=Installation)
    instance: str = ""
    container: Container | None = None

    @property
    def group(self) -> str:
        return self.installation.groups_of(self.kind)[0]

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def launched(self, **spec: Any) -> Machine:
        self.prepare_account(**spec)
        self.prepare_metadata()
        return self

    def prepare_account(self, **spec: Any) -> None:
        """What `deploy` and `launch` leave: bucket, group with one instance, log group, secret, spec.json."""
        self.aws.client("s3").create_bucket(Bucket="bucket")
        autoscaling = self.aws.client("autoscaling")
        autoscaling.create_launch_configuration(LaunchConfigurationName="lc", ImageId="ami-1", InstanceType="g6.xlarge")
        autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=self.group, LaunchConfigurationName="lc", MinSize=0, MaxSize=1, DesiredCapacity=1,
            AvailabilityZones=[f"{REGION}a"],
        )  # fmt: skip
        self.aws.client("logs").create_log_group(logGroupName=self.installation.log_group)
        self.aws.client("secretsmanager").create_secret(Name=self.installation.secret_name, SecretString=CANARY)
        now = time.time()
        facts: dict[str, Any] = {
            "arguments": ("rn50",),
            "data": "s3://bucket/datasets/d/1",
            "budget_usd": 9,
            "hours": 1,
        }
        written = Spec(run_id=self.run, kind=self.kind, created=now, deadline=now + 3600, **(facts | spec))
        self.put(f"runs/{self.run}/spec.json", asdict(written))
        [instance] = self.group_now()["Instances"]
        self.instance = instance["InstanceId"]

    def prepare_metadata(self) -> None:
        """The machine has its own role, and may do no more than that says; so has its run."""
        put_role(self.aws.client("iam"), f"{self.kind}-run")
        role = put_role(self.aws.client("iam"), f"{self.kind}-machine")
        granted = self.aws.client("sts").assume_role(RoleArn=role, RoleSessionName=self.instance)["Credentials"]
        credentials = {
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": granted["AccessKeyId"],
            "SecretAccessKey": granted["SecretAccessKey"], "Token": granted["SessionToken"],
            "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        self.imds.documents |= {
            "/latest/meta-data/instance-id": self.instance,
            RUN: self.run,
            DEADLINE: str(int(time.time()) + 3600),
            "/latest/meta-data/iam/security-credentials/": "role",
            "/latest/meta-data/iam/security-credentials/role": json.dumps(credentials),
        }

    def boot(self, *plan: str, before: str = "true", spy: str = "") -> None:
        """Power on for the first time, with the files and the one command of the user data.

        What the trainer does in each life is said in boot_machine/trainer. `before` runs before that command, and
        `spy` beside all that.
        """
        self.scratch.mkdir(exist_ok=True)
        (self.scratch / "plan").write_text("\n".join(plan) + "\n")
        self.container = self.engine.containers.create(
            MACHINE_IMAGE, cap_add=CAPABILITIES, device_cgroup_rules=["a *:* rwm"], network_mode="host", tty=True,
            security_opt=["seccomp=unconfined", "apparmor=unconfined"], environment={"RELAYS": self._relays()},
            tmpfs={"/run": "", "/run/lock": ""}, extra_hosts={ECR: OUTSIDE}, labels={LABEL: "yes"},
            volumes=[f"{self.folder}:/opt/dlami/nvme", "/var/lib/docker"],
        )  # fmt: skip
        self.write_files()
        self.power_on()
        poll("systemd is up", lambda: self._exec("systemctl", "is-system-running")[1].strip() in UP)
        self.sh(before)
        if spy:
            self._exec("sh", "-c", f"({spy}) >/dev/null 2>&1 &")
        self.sh("/opt/resnet-spot/install")

    def power_on(self) -> None:
        assert self.container is not None
        self.container.start()

    def cut_power(self) -> None:
        assert self.container is not None
        self.container.kill()
        self.wait_until_off()

    @property
    def registry(self) -> str:
        return self.image.partition("/")[0]

    def _relays(self) -> str:
        aws, registry = urlsplit(self.aws.endpoint).port, self.registry.partition(":")[2]
        ports = {f"{METADATA}:80": urlsplit(self.imds.endpoint).port, f"{OUTSIDE}:{aws}": aws}
        return " ".join(f"{one}={port}" for one, port in (ports | {f"{OUTSIDE}:{registry}": registry}).items())

    def write_files(self) -> None:
        """Its files, also of a machine that is off, with the settings of now."""
        assert self.container is not None
        daemon = {"insecure-registries": [self.registry]}
        environment = {
            "GROUP": self.group, "STORE": "s3://bucket", "LOG_GROUP": self.installation.log_group,
            "IMAGE": self.image, "SECRET": self.installation.secret_name, "REGION": REGION, "KIND": self.kind,
            "RUN_ROLE": f"arn:aws:iam::{ACCOUNT}:role/{self.kind}-run", "GPU": "",
            "AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{urlsplit(self.aws.endpoint).port}",
        } | NO_WAITS | self.settings  # fmt: skip
        files = (
            {f"opt/resnet-spot/{name}": content for name, content in travelling().items()}
            | {
                "etc/resnet-spot.env": "".join(f"{name}={value}\n" for name, value in environment.items()).encode(),
                "etc/docker/daemon.json": json.dumps(daemon).encode(),
                "etc/systemd/system/docker.service.d/test.conf": DOCKER_ENVIRONMENT,
                "etc/systemd/system/resnet-spot.service.d/test.conf": NO_RESTART_WAIT,
            }
            | self.files
        )
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o755 if name.startswith(("opt/", "usr/")) else 0o644
                tar.addfile(member, io.BytesIO(content))
        self.container.put_archive("/", archive.getvalue())

    def _exec(self, *command: str) -> tuple[int, str]:
        assert self.container is not None
        code, output = self.container.exec_run(list(command))
        return int(code), output.decode(errors="replace")

    def sh(self, script: str) -> str:
        """The output of a shell command on the machine; it must succeed."""
        code, output = self._exec("sh", "-c", script)
        assert code == 0, f"{script}: exit code {code}: {output}"
        return output

    def is_on(self) -> bool:
        assert self.container is not None
        self.container.reload()
        return bool(self.container.status == "running")

    def wait_until_off(self, timeout: float = PATIENCE_SECONDS) -> None:
        end = time.monotonic() + timeout
        while self.is_on():
            if time.monotonic() > end:
                pytest.fail(f"the machine is on after {timeout} s; its console:\n{self.console()}")
            time.sleep(0.1)

    def console(self) -> str:
        """What the units and systemd say there: of a real machine, EC2's console output has it."""
        assert self.container is not None
        return str(self.container.logs().decode(errors="replace"))

    def wait_for(self, text: str) -> None:
        """Until the console shows it."""
        poll(f"{text!r} on the console", lambda: text in self.console() or self._fail_if_off())

    def wait_for_life(self, number: int) -> None:
        """The container runs for the n-th time."""
        poll(f"life {number}", lambda: (self.scratch / f"argv.{number}").exists() or self._fail_if_off())

    def _fail_if_off(self) -> bool:
        if not self.is_on():
            pytest.fail(f"the machine is off; its console:\n{self.console()}")
        return False

    def let_go(self, life: int) -> None:
        """Ends the `hold` of a life."""
        (self.scratch / f"go.{life}").touch()

    def lives(self) -> int:
        return len(list(self.scratch.glob("argv.*")))

    def argv(self, life: int = 1) -> list[str]:
        return (self.scratch / f"argv.{life}").read_text().splitlines()

    def environ(self, life: int = 1) -> dict[str, str]:
        lines = (self.scratch / f"env.{life}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def group_now(self) -> dict[str, Any]:
        answer = self.aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
        return dict(answer["AutoScalingGroups"][0])

    def desired(self) -> int:
        return int(self.group_now()["DesiredCapacity"])

    def set_desired(self, capacity: int) -> None:
        client = self.aws.client("autoscaling")
        client.set_desired_capacity(AutoScalingGroupName=self.group, DesiredCapacity=capacity)

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.aws.client("s3").put_object(Bucket="bucket", Key=key, Body=json.dumps(value).encode())

    def get(self, key: str) -> dict[str, Any] | None:
        s3 = self.aws.client("s3")
        if "Contents" not in s3.list_objects_v2(Bucket="bucket", Prefix=key):
            return None
        found: dict[str, Any] = json.loads(s3.get_object(Bucket="bucket", Key=key)["Body"].read())
        return found

    def failed(self) -> dict[str, Any] | None:
        return self.get(f"runs/{self.run}/failed.json")

    def log(self, stream: str) -> list[str]:
        """The lines of a log stream of this machine: "boot", or the number of a life."""
        answer = self.aws.client("logs").get_log_events(
            logGroupName=self.installation.log_group, logStreamName=f"{self.run}/{self.instance}/{stream}"
        )
        return [event["message"] for event in answer["events"]]

    def remove(self) -> None:
        if self.container is not None:
            self.container.remove(force=True, v=True)
