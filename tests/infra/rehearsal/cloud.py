"""What AWS does by itself while a rehearsal goes on: machines boot and end, and the guard's clock ticks.

Each emulated instance becomes a container with systemd and a Docker engine of its own (tests/infra/boot). It runs the
user data of the deployed launch template under the deployed role, and in it the trainer's real processes. The guard is
the deployed zip under its role, once in TICK_SECONDS instead of a minute.

What is a stand-in: the trainer's image has the code alone and sees this machine's Python; there is no GPU, so no
`--gpus all`; waits are short, also those between saves and segments (test_rehearse.py), and the lease of a machine that
is lost ends after seconds.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
from docker.errors import NotFound
from docker.models.containers import Container

from tests.emulator.aws import Aws
from tests.emulator.imds import Imds
from tests.engine import LABEL
from tests.infra.boot.boot_machines import (
    CAPABILITIES,
    ECR,
    MACHINE_IMAGE,
    METADATA,
    OUTSIDE,
    UP,
)  # fmt: skip
from tests.infra.rehearsal.machine_files import SHARED, files_of, packed

TICK_SECONDS = 3.0  # of the guard, instead of a minute
LOOK_SECONDS = 0.3
SAVE_SECONDS = 120  # for a machine that shuts down
TICKS = """\
import time, traceback
import {module} as guard
while True:
    try:
        guard.{handler}({{}}, None)
    except Exception:  # as for Lambda, whose next call comes all the same
        traceback.print_exc()
    time.sleep({seconds})
