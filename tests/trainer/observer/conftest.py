"""An attempt without a training: the uploader's end of the observer, in this process, on a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.contract import RunEnv
from trainer.process.channel import SOCKET_VARIABLE, attempt_dir, listen, write_json
from trainer.process.children import ObserverProcess, UploaderProcess
from trainer.process.counts import GPU_COUNT
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import Row
from trainer.telemetry.samples import read_samples
from trainer.upload.observed import ObserverPort, read_observed
from trainer.upload.owner import Ownership


@dataclass
class Attempt:
    env: RunEnv
    environ: dict[str, str]
    store: ObjectStore
    ownership: SimpleNamespace
    port: ObserverPort
    folder: Path
    copied: list[str]

    def status(self, phase: str, step: int) -> None:
        write_json(self.folder / "status.json", {"phase": phase, "step": step, "progress": step})

    def start(self) -> ObserverProcess:
        uploader = cast(UploaderProcess, SimpleNamespace(process=SimpleNamespace(pid=os.getpid())))
        return ObserverProcess(os.environ | self.environ, uploader)

    def tell_rows(self, *rows: Row) -> None:
        """As the uploader does when the trainer has handed a segment over."""
        fd = os.memfd_create("rows")
        os.write(fd, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self.port.tell_segment({"key": "runs/job/metrics/1/x.jsonl"}, fd)
        os.close(fd)

    def samples(self) -> list[Row]:
        return read_samples(self.store, "job")

    def observed(self) -> dict[str, Any]:
        return cast(dict[str, Any], read_observed(self.folder).get("observed", {}))


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    env = RunEnv(store=store.uri, run_id="job", scratch_dir=str(tmp_path / "scratch"), attempt="1")
    folder = attempt_dir(env)
    (folder / "pids").mkdir(parents=True)
    server, path = listen()
    ownership, copied = SimpleNamespace(run_id="job", attempt=1, is_mine=True), list[str]()
    port = ObserverPort(store, cast(Ownership, ownership), lambda key, segment: copied.append(key))
    port.open(path)
    environ = env.to_environ() | {SOCKET_VARIABLE: path, GPU_COUNT: "0"}
    yield Attempt(env, environ, store, ownership, port, folder, copied)
    port.close()
    server.close()
    Path(path).unlink()
    Path(path).parent.rmdir()


START = {"step": 0, "time": 1000.0, "event": "start", "attempt": 1, "origin": 0}
