"""Uploader processes on real stores, and a trainer's connections to them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.uploads import (
    Connect,
    Start,
)
from trainer.contract import RunEnv
from trainer.process.channel import Channel
from trainer.process.children import UploaderProcess


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
        limit = time.monotonic() + 60
        environ = os.environ | env.to_environ()
        started.append(UploaderProcess(environ, lambda: math.inf if time.monotonic() > limit else -math.inf))
        return started[-1]

    yield begin
    for uploader in started:
        uploader.finish(seconds=30)
        for pipe in (uploader.process.stdin, uploader.process.stdout):
            if pipe is not None:
                pipe.close()