"""


class Cloud:
    """The machines and the guard of one account, until `stop`. What goes wrong in a thread is in `troubles`."""

    def __init__(self, aws: Aws, engine: docker.DockerClient, registry: str, folder: Path) -> None:
        self.aws, self.engine, self.registry, self.folder = aws, engine, registry, folder
        self.machines: dict[str, Booted] = {}
        self.guard: subprocess.Popen[bytes] | None = None
        self.troubles: list[str] = []
        self.is_over = threading.Event()
        aws.set(machines_boot=True)
        self.threads = [threading.Thread(target=self.forever, args=(one,)) for one in (self.watch, self.tick)]
        for thread in self.threads:
            thread.start()

    def forever(self, look: Callable[[], None]) -> None:
        while not self.is_over.wait(LOOK_SECONDS):
            try:
                look()
            except Exception as error:  # noqa: BLE001  # the test fails by it, and the other machines go on
                self.troubles.append(repr(error))

    def watch(self) -> None:
        """Boot what is new, end what was terminated, and tell EC2 of what has powered off."""
        ec2 = self.aws.client("ec2")
        for reservation in ec2.describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                id, state = instance["InstanceId"], instance["State"]["Name"]
                machine = self.machines.get(id)
                if machine is None and state == "running":
                    self.machines[id] = machine = Booted(self, instance)
                    machine.thread.start()
                elif machine and state == "shutting-down" and not machine.is_ending:
                    machine.end(is_cut=id in self.aws.cut())
                elif machine and state == "shutting-down" and machine.is_off():
                    self.aws.set(off=[id])
                elif machine and state == "running" and machine.is_off():
                    ec2.terminate_instances(InstanceIds=[id])  # as its launch template says of a shutdown

    def tick(self) -> None:
        """The deployed guard ticks as long as it is deployed."""
        client = self.aws.client("lambda")
        for function in client.list_functions()["Functions"]:
            if self.guard is None and function["FunctionName"].endswith("-guard"):
                self.start_guard(function)
        if self.guard and not client.list_functions()["Functions"]:
            self.stop_guard()

    def start_guard(self, function: dict[str, Any]) -> None:
        """The newest zip among the assets of CDK, under the function's role and with its environment."""
        s3 = self.aws.client("s3")
        (bucket,) = [b["Name"] for b in s3.list_buckets()["Buckets"] if b["Name"].startswith("cdk-")]
        zips = [o for o in s3.list_objects_v2(Bucket=bucket)["Contents"] if o["Key"].endswith(".zip")]
        newest = max(zips, key=lambda one: one["LastModified"])["Key"]
        code = self.folder / "guard"
        with zipfile.ZipFile(io.BytesIO(s3.get_object(Bucket=bucket, Key=newest)["Body"].read())) as archive:
            archive.extractall(code)
        module, _, handler = function["Handler"].rpartition(".")
        granted = self.assume(function["Role"], "guard")
        environ = self.aws.environ | {
            "AWS_ACCESS_KEY_ID": granted["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": granted["SecretAccessKey"],
            "AWS_SESSION_TOKEN": granted["SessionToken"],
        }  # fmt: skip
        ticks = TICKS.format(module=module, handler=handler, seconds=TICK_SECONDS)
        with (self.folder / "guard.log").open("ab") as log:
            self.guard = subprocess.Popen(
                [sys.executable, "-c", ticks], cwd=code, env=environ | function["Environment"]["Variables"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def stop_guard(self) -> None:
        if self.guard:
            self.guard.terminate()
            self.guard.wait()
            self.guard = None

    def assume(self, role: str, name: str) -> dict[str, Any]:
        return dict(self.aws.client("sts").assume_role(RoleArn=role, RoleSessionName=name)["Credentials"])

    def stop(self) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        for machine in self.machines.values():
            machine.thread.join()
            machine.remove()
        self.stop_guard()


class Booted:
    """One machine."""

    def __init__(self, cloud: Cloud, instance: dict[str, Any]) -> None:
        self.cloud, self.instance, self.id = cloud, instance, instance["InstanceId"]
        self.container: Container | None = None
        self.imds = Imds()
        self.is_ending = self.has_begun = False
        self.thread = threading.Thread(target=self.boot_or_say)

    def boot_or_say(self) -> None:
        try:
            self.boot()
        except Exception as error:  # noqa: BLE001
            if not self.is_ending:  # a machine may be ended while it boots
                self.cloud.troubles.append(f"{self.id}: {error!r}")

    def boot(self) -> None:
        data = self.template()
        self.imds.documents |= self.documents(data["IamInstanceProfile"]["Arn"])
        config = json.loads(base64.b64decode(data["UserData"]).decode().partition("\n")[2])
        volumes = [f"{folder}:/host{folder}:ro" for folder in SHARED]
        self.container = self.cloud.engine.containers.create(
            MACHINE_IMAGE, cap_add=CAPABILITIES, device_cgroup_rules=["a *:* rwm"], network_mode="host", tty=True,
            security_opt=["seccomp=unconfined", "apparmor=unconfined"], environment={"RELAYS": self.relays()},
            tmpfs={"/run": "", "/run/lock": ""}, extra_hosts={ECR: OUTSIDE}, labels={LABEL: "yes"},
            volumes=[*volumes, "/opt/dlami/nvme", "/var/lib/docker"],
        )  # fmt: skip
        self.container.put_archive("/", packed(files_of(config, self.cloud.aws)))
        if self.is_ending:
            return
        self.container.start()
        self.has_begun = True
        while not self.is_off() and self.run("systemctl", "is-system-running").strip() not in UP:
            time.sleep(LOOK_SECONDS)
        for command in config["runcmd"]:
            self.run(*command)

    def template(self) -> dict[str, Any]:
        """The data of the launch template of the group that launched it."""
        autoscaling, tags = self.cloud.aws.client("autoscaling"), self.tags()
        name = tags["aws:autoscaling:groupName"]
        (group,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        named = group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]["LaunchTemplateId"]
        versions = self.cloud.aws.client("ec2").describe_launch_template_versions(LaunchTemplateId=named)
        return dict(max(versions["LaunchTemplateVersions"], key=lambda one: one["VersionNumber"])["LaunchTemplateData"])

    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.instance["Tags"]}

    def documents(self, profile: str) -> dict[str, str]:
        """What its metadata service tells, with credentials of its profile's role."""
        name = profile.rpartition("/")[2]
        found = self.cloud.aws.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        granted = self.cloud.assume(found["Roles"][0]["Arn"], self.id)
        credentials = {
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": granted["AccessKeyId"],
            "SecretAccessKey": granted["SecretAccessKey"], "Token": granted["SessionToken"],
            "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        told = {
            "instance-id": self.id, "instance-type": self.instance["InstanceType"],
            "placement/availability-zone": self.instance["Placement"]["AvailabilityZone"],
            "instance-life-cycle": self.instance.get("InstanceLifecycle", "on-demand"),
            "iam/security-credentials/": "role", "iam/security-credentials/role": json.dumps(credentials),
        }  # fmt: skip
        told |= {f"tags/instance/{key}": value for key, value in self.tags().items()}
        return {f"/latest/meta-data/{path}": text for path, text in told.items()}

    def relays(self) -> str:
        """The addresses of its world, each with a port of this machine behind it."""
        aws, imds = (one.rpartition(":")[2] for one in (self.cloud.aws.endpoint, self.imds.endpoint))
        registry = self.cloud.registry.rpartition(":")[2]
        return f"{METADATA}:80={imds} {OUTSIDE}:{aws}={aws} {OUTSIDE}:80={registry}"

    def run(self, *command: str) -> str:
        assert self.container is not None
        return str(self.container.exec_run(list(command))[1].decode(errors="replace"))

    def is_off(self) -> bool:
        """Also if it was ended before it had begun to boot."""
        if self.container is None or not self.has_begun:
            return self.is_ending and not self.thread.is_alive()
        self.container.reload()
        return bool(self.container.status == "exited")

    def end(self, *, is_cut: bool) -> None:
        """As EC2 does: it asks the operating system to shut down, or, if it was told to skip that, cuts the power."""
        self.is_ending = True
        threading.Thread(target=self._end, args=(is_cut,), daemon=True).start()

    def _end(self, is_cut: bool) -> None:
        with suppress(NotFound):
            if self.container is not None and is_cut:
                self.container.kill()
            elif self.container is not None:
                self.container.stop(timeout=SAVE_SECONDS)

    def console(self) -> str:
        return str(self.container.logs().decode(errors="replace")) if self.container else ""

    def remove(self) -> None:
        self.imds.close()
        if self.container is not None:
            self.container.remove(force=True, v=True)
