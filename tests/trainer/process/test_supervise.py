"""The supervisor and what it stands on: standard library only, exit codes, and how it counts GPUs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import ROOT
from tests.emulator.s3 import FaultyProxy, refuse
from trainer.contract import CRASH, Exit, Lease, RunEnv, UserError
from trainer.process import supervise
from trainer.process.channel import leave_exit, read_json, write_json
from trainer.process.children import UploaderProcess
from trainer.process.counts import check_processes, gpu_count, process_count

LOADED = "import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"


PROCESS = sorted(f"trainer.process.{path.stem}" for path in (ROOT / "trainer/process").glob("[a-z]*.py"))


@pytest.mark.parametrize("module", ["trainer.contract", "trainer.text", *PROCESS])
def test_it_loads_nothing_but_the_standard_library(module: str) -> None:
    code = LOADED.format(module=module)
    ended = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = set(ended.stdout.split()) - set(sys.stdlib_module_names) - {"trainer", "__main__", "__mp_main__"}
    assert not foreign


def test_the_exit_codes_are_those_of_the_table() -> None:
    assert {code.name: int(code) for code in Exit} == {"FINISHED": 0, "INTERRUPTED": 75, "HELD": 76, "USER": 78}


def test_the_environment_round_trips_and_passes_strings_through_untouched() -> None:
    env = RunEnv(store="${Token[TOKEN.12]}", run_id="a-1", scratch_dir="/scratch", data="x", attempt="3")
    assert RunEnv.from_environ(env.to_environ()) == env
    assert env.to_environ()["TRAINER_STORE"] == "${Token[TOKEN.12]}"
    assert len({RunEnv.variable(f.name) for f in fields(RunEnv)}) == len(fields(RunEnv))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("TRAINER_STORE", "", "TRAINER_STORE is not set"), ("TRAINER_RUN_ID", "../x", "'../x' is not a run id"),
     ("TRAINER_ATTEMPT", "one", "TRAINER_ATTEMPT='one' is not a number")],
)  # fmt: skip
def test_a_bad_variable_is_named_with_its_value(name: str, value: str, said: str) -> None:
    good = {"TRAINER_STORE": "out", "TRAINER_RUN_ID": "r", "TRAINER_SCRATCH_DIR": "s"}
    with pytest.raises(UserError) as error:
        RunEnv.from_environ(good | {name: value})
    assert said in str(error.value)


A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_the_lease_keeps_the_newest_the_previous_and_the_best() -> None:
    lease = Lease(attempt=1).advance("a", A, is_best=True).advance("b", B, is_best=False).advance("c", C, is_best=False)
    assert (lease.newest, lease.previous, lease.best) == ("c", "b", "a")
    assert lease.sha256 == {"a": A, "b": B, "c": C}
    assert lease.advance("c", C, is_best=False) == lease, "a commit that is repeated moves nothing"
    assert lease.advance("c", C, is_best=True).best == "c", "unless a validation has found it to be the best meanwhile"
    assert Lease.from_json(lease.to_json()) == lease


def test_gpus_are_counted_as_the_trainer_will_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A10G (UUID: GPU-1)'\necho 'GPU 1: NVIDIA A10G (UUID: GPU-2)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_count() == 2
    for visible, count in (("0", 1), ("0,1,2", 3), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu_count() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_count() == 0


def test_the_first_process_to_leave_a_reason_is_the_one_that_counts(tmp_path: Path) -> None:
    leave_exit(tmp_path, 78, "labels out of range", run_failed=True)
    leave_exit(tmp_path, 75, "stopped by torchrun")
    told = {"code": 78, "message": "labels out of range", "run_failed": True, "lost_partner": False}
    assert read_json(tmp_path / "exit.json") == told


def test_a_process_that_only_lost_another_one_has_the_word_until_one_knows_more(tmp_path: Path) -> None:
    leave_exit(tmp_path, 1, "rank 3 is gone", lost_partner=True)
    leave_exit(tmp_path, 1, "rank 2 has ended", lost_partner=True)
    assert (read_json(tmp_path / "exit.json") or {})["message"] == "rank 3 is gone"
    leave_exit(tmp_path, 1, "the GPU is lost")
    leave_exit(tmp_path, 1, "rank 4 is gone", lost_partner=True)
    ended = read_json(tmp_path / "exit.json") or {}
    assert (ended["message"], ended["lost_partner"]) == ("the GPU is lost", False)
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]


REGISTERED = """
import os, resource, signal, sys
from pathlib import Path
from trainer.process.channel import leave_exit, register
folder = Path(sys.argv[1])
(folder / "pids").mkdir()
register(folder)
os.kill(os.getpid(), signal.SIGUSR1)
(mine,) = folder.glob(".exit.*")
print(mine.stat().st_ino, mine.stat().st_blocks, mine.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (mine.stat().st_size,) * 2)
leave_exit(folder, 78, sys.argv[2], run_failed=True)
"""


@pytest.mark.parametrize("message", ["no space left on device", "too long: " + 1000 * "ä€😀"])
def test_the_reason_is_written_into_the_room_that_was_taken_at_the_start(tmp_path: Path, message: str) -> None:
    """By a process whose files may not grow, and which a request to save has not ended before it could save."""
    command = [sys.executable, "-c", REGISTERED, str(tmp_path), message]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = (tmp_path / "exit.json").stat()
    assert ended.stdout.split() == [str(found.st_ino), str(found.st_blocks), str(found.st_size)]
    reason = read_json(tmp_path / "exit.json")
    assert reason is not None
    assert (reason["code"], reason["run_failed"]) == (78, True)
    assert reason["message"] == message or (len(message) > 1000 and message.startswith(reason["message"]))
    assert len(reason["message"]) > 20


def test_a_long_reason_is_whole_where_there_is_room(tmp_path: Path) -> None:
    leave_exit(tmp_path, 1, 10_000 * "x")
    told = {"code": 1, "message": 10_000 * "x", "run_failed": False, "lost_partner": False}
    assert read_json(tmp_path / "exit.json") == told


PATIENT = """
import math, os, signal, time
from trainer.process.supervise import Signals
signals, now = Signals(), time.monotonic
until = signals.upload_until(3600)
print(round(until() - now()))
os.kill(os.getpid(), signal.SIGINT)
print(round(until() - now()), round(signals.upload_until(3600)() - now()), round(signals.upload_until(9)() - now()))
signals.first -= 60  # a trainer that took a minute for its last step
print(round(signals.upload_until(3600)() - now()))
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("left")
"""


def test_a_store_gets_an_hour_after_the_training_and_seconds_after_a_signal() -> None:
    ended = subprocess.run([sys.executable, "-c", PATIENT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["3600", "45 45 9", "15", "left"]
    assert "stopping: ending as soon as the store allows" in ended.stderr


@pytest.fixture
def uploader(tmp_path: Path, s3_proxy: FaultyProxy, s3_uri: str) -> Iterator[UploaderProcess]:
    env = RunEnv(store=s3_uri, run_id="job", scratch_dir=str(tmp_path))
    started = UploaderProcess(os.environ | env.to_environ())
    yield started
    started.process.kill()
    started.finish(seconds=1)
    for pipe in (started.process.stdin, started.process.stdout):
        assert pipe is not None
        pipe.close()


def test_a_dead_uploader_is_seen_at_once(uploader: UploaderProcess) -> None:
    started = time.monotonic()
    uploader.process.kill()
    assert uploader.flush(lambda: started + 60) == {}
    assert uploader.finish(seconds=60) != 0
    assert time.monotonic() - started < 5


def test_a_signal_shortens_the_wait_for_a_store_that_fails(uploader: UploaderProcess, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan("PUT", *[refuse(503, "SlowDown")] * 10_000)
    uploader.ask(op="put", key="runs/job/some.json", body={})
    started = time.monotonic()

    def until() -> float:
        """An hour; after two seconds there is a signal."""
        return started + (3600 if time.monotonic() < started + 2 else 4)

    assert uploader.flush(until).get("drained") is False
    assert 4 <= time.monotonic() - started < 14
    assert uploader.finish(seconds=5) == 1


def test_a_small_file_is_replaced_at_once_and_its_absence_is_not_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    for value in (1, 2):
        write_json(tmp_path / "some.json", {"value": value})
    assert read_json(tmp_path / "some.json") == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]


def test_on_a_full_disk_a_shorter_value_leaves_nothing_of_a_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, body: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "some.json", {"value": "x" * 2000})
    monkeypatch.setattr(Path, "write_bytes", fails)
    write_json(tmp_path / "some.json", {"value": "y" * 1000})
    assert read_json(tmp_path / "some.json") == {"value": "y" * 1000}


@pytest.mark.parametrize(("drained", "told"), [(True, Exit.FINISHED), (False, CRASH)])
def test_a_run_is_told_to_be_finished_once_all_of_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drained: bool, told: int
) -> None:
    """And an attempt that ends otherwise is told at once, since its machine may have seconds left."""
    calls: list[Any] = []

    def flush(until: Any) -> dict[str, Any]:
        calls.append("flush")
        return {"drained": drained, "kept": ""}

    uploader = SimpleNamespace(
        attempt=1,
        first={"attempt": 1, "started": 1.0},
        flush=flush,
        ask=lambda **request: None,
        finish=lambda seconds: int(not drained),
    )
    observer = SimpleNamespace(tell_end=lambda ended: calls.append(ended["code"]), finish=lambda: calls.append("end"))
    signals = SimpleNamespace(upload_until=lambda patience: time.monotonic, seconds_since=lambda: 0.0)
    monkeypatch.setattr(supervise, "report", lambda environ: True)
    env = RunEnv(store=str(tmp_path), run_id="some", scratch_dir=str(tmp_path), attempt="1")
    for code, expected in [(Exit.FINISHED, ["flush", told, "end"]), (Exit.INTERRUPTED, [75, "flush", "end"])]:
        calls.clear()
        ended = {"code": code, "message": "so", "reason": "stopping", "run_failed": False}
        supervise.finish_attempt(
            cast(Any, uploader), cast(Any, observer), env, {}, cast(Any, signals), {"attempt": 1}, ended
        )
        assert calls == expected


def test_processes_are_as_many_as_make_a_step_faster_and_fewer_than_gpus_is_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert process_count(0, 32, 32) == 1
    assert process_count(4, 512, 128) == 4
    assert process_count(3, 512, 32) == 3, "the busiest has 6 of 16 micro-batches, with 2 processes 8"
    assert process_count(4, 512, 64, nodes=2) == 4
    assert capfd.readouterr().err == ""
    assert process_count(8, 512, 128) == 4
    assert "using 4 of 8 GPUs: with the 4 micro-batches of a step" in (said := capfd.readouterr().err)
    assert "--device-batch-size 64 uses all" in said
    assert process_count(3, 512, 128) == 2, "the busiest of 3 has 2 of 4 micro-batches, as each of 2"
    assert "uses all" not in capfd.readouterr().err, "no batch size divides by 3"
    assert process_count(4, 384, 128, nodes=2) == 1, "of 4 processes one had nothing to do"
    assert process_count(2, 32, 48) == 1, "the trainer says what is wrong"


@pytest.mark.parametrize(
    ("asked", "gpus", "said"),
    [("two", 0, "NPROC=two is no number of processes: write one from 1 to 6"),
     ("0", 0, "NPROC=0 is no number"), ("-1", 8, "from 1 to 8"), ("1.5", 0, "from 1 to 6"),
     ("7", 0, "NPROC=7: this machine has 6 cores, and each process needs one: NPROC=6"),
     ("3", 2, "NPROC=3: this machine has 2 GPUs, and each process needs one: NPROC=2"),
     ("5", 8, "NPROC=5: a step has 4 micro-batches (--global-batch-size 512 / --device-batch-size 128)")],
)  # fmt: skip
def test_more_processes_than_places_are_refused_with_the_number_that_fits(asked: str, gpus: int, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_processes(asked, gpus, 6, 512, 128)
    assert said in str(error.value)
    assert check_processes("4", gpus=4, cores=1, global_batch_size=512, device_batch_size=128) == 4


@pytest.mark.parametrize("module", ["trainer.train", "trainer.process.supervise"])
def test_a_process_of_a_users_torchrun_is_refused_with_what_to_type(module: str, tmp_path: Path) -> None:
    """Each would take the run from the others."""
    command = [sys.executable, "-m", module, "digits"]
    environ = os.environ | {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1", "TRAINER_STORE": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == Exit.USER
    assert "make train NPROC=2" in ended.stderr
    assert not list(tmp_path.iterdir())
