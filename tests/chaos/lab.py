"""Where the faults are injected: an S3 endpoint behind a proxy, attempts of a stand-in run, and the verdicts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from tests import ROOT
from tests.chaos.standin import Play, contents, same, to_line
from tests.emulator.faults import FaultProxy
from tests.emulator.s3 import make_bucket
from trainer.checkpoint.restore import restore
from trainer.contract import SUPERSEDED_TAG, UserError, checkpoint_key
from trainer.store import ObjectStore, StoreError, open_store

NUMBERS = 20_000  # of the small state: 80 kB
MANY_NUMBERS = 9_000_000  # 36 MB: two parts
LEASE_SECONDS = 2
RUN = "job"


@dataclass
class Case:
    """What became of one try."""

    injected: int = 1
    lost: int = 0  # work that was acknowledged and is gone
    wrong: str = ""  # what was not as it has to be; "": all was
    notes: Mapping[str, float | list[float]] = field(default_factory=dict)


class WrongError(Exception):
    """A verdict: the message is what the tally records."""


def expect(right: bool, message: str) -> None:
    if not right:
        raise WrongError(message)


def wait_for(ready: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll; the value once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        expect(time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s")
        time.sleep(0.01)
    return value


class Attempt:
    """One attempt of the stand-in, seen from outside."""

    def __init__(self, pid: int, log: Path):
        self.pid, self.log = pid, log
        try:
            self.handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self.handle = -1

    def events(self, name: str = "") -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in found if name in ("", event["event"])]

    def last(self, name: str) -> dict[str, Any]:
        return (self.events(name) or [{}])[-1]

    def errors(self) -> str:
        path = Path(f"{self.log}.stderr")
        return path.read_text() if path.exists() else ""

    def pids(self) -> dict[str, int]:
        """The processes that there are now: supervisor, uploader, trainer."""
        found = {"supervisor": self.pid}
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                name = (
                    "uploader"
                    if b"trainer.upload.uploader" in Path(f"/proc/{child}/cmdline").read_bytes()
                    else "trainer"
                )
                found[name] = int(child)
        return found

    def signal(self, number: int, victims: str = "all") -> bool:
        """To the uploader, the trainer or all; False when it is not there."""
        pids = self.pids()
        if victims == "all":  # the supervisor first, else it starts to clean up
            chosen = [pids[name] for name in ("supervisor", "trainer", "uploader") if name in pids]
        else:
            chosen = [pids[victims]] if victims in pids else []
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(chosen)

    def wait(self, seconds: float = 60) -> int:
        """The exit code, or -9 when the supervisor was killed; WrongError, and killed, when it does not end."""
        if self.handle >= 0 and not select.select([self.handle], [], [], seconds)[0]:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            raise WrongError(f"an attempt does not end in {seconds:.0f} s: {self.events()[-2:]} {self.errors()[-300:]}")
        return int(self.last("exit").get("code", -9))

    def acknowledged(self) -> int:
        """The newest step whose commit the trainer was told of."""
        keys = [event["key"] for event in self.events("committed")] or [""]
        return max(step_of(key) for key in keys)

    def close(self) -> None:
        if self.handle >= 0:
            if not select.select([self.handle], [], [], 0)[0]:
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            os.close(self.handle)
            self.handle = -1


def step_of(key: str) -> int:
    """Of a manifest's key; 0 for none."""
    return int(key.rsplit("step-", 1)[1][:8]) if key else 0


