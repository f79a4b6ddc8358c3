"""A checkout of its own, as a user has it: its commands run against the emulated account, with unmodified `cdk`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from infra.config import AMI, context_key
from infra.operate.session import ExitCode
from tests import ROOT
from tests.emulator.aws import Aws
from tests.emulator.registry import Registry
from tests.engine import BASE

LIMIT_SECONDS = 300
CPU_AMI = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"


@dataclass(frozen=True)
class Checkout:
    """A clone of its own, whose user has the emulated account and a home without any settings."""

    folder: Path
    environ: dict[str, str]

    def run(self, *command: str, stdin: str = "", timeout: float = LIMIT_SECONDS) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environ, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=timeout,
        )  # fmt: skip

    def make(self, *arguments: str, code: int = ExitCode.DONE, stdin: str = "", timeout: float = LIMIT_SECONDS) -> str:
        """What it says. Make itself ends with 2 whatever its command ended with, and says the number."""
        ended = self.run("make", *arguments, stdin=stdin, timeout=timeout)
        found = re.search(r"^make: \*\*\* \[.*\] Error (\d+)$", ended.stdout, re.MULTILINE)
        assert (int(found[1]) if found else ended.returncode) == code, f"make {' '.join(arguments)}\n{ended.stdout}"
        return ended.stdout


@contextmanager
def make_checkout(
    aws: Aws, registry: Registry, engine: docker.DockerClient, folder: Path, dockerfile: str, bucket: str = ""
) -> Iterator[Checkout]:
    """The files of the working tree, but another Dockerfile, since building the real one takes minutes.

    The Dockerfile's images have the label resnet-spot-end-to-end=yes, and are removed afterwards.
    """
    try:
        engine.images.get(BASE)
    except docker.errors.ImageNotFound:
        pytest.skip(f"no image {BASE} to build on (make ci-deps, as root, makes it)")
    aws.set(registry=registry.host, parameters={AMI: "ami-12345678", CPU_AMI: "ami-23456789"})
    clone = folder / "checkout"
    for name in tracked_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    (clone / "Dockerfile").write_text(dockerfile)
    settings = json.loads((clone / "cdk.json").read_text())
    settings["context"][context_key("bucket_name")] = bucket
    (clone / "cdk.json").write_text(json.dumps(settings))
    for name in (".venv-infra", "node_modules"):
        (clone / name).symlink_to(ROOT / name)
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "DOCKER_HOST")}
    homes = {name: str(folder / name) for name in ("HOME", "CDK_HOME", "DOCKER_CONFIG")}
    path = {"PATH": f"{without_node(folder / 'bin')}:{os.environ['PATH']}"}
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1"}  # digits need no hub
    yield Checkout(clone, kept | path | homes | nowhere | aws.environ)
    for image in engine.images.list(filters={"label": "resnet-spot-end-to-end=yes"}):
        engine.images.remove(image.id, force=True)


def without_node(folder: Path) -> Path:
    """A user need not have Node.js: what there is of it fails."""
    folder.mkdir()
    for name in ("node", "npm", "npx", "cdk"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} of the machine was called >&2; exit 99\n")
        (folder / name).chmod(0o755)
    return folder


def tracked_files() -> list[str]:
    """As they are in the working tree, those not yet committed included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def fixes(said: str) -> dict[str, str]:
    """The commands that preflight tells, by check."""
    told = said.partition("\nfix:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^  (\S.*?)  +(\S.*)$", told, re.MULTILINE))


def prepare_the_account(aws: Aws, checkout: Checkout) -> None:
    """By the commands that preflight tells."""
    missing = fixes(checkout.make("preflight", "RECIPE=digits", code=ExitCode.PREFLIGHT))
    assert set(missing) == {"CDK bootstrap", "spot role"}
    assert "create-service-linked-role --aws-service-name spot.amazonaws.com" in missing["spot role"]
    aws.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    bootstrap = checkout.run("bash", "-c", missing["CDK bootstrap"])
    assert bootstrap.returncode == 0, bootstrap.stdout
