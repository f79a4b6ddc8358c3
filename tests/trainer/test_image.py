"""The shipped image in real containers: what is in it, and what the supervisor as process 1 makes of a run's end."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import docker
import pytest

from tests import PATIENCE, ROOT
from tests.emulator.s3 import Answer, FaultyProxy, Forward
from tests.engine import Container
from trainer.contract import HEAD_FILE, Exit, attempt_key, checkpoint_key, metrics_key, run_key
from trainer.store import ObjectStore, open_store

pytestmark = pytest.mark.engine

# The digits in few steps of a network that is small enough for a test; ResNet-18 itself is trained by `digits` alone.
SMALL = ("digits", "--model.name", "shufflenet_v2_x0_5", "--global-batch-size", "128", "--device-batch-size", "128")
STEPS_PER_EPOCH = 11
SAVE_OFTEN = ("--checkpoint.every-seconds", "0.2")


@dataclass(frozen=True)
class Run:
    """A run on a bucket of its own: starts containers for it, and reads what they stored."""

    store: ObjectStore
    aws_environ: dict[str, str]
    run_container: Callable[..., Container]
    run_id: str = "in-a-container"

    def start(self, *arguments: str, store: str = "") -> Container:
        environ = {
            "TRAINER_STORE": store or self.store.uri,
            "TRAINER_RUN_ID": self.run_id,
            "TRAINER_DATA": "digits",
            **{name: os.environ[name] for name in self.aws_environ},  # the endpoint may be a proxy
        }
        return self.run_container(*arguments, **environ)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(info.key for info in self.store.list(prefix))

    def read(self, key: str) -> Any:
        return json.loads(self.store.get(key))

    def newest_manifest(self) -> Any:
        """What HEAD.json names, or None before the first commit."""
        lease = checkpoint_key(self.run_id, HEAD_FILE)
        newest = self.read(lease)["newest"] if lease in self.keys(lease) else ""
        return self.read(newest) if newest else None

    def steps(self, attempt: int) -> list[int]:
        """The steps that an attempt logged a training loss of."""
        segments = self.keys(metrics_key(self.run_id, attempt, ""))
        rows = [json.loads(line) for segment in segments for line in self.store.get(segment).splitlines()]
        return [row["step"] for row in rows if "train/loss" in row]


@pytest.fixture
def run(s3_uri: str, aws_environ: dict[str, str], run_container: Callable[..., Container]) -> Run:
    return Run(open_store(s3_uri), aws_environ, run_container)


def wait_for(what: str, condition: Callable[[], Any], container: Container, timeout: float = PATIENCE) -> Any:
    """The first true value of `condition`; fails with the container's log when it ends or the time is up first."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if container.ended() or time.monotonic() > deadline:
            pytest.fail(f"no {what}; the container's log:\n{container.logs()}")
        time.sleep(0.1)
    return value