class Lab:
    """One folder, one endpoint, one proxy, one parent of all attempts. Every try gets a bucket or folder of its own."""

    def __init__(self, folder: Path, endpoint: str, aws: Mapping[str, str]):
        self.folder, self.endpoint, self.aws = folder, endpoint, dict(aws)
        self.proxy = FaultProxy(endpoint)
        self.count, self.attempts = 0, list[Attempt]()
        self.environ: dict[str, str] = {}
        base = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRAINER_"))}
        self.base = base | self.aws | {"TRAINER_LEASE_SECONDS": str(LEASE_SECONDS), "OMP_NUM_THREADS": "1"}
        self.parent = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.standin"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=self.base, start_new_session=True,
        )  # fmt: skip
        assert self.parent.stdout is not None
        self.parent.stdout.readline()

    def new_try(self, *, s3: bool) -> None:
        """A fresh bucket or folder; what the last try left is removed."""
        for attempt in self.attempts:
            attempt.close()
        self.attempts.clear()
        self.proxy.forget()
        shutil.rmtree(self.folder / str(self.count), ignore_errors=True)
        self.count += 1
        (self.place / "store").mkdir(parents=True)
        self.uri = str(self.place / "store")
        if s3:
            bucket = f"chaos-{os.getpid()}-{self.count}"
            make_bucket(self.endpoint, bucket)
            self.uri = f"s3://{bucket}/some/prefix"
        self.environ = {
            "TRAINER_STORE": self.uri, "TRAINER_RUN_ID": RUN, "TRAINER_SCRATCH_DIR": str(self.place / "scratch"),
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
        }  # fmt: skip

    @property
    def place(self) -> Path:
        return self.folder / str(self.count)

    def start(self, scratch: str = "scratch", environ: Mapping[str, str] = {}, **play: Any) -> Attempt:
        """Another attempt of the run; another scratch folder is another machine."""
        log = self.place / f"attempt-{len(self.attempts)}.jsonl"
        places = {"TRAINER_SCRATCH_DIR": str(self.place / scratch)}
        asked = Play(log=str(log), environ=self.base | self.environ | places | dict(environ), **play)
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.write(to_line(asked))
        self.parent.stdin.flush()
        self.attempts.append(Attempt(json.loads(self.parent.stdout.readline())["pid"], log))
        return self.attempts[-1]

    def client(self) -> Any:
        """S3 itself, past the proxy."""
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint)

    def store(self) -> ObjectStore:
        """The store past the proxy; S3 needs this process's environment to point to it (`environment`)."""
        return open_store(self.uri)

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """This process's own AWS settings: the endpoint itself."""
        before = dict(os.environ)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(self.aws | {"AWS_ENDPOINT_URL": self.endpoint})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def read(self, numbers: int = NUMBERS, run_id: str = RUN) -> tuple[int, list[str]]:
        """The step that the trainer's own reader restores, and what it said; WrongError if that is no saved state."""
        tensors = contents(run_id, 0, numbers)
        try:
            restored, skipped = restore(self.store(), run_id, tensors)
        except (UserError, StoreError) as error:
            raise WrongError(f"unreadable: {type(error).__name__}: {error}") from error
        step = restored.step if restored else 0
        expect(same(tensors, contents(run_id, step, numbers)), f"step {step} is not what was saved as step {step}")
        return step, list(skipped)

    def lease(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store().get(checkpoint_key(RUN, "HEAD.json")))
        return found

    def leftovers(self) -> list[str]:
        """What nothing refers to and nothing will remove: open uploads, objects without a tag, temporary files."""
        store, lease = self.store(), self.lease()
        kept = {lease[name] for name in ("newest", "previous", "best")} - {""}
        kept |= {json.loads(store.get(key))["object"]["key"] for key in kept}
        keys = {i.key for i in store.list(checkpoint_key(RUN, "data/"))}
        keys |= {i.key for i in store.list(checkpoint_key(RUN, "manifest/"))}
        found = sorted(keys - kept)
        if not self.uri.startswith("s3://"):
            return found + [str(path) for path in Path(self.uri).rglob(".store-*") if path.name != ".store-lock"]
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        client = self.client()
        tag = {"Key": SUPERSEDED_TAG[0], "Value": SUPERSEDED_TAG[1]}
        tagged = {key: tag in client.get_object_tagging(Bucket=bucket, Key=f"{prefix}/{key}")["TagSet"] for key in keys}
        uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        wrongly = [f"tagged: {key}" for key in kept if tagged[key]]
        return [key for key in found if not tagged[key]] + [f"open upload {u['Key']}" for u in uploads] + wrongly

    def close(self) -> None:
        for attempt in self.attempts:
            attempt.close()
        self.proxy.close()
        if self.parent.stdin is not None:
            self.parent.stdin.close()
        self.parent.kill()
        self.parent.wait()
        if self.parent.stdout is not None:
            self.parent.stdout.close()


@contextlib.contextmanager
def open_lab(folder: Path, endpoint: str, aws: Mapping[str, str]) -> Iterator[Lab]:
    lab = Lab(folder, endpoint, aws)
    try:
        with lab.environment():
            yield lab
    finally:
        lab.close()


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, str]]]:
    """An endpoint for a run outside pytest, and the environment that reaches it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.emulator.s3"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            yield endpoint, {
                "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            }  # fmt: skip
        finally:
            server.terminate()


@contextlib.contextmanager
def standalone() -> Iterator[Lab]:
    """A laboratory of its own, in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        s3_server() as (endpoint, aws),
        open_lab(Path(folder), endpoint, aws) as lab,
    ):
        yield lab
