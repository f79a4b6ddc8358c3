"""Fixtures that drive a real Docker engine through its SDK: the engine, the shipped image, containers of it.

The image is built once per session, from the Dockerfile as it ships, on the base that tests/base_image.sh makes.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound
from docker.models.containers import Container as DockerContainer

from tests import PATIENCE, ROOT

BASE = "resnet-spot-test-base:bookworm"
IMAGE = "resnet-spot-test:latest"
LABEL = "resnet-spot.test"
WALLS: dict[str, Any] = {  # as infra/boot/run has them; test_boot_constants.py compares
    "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "read_only": True, "shm_size": "1g",
    "tmpfs": {"/tmp": "exec,mode=1777,size=4g"}, "pids_limit": 4096,
}  # fmt: skip
STOP_SECONDS = 100  # the grace that the machine's boot gives a container


@dataclass(frozen=True)
class Container:
    """A started container of the shipped image."""

    docker: DockerContainer

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code; a container that does not end in time fails the test with its log."""
        deadline = time.monotonic() + timeout
        while not self.ended():
            if time.monotonic() > deadline:
                pytest.fail(f"the container still runs after {timeout} s; its log:\n{self.logs()}")
            time.sleep(0.1)
        return int(self.docker.attrs["State"]["ExitCode"])

    def ended(self) -> bool:
        self.docker.reload()
        return self.docker.status in ("exited", "dead")

    def logs(self) -> str:
        return str(self.docker.logs().decode())

    def stop(self) -> None:
        """`docker stop`: SIGTERM to process 1, SIGKILL after the grace."""
        self.docker.stop(timeout=STOP_SECONDS)

    def run(self, *command: str) -> str:
        """The output of a command inside; it must succeed."""
        code, output = self.docker.exec_run(list(command))
        assert code == 0, f"{command}: exit code {code}: {output.decode()}"
        return str(output.decode())

    def signal_process(self, module: str, number: signal.Signals) -> None:
        """Send a signal, inside, to the Python processes that run a module; there must be one."""
        assert self.run("python", "-c", SIGNAL_PYTHON_PROCESSES, module, str(number.value)).split()


# The image has no pkill. torchrun, whose arguments name the module too, is left alone.
SIGNAL_PYTHON_PROCESSES = """
import contextlib, os, pathlib, sys
for process in pathlib.Path("/proc").glob("[1-9]*"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        words = (process / "cmdline").read_text().split("\\0")
        by_name = ["-m", sys.argv[1]] in [words[i : i + 2] for i in range(len(words))]
        if by_name and "torch.distributed.run" not in words:
            os.kill(int(process.name), int(sys.argv[2]))
            print(process.name)
"""


def why_no_engine() -> str:
    """What keeps this user from a Docker engine; empty if nothing does. The SDK leaks its socket where none answers."""
    path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except PermissionError:
            return "this user may not use the Docker engine (join its group: docker)"
        except OSError:
            return "no Docker engine (make ci-deps, as root, installs one)"
    return ""


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A client of the engine; skips without one."""
    if reason := why_no_engine():
        pytest.skip(reason)
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """The name of the image, just built; the engine's cache makes a second build a matter of seconds."""
    try:
        engine.images.get(BASE)
    except ImageNotFound:
        pytest.skip(f"no image {BASE} to build on (make ci-deps, as root, makes it)")
    log = []
    for message in engine.api.build(
        path=str(ROOT),
        tag=IMAGE,
        buildargs={"BASE": BASE, "COMMIT": "tests"},
        labels={LABEL: "yes"},
        network_mode="host",
        rm=True,
        decode=True,
    ):
        log.append(message.get("stream", ""))
        if "error" in message:
            pytest.fail(f"the image does not build: {message['error']}\n{''.join(log)[-8000:]}")
    engine.images.prune(filters={"dangling": True, "label": f"{LABEL}=yes"})  # what an earlier session built
    return IMAGE


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where containers keep what numba compiles, which takes the first one some seconds."""
    folder = tmp_path_factory.mktemp("compiled")
    folder.chmod(0o777)  # theirs is a user of the image
    return folder


@pytest.fixture
def run_container(engine: docker.DockerClient, image: str, compiled: Path) -> Iterator[Callable[..., Container]]:
    """Start the image within the walls that it has on AWS, but on the host's network, where the emulators are:
    run_container("digits", "--epochs", "1", TRAINER_STORE="s3://…").

    `entrypoint=` runs something else in it. Containers are removed at the end of the test.
    """
    started: list[DockerContainer] = []

    def run(*arguments: str, entrypoint: list[str] | None = None, **environment: str) -> Container:
        container = engine.containers.run(
            image,
            list(arguments),
            entrypoint=entrypoint,
            environment={"AWS_EC2_METADATA_DISABLED": "true", "NUMBA_CACHE_DIR": "/compiled"} | environment,
            volumes=[f"{compiled}:/compiled", "/scratch"],
            network_mode="host",
            labels={LABEL: "yes"},
            detach=True,
            **WALLS,
        )
        started.append(container)
        return Container(container)

    yield run
    for container in started:
        container.remove(force=True, v=True)