def test_nothing_but_the_trainer_is_in_the_image_and_it_does_not_run_as_root(
    engine: docker.DockerClient, image: str, run_container: Callable[..., Container]
) -> None:
    inside = run_container("-c", 'find /app -type f && id -u && touch "$TRAINER_SCRATCH_DIR/x"', entrypoint=["sh"])
    assert inside.wait() == 0, inside.logs()
    *files, user = inside.logs().split()
    source = [path for path in (ROOT / "trainer").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(files) == sorted(f"/app/{path.relative_to(ROOT)}" for path in source)
    assert user == engine.images.get(image).attrs["Config"]["User"].split(":")[0] != "0"


def test_a_pull_is_parallel_since_no_layer_is_most_of_the_image(engine: docker.DockerClient, image: str) -> None:
    """Unpacked sizes; `make bench-image` measures what a registry keeps, of which each of the three is a third."""
    sizes = sorted((layer["Size"] for layer in engine.images.get(image).history()), reverse=True)
    assert sizes[2] > 1e9
    assert sizes[0] < 0.5 * sum(sizes)


COMPILE = """
import pathlib, shutil, subprocess, sysconfig
source = pathlib.Path("/tmp/kernel.cpp")
source.write_text("#include <Python.h>\\n#include <omp.h>\\nint main() { return omp_get_max_threads() < 1; }")
subprocess.run(["g++", "-fopenmp", "-I", sysconfig.get_path("include"), source, "-o", "/tmp/kernel"], check=True)
subprocess.run(["/tmp/kernel"], check=True)
assert shutil.which("gcc")
"""


def test_the_image_can_compile_what_torch_compile_generates(run_container: Callable[..., Container]) -> None:
    container = run_container("-c", COMPILE, entrypoint=["python"])
    assert container.wait() == 0, container.logs()


def test_a_run_finishes_with_0_and_everything_about_it_is_in_the_store(run: Run) -> None:
    container = run.start(*SMALL, "--epochs", "1")
    assert container.wait() == Exit.FINISHED, container.logs()
    keys = run.keys(run_key(run.run_id, ""))
    assert {run_key(run.run_id, f"{name}.json") for name in ("config", "result", "done", "heartbeat")} <= {*keys}
    assert any(key.startswith(run_key(run.run_id, "report/")) and key.endswith(".html") for key in keys)
    assert run.read(attempt_key(run.run_id, 1))["exit"] == Exit.FINISHED
    manifest = run.newest_manifest()
    assert manifest["step"] == STEPS_PER_EPOCH
    assert run.store.info(manifest["object"]["key"]).bytes == manifest["object"]["bytes"]
    assert run.steps(attempt=1) == [*range(1, STEPS_PER_EPOCH + 1)]


def test_docker_stop_saves_and_gives_75_and_the_next_container_continues_to_0(run: Run) -> None:
    command, last = (*SMALL, "--epochs", "3"), 3 * STEPS_PER_EPOCH
    container = run.start(*command, *SAVE_OFTEN)
    wait_for("checkpoint", run.newest_manifest, container)
    container.stop()
    assert container.wait() == Exit.INTERRUPTED, container.logs()
    saved = run.newest_manifest()["step"]
    assert 0 < saved < last
    assert run_key(run.run_id, "done.json") not in run.keys("runs/")

    container = run.start(*command)
    assert container.wait() == Exit.FINISHED, container.logs()
    assert run.newest_manifest()["step"] == last
    assert run.steps(attempt=1) == [*range(1, saved + 1)]
    assert run.steps(attempt=2) == [*range(saved + 1, last + 1)]


def test_an_unknown_recipe_gives_78_and_says_which_there_are(run: Run) -> None:
    container = run.start("resnet9000")
    assert container.wait() == Exit.USER, container.logs()
    assert "'resnet9000'" in container.logs()
    assert "digits" in container.logs()


def test_a_bucket_that_does_not_exist_gives_78_and_is_named(run: Run) -> None:
    container = run.start("digits", store="s3://no-such-bucket/runs")
    assert container.wait() == Exit.USER, container.logs()
    assert "no-such-bucket" in container.logs()


def test_a_loss_that_is_not_finite_gives_78_and_names_the_step(run: Run) -> None:
    container = run.start(*SMALL, "--optim.peak-lr", "1e30")
    assert container.wait() == Exit.USER, container.logs()
    assert re.search(r"loss of step \d+ is (nan|inf)", container.logs())
    assert run_key(run.run_id, "failed.json") in run.keys("runs/")


def test_a_crash_gives_an_exit_code_of_its_own_and_leaves_the_run_open(run: Run) -> None:
    container = run.start(*SMALL, "--epochs", "500", *SAVE_OFTEN)
    wait_for("checkpoint", run.newest_manifest, container)
    container.signal_process("trainer.train", signal.SIGSEGV)
    assert container.wait() not in {*Exit}, container.logs()
    assert run.read(attempt_key(run.run_id, 1))["exit"] not in {*Exit}
    keys = run.keys("runs/")
    assert run_key(run.run_id, "done.json") not in keys
    assert run_key(run.run_id, "failed.json") not in keys


def test_the_uploader_finishes_the_checkpoint_in_flight_when_the_trainer_is_killed(
    run: Run, s3_proxy: FaultyProxy
) -> None:
    in_flight, released = threading.Event(), threading.Event()

    def hold(forward: Forward) -> Answer:
        if "/data/" in next(request for request in reversed(s3_proxy.requests) if request.startswith("POST")):
            in_flight.set()
            released.wait(timeout=4)  # the client would ask again after 5 s
        return forward()

    s3_proxy.plan("POST", *[hold] * 20)  # more than the trial of the store makes before the first checkpoint
    container = run.start("digits", *SAVE_OFTEN)
    wait_for("upload", in_flight.is_set, container)
    container.signal_process("trainer.train", signal.SIGKILL)
    time.sleep(1)
    assert not container.ended(), container.logs()
    assert run.newest_manifest() is None

    released.set()
    assert container.wait() not in {*Exit}, container.logs()
    manifest = run.newest_manifest()
    assert run.store.info(manifest["object"]["key"]).bytes == manifest["object"]["bytes"]
    assert run.read(attempt_key(run.run_id, 1))["exit"] not in {*Exit}
