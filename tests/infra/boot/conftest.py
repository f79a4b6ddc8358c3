"""Fixtures of the tests that boot: the images, built once, and a machine before its first boot."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from tests.emulator.aws import Aws
from tests.emulator.imds import Imds
from tests.emulator.registry import Registry
from tests.engine import BASE
from tests.infra.boot.boot_machines import ECR, MACHINE_IMAGE, STAND_INS, Machine


@pytest.fixture(scope="session")
def machine_image(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Built once, about a minute; later it is in the engine's cache. Of two workers, one waits for the other."""
    try:
        engine.images.get(BASE)
    except ImageNotFound:
        pytest.skip(f"no image {BASE} to build on (make ci-deps, as root, makes it)")
    with (tmp_path_factory.getbasetemp().parent / "machine-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for target, name in (("machine", MACHINE_IMAGE), ("trainer", "resnet-spot-test-trainer")):
            command = ["docker", "build", "--network", "host", "--target", target, "--tag", name, str(STAND_INS)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                pytest.fail(f"{' '.join(command)}:\n{built.stdout[-4000:]}{built.stderr[-4000:]}")
    return MACHINE_IMAGE


@pytest.fixture(scope="session")
def trainer_image(engine: docker.DockerClient, machine_image: str, registry: Registry) -> Iterator[str]:
    """The stand-in of the trainer's image, pushed to the registry; its name on a machine, by digest."""
    name = f"{registry.host}/trainer"
    engine.images.get("resnet-spot-test-trainer").tag(name, "1")
    engine.images.push(name, "1")
    [digest] = [d for d in engine.images.get(f"{name}:1").attrs["RepoDigests"] if d.startswith(name)]
    yield f"{ECR}:{registry.host.split(':')[1]}/trainer@{digest.partition('@')[2]}"
    engine.images.remove(f"{name}:1")


@pytest.fixture
def machine(engine: docker.DockerClient, aws: Aws, imds: Imds, trainer_image: str, tmp_path: Path) -> Iterator[Machine]:
    """A machine before its first boot; its account and metadata are as after a launch."""
    made = Machine(engine, aws, imds, trainer_image, tmp_path)
    yield made
    made.remove()
