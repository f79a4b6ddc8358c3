"""What the tests of the guard and of the fleet begin with, and the image of machines that boot."""

from __future__ import annotations

import fcntl
import subprocess

import docker
import pytest
from docker.errors import ImageNotFound

from tests.emulator.aws import Aws
from tests.engine import BASE
from tests.infra.boot.boot_machines import MACHINE_IMAGE, STAND_INS
from tests.infra.fleets import Lab, make_lab


@pytest.fixture
def lab(aws: Aws) -> Lab:
    """Two groups and a guard, without the stacks."""
    return make_lab(aws)


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
