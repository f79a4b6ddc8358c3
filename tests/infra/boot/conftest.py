"""Fixtures of the tests that boot: the trainer's image, and a machine before its first boot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.emulator.aws import Aws
from tests.emulator.imds import Imds
from tests.emulator.registry import Registry
from tests.infra.boot.boot_machines import ECR, Machine


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
