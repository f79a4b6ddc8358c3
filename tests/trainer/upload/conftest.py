"""Uploader processes on real stores, and a trainer's connections to them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import PATIENCE
from tests.checkpoints import RUN
from tests.rewinds import first_line
from tests.uploads import (
    Connect,
    Start,
)
from trainer.contract import RunEnv
from trainer.process.channel import Channel
from trainer.process.children import UploaderProcess
from trainer.store import ObjectStore, open_store


@pytest.fixture
def folder_uri(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


@pytest.fixture(params=["folder_uri", "s3_uri"])
def uri(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A trainer's end of the socket."""
    made: list[Channel] = []

    def to(uploader: UploaderProcess) -> Channel:
        made.append(Channel.connect(uploader.socket))
        assert made[-1].receive(timeout=10) == ({"hello": uploader.attempt}, None)
        return made[-1]

    yield to
    for channel in made:
        channel.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """One that has not answered after a minute is killed, and its attempt is 0: no test waits for ever."""
    started: list[UploaderProcess] = []

    def begin(uri: str, lease: int = 60) -> UploaderProcess:
        env = RunEnv(store=uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"), lease_seconds=str(lease))
        limit = time.monotonic() + PATIENCE
        environ = os.environ | env.to_environ()
        started.append(UploaderProcess(environ, lambda: math.inf if time.monotonic() > limit else -math.inf))
        return started[-1]

    yield begin
    for uploader in started:
        uploader.finish(seconds=30)
        for pipe in (uploader.process.stdin, uploader.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewind")
    (folder / "store").mkdir()
    first_line(open_store(str(folder / "store")), folder)
    return folder / "store"


@pytest.fixture
def named_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ObjectStore]:
    """Opens a store and names it as the command expects."""

    def name(uri: str) -> ObjectStore:
        values = {"store": uri, "run_id": RUN, "scratch_dir": str(tmp_path), "lease_seconds": "1"}
        for field, value in values.items():
            monkeypatch.setenv(RunEnv.variable(field), value)
        return open_store(uri)

    return name
