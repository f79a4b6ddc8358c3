"""`trainer.prepare` as a run that nobody watches: what it leaves in runs/prepare-…/, however it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from infra.run.spec import Spec
from tests import PATIENCE, ROOT
from tests.emulator.imds import Imds
from tests.emulator.s3 import FaultyProxy
from tests.hub import Hub
from tests.images import image_folder, parquet_folder
from tests.runs import Run
from tests.stores import bucket_and_prefix
from trainer.contract import Exit, Phase
from trainer.process.spot import Metadata, describe_machine
from trainer.store import ObjectStore, open_store

pytestmark = pytest.mark.slow
RUN = "prepare-photos"
# A heartbeat every 30 s is too rare for a test.
OFTEN = "import trainer.prepare_run as r; r.HEARTBEAT_SECONDS = .05; from trainer.prepare import main; exit(main())"
MACHINE = {"id": "i-0123456789abcdef0", "type": "c7i.2xlarge", "zone": "us-east-1b", "market": "spot"}


def start(*arguments: str, often: bool = False, **environ: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINER_", "HF_"))}
    if "AWS_EC2_METADATA_SERVICE_ENDPOINT" in environ:
        del inherited["AWS_EC2_METADATA_DISABLED"]
    return subprocess.Popen(
        [sys.executable, *(["-c", OFTEN] if often else ["-m", "trainer.prepare"]), *arguments],
        cwd=ROOT, env=inherited | environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str], timeout: float = PATIENCE) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it does not end: {process.communicate()[0]}")
    assert "Traceback" not in said
    return process.returncode, said


def prepare(*arguments: str, often: bool = False, **environ: str) -> tuple[int, str]:
    return end(start(*arguments, often=often, **environ))


def until(process: subprocess.Popen[str], ready: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it ended, or time ran out: {process.communicate()[0]}")
        time.sleep(0.02)


def record(store: ObjectStore, file: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(store.get(f"runs/{RUN}/{file}"))
    return value


def records(store: ObjectStore) -> set[str]:
    return {info.key.removeprefix(f"runs/{RUN}/") for info in store.list("runs/")}


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


@pytest.fixture
def instance(imds: Imds) -> Imds:
    names = {"instance-id": "id", "instance-type": "type", "placement/availability-zone": "zone"}
    names["instance-life-cycle"] = "market"
    imds.documents |= {f"/latest/meta-data/{path}": MACHINE[name] for path, name in names.items()}
    return imds


def test_on_aws_it_leaves_its_records_done_last_by_what_its_role_may_do_and_is_then_done_for_good(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy, instance: Imds
) -> None:
    folder = image_folder(tmp_path / "photos")
    arguments = ("--data", str(folder), "--store", s3_uri, "--train-sides", "32", "--val-sides", "32")
    environ: dict[str, Any] = {"TRAINER_RUN_ID": RUN, "AWS_EC2_METADATA_SERVICE_ENDPOINT": instance.endpoint}
    code, said = prepare(*arguments, **environ)
    assert code == 0, said
    asked, store = list(s3_proxy.requests), open_store(s3_uri)
    assert records(store) == {"attempts/1.json", "heartbeat.json", "done.json"}
    done = record(store, "done.json")
    assert done["dataset"] in said
    assert store.info(done["dataset"].removeprefix(f"{s3_uri}/") + "/index.json").bytes
    assert done.items() >= {"attempt": 1, "exit": 0, "message": "prepared", "images": 18, "machine": MACHINE}.items()
    assert done["started"] < done["ended"]
    assert record(store, "attempts/1.json") == done
    beat = record(store, "heartbeat.json")
    assert set(beat) == {"time", "attempt", "owner", "phase", "step", "progress"}

    bucket, prefix = bucket_and_prefix(s3_uri)
    mine = tuple(f"{prefix}/{below}/" for below in ("datasets", f"runs/{RUN}"))
    written = []
    for request in asked:
        method, target = request.split(" ", 1)
        url = urlsplit(target)
        key = unquote(url.path).removeprefix(f"/{bucket}").lstrip("/") or parse_qs(url.query)["prefix"][0]
        assert method in ("GET", "HEAD", "PUT"), request
        assert key.startswith(mine), request
        written += [key] * (method == "PUT")
    assert written[-1] == f"{prefix}/runs/{RUN}/done.json"
    assert f"{prefix}/runs/{RUN}/heartbeat.json" in written

    s3_proxy.requests.clear()
    code, said = prepare(*arguments, **environ)
    assert (code, len(said.splitlines())) == (0, 1), said
    assert f"{RUN} is finished already: 18 images in {done['dataset']}" in said
    assert not [request for request in s3_proxy.requests if request.startswith("PUT")]


def test_a_training_s_run_id_as_make_exports_it_leaves_no_record(tmp_path: Path, place: str) -> None:
    folder = image_folder(tmp_path / "photos", train=1, val=1)
    code, said = prepare("--data", str(folder), "--store", place, TRAINER_RUN_ID="digits")
    assert code == 0, said
    assert not records(open_store(place))


@pytest.mark.parametrize("run_id", ["digits", "prepare-Photos", "prepare-a/b"])
def test_the_run_id_of_a_preparation_cannot_be_that_of_a_training(run_id: str, place: str) -> None:
    code, said = prepare("--data", "digits", "--store", place, "--run-id", run_id)
    assert code == Exit.USER
    assert f"--run-id {run_id!r} is not the run id of a preparation" in said
    assert not list(Path(place).iterdir())


def test_sigterm_is_an_interruption_and_the_same_command_is_the_next_attempt(tmp_path: Path, place: str) -> None:
    folder = image_folder(tmp_path / "photos", train=120, val=2, side=96)
    arguments = ("--data", str(folder), "--store", place, "--train-sides", "64", "--workers", "1", "--run-id", RUN)
    store = open_store(place)
    process = start(*arguments, often=True)
    until(process, lambda: "heartbeat.json" in records(store) and record(store, "heartbeat.json")["progress"] > 0)
    assert record(store, "heartbeat.json")["phase"] == Phase.PREPARING
    opening = record(store, "attempts/1.json")
    assert "exit" not in opening
    assert opening["started"] > 0
    process.terminate()
    code, said = end(process)
    assert code == Exit.INTERRUPTED, said
    assert "stopped; what was prepared so far is kept, run the same command again" in said
    assert record(store, "attempts/1.json")["exit"] == Exit.INTERRUPTED
    assert not {"done.json", "failed.json"} & records(store)
    code, said = prepare(*arguments)
    assert code == 0, said
    assert record(store, "done.json")["attempt"] == 2
    assert record(store, "attempts/1.json")["exit"] == Exit.INTERRUPTED


@pytest.fixture
def stalling_hub(tmp_path: Path) -> Iterator[Hub]:
    """Of one file no byte comes."""
    hub, go_on = Hub(parquet_folder(tmp_path / "hub")), threading.Event()
    handler: Any = hub._server.RequestHandlerClass
    answer = handler.answer

    def stall(self: Any, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        if self.command == "GET" and "validation-" in self.path:
            go_on.wait(PATIENCE)
        answer(self, status, headers, body)

    handler.answer = stall
    yield hub
    go_on.set()
    hub.close()


def test_bytes_from_the_hub_are_progress_and_sigterm_does_not_wait_for_the_rest_of_them(
    tmp_path: Path, place: str, stalling_hub: Hub
) -> None:
    environ = {"HF_ENDPOINT": stalling_hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    store = open_store(place)
    process = start("--data", "lab/photos", "--store", place, "--run-id", RUN, often=True, **environ)
    size = sum(file.stat().st_size for file in (tmp_path / "hub").rglob("train-*.parquet"))
    until(process, lambda: "heartbeat.json" in records(store) and record(store, "heartbeat.json")["progress"] >= size)
    assert record(store, "heartbeat.json")["phase"] == Phase.STAGING
    process.terminate()
    code, said = end(process, timeout=20)
    assert code == Exit.INTERRUPTED, said
    assert record(store, "attempts/1.json")["exit"] == Exit.INTERRUPTED


def test_what_the_user_must_change_is_told_by_failed_json_and_a_later_attempt_is_not_bound_by_it(
    tmp_path: Path, place: str
) -> None:
    folder = image_folder(tmp_path / "photos", train=1, val=1)
    shutil.move(folder / "val", tmp_path / "val")
    arguments = ("--data", str(folder), "--store", place, "--run-id", RUN)
    code, said = prepare(*arguments)
    assert code == Exit.USER, said
    store = open_store(place)
    failed = record(store, "failed.json")
    assert (failed["attempt"], failed["exit"]) == (1, Exit.USER)
    assert re.search(r"split val is missing", failed["message"])
    assert failed["message"] in said
    assert record(store, "attempts/1.json") == failed
    shutil.move(tmp_path / "val", folder / "val")
    assert prepare(*arguments)[0] == 0
    assert record(store, "done.json")["attempt"] == 2
    assert record(store, "failed.json") == failed


def test_a_hub_that_cannot_be_reached_is_a_crash_that_is_tried_again_where_nobody_watches(
    tmp_path: Path, place: str
) -> None:
    environ: dict[str, Any] = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    code, said = prepare("--data", "lab/photos", "--store", place, "--run-id", RUN, **environ)
    assert code == 1, said
    assert "cannot be reached" in record(open_store(place), "attempts/1.json")["message"]
    assert "failed.json" not in records(open_store(place))


def test_a_heartbeat_that_cannot_be_stored_is_said_once_and_stops_nothing(tmp_path: Path, place: str) -> None:
    folder = image_folder(tmp_path / "photos", train=20)
    (Path(place) / f"runs/{RUN}/heartbeat.json").mkdir(parents=True)
    arguments = ("--data", str(folder), "--store", place, "--workers", "1", "--run-id", RUN)
    code, said = prepare(*arguments, often=True)
    assert code == 0, said
    assert said.count("no heartbeat could be stored, and the preparation goes on: ") == 1
    assert record(open_store(place), "done.json")["images"] == 66


# What a training tells of its machine.


def test_a_machine_is_known_by_its_metadata_service_and_by_nothing_where_that_fails(instance: Imds) -> None:
    assert describe_machine(Metadata(instance.endpoint)) == MACHINE
    del instance.documents["/latest/meta-data/instance-life-cycle"]
    assert describe_machine(Metadata(instance.endpoint)) == MACHINE | {"market": ""}
    instance.failing = 403
    assert describe_machine(Metadata(instance.endpoint)) == {}
    assert describe_machine(None) == {}


def test_the_ledger_names_the_machine_of_a_killed_attempt_and_the_spec_of_launch_stands(
    new_run: Callable[..., Run], instance: Imds
) -> None:
    run = new_run(AWS_EC2_METADATA_SERVICE_ENDPOINT=instance.endpoint)
    spec = Spec(
        run_id="quick", recipe="digits", arguments=("digits",), budget_usd=5, created=1.0, deadline=2.0, hours=1.0
    ).to_json()
    run.store.put("runs/quick/spec.json", spec)

    def told(attempt: int) -> Callable[[], bool]:
        key = f"runs/quick/attempts/{attempt}.json"

        def the_machine() -> bool:
            return key in run.stored() and "machine" in json.loads(run.store.get(key))

        return the_machine

    run.start().until(told(1))
    run.kill_everything()
    attempt = run.json("attempts/1.json")
    assert attempt["machine"] == MACHINE
    assert "exit" not in attempt
    run.start().until(told(2))
    assert run.stop(signal.SIGTERM) == Exit.INTERRUPTED, run.output
    assert run.json("attempts/2.json").items() >= {"machine": MACHINE, "exit": Exit.INTERRUPTED}.items()
    assert run.store.get("runs/quick/spec.json") == spec
