"""`make tensorboard` as a user has it: an address, the run's curves, rows that come later, and an end by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import PATIENCE, ROOT
from tests.trainer.tensorboard.test_mirror import RUN, put, put_samples
from tests.uploads import wait_until
from trainer.contract import Exit, tensorboard_key
from trainer.recipes.config import Config
from trainer.store import open_store
from trainer.telemetry.opening import opening
from trainer.upload.summaries import OPENING

pytestmark = pytest.mark.slow


def command(python: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    environ = os.environ | {
        "TRAINER_STORE": str(folder / "store"), "TRAINER_RUN_ID": RUN, "TRAINER_SCRATCH_DIR": str(folder / "scratch"),
    }  # fmt: skip
    return subprocess.Popen(
        [python, "-m", "trainer.tensorboard", *words], env=environ, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def ask(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}data/{path}", timeout=PATIENCE) as answer:
        return json.load(answer)


def test_it_opens_a_run_on_the_next_free_port_follows_it_and_leaves_nothing(
    tmp_path: Path, trackers_python: str
) -> None:
    store = open_store(str(tmp_path / "store"))
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    store.put(tensorboard_key(RUN, 1, OPENING), opening(images, Config(), ["val"]))
    with taken_port() as port:
        process = command(trackers_python, tmp_path, "--port", str(port), "--reload_interval", "1")
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"run {RUN!r} of {store.uri}: http://localhost:")
        address = line.split()[4]
        assert int(address.strip("/").rpartition(":")[2]) > port
    put(store, 1, 1, 3, origin=0)  # the run begins only now
    put_samples(store, 1, 1, 1, 2)

    def steps() -> list[int]:
        if "train/loss" not in ask(address, "plugin/scalars/tags").get(RUN, {}):
            return []
        return [step for _, step, _ in ask(address, f"plugin/scalars/scalars?run={RUN}&tag=train%2Floss")]

    wait_until(lambda: steps() == [1, 2, 3], PATIENCE)
    put(store, 1, 4, 5)
    wait_until(lambda: steps() == [1, 2, 3, 4, 5], PATIENCE)
    assert f"{RUN}/telemetry" in ask(address, "plugin/scalars/tags")
    assert ask(address, "plugin/images/tags")[RUN].keys() == {"train/images"}
    assert ask(address, "plugin/text/tags")[RUN] == ["config/text_summary"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == Exit.FINISHED
    assert list((tmp_path / "scratch/tensorboard").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--logdir", "elsewhere"], "the folder is that of RUN= in STORE="),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_what_it_cannot_do_is_said_with_the_code_of_a_user_s_mistake(
    words: list[str], said: str, tmp_path: Path, trackers_python: str
) -> None:
    process = command(trackers_python, tmp_path, *words)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said in errors) == (Exit.USER, True), errors
    assert "Traceback" not in errors
