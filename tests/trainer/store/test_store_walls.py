"""The trainer's own store and boto3 with a run's credentials, at an endpoint that enforces the roles' statements."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.boot.handover import session_policy
from tests.emulator.principals import put_role
from tests.emulator.s3 import Control
from tests.stores import bucket_and_prefix
from trainer.contract import UserError
from trainer.store import ConflictError, ObjectStore, StoreError, open_store
from trainer.store.checksum import Checksums
from trainer.store.creation import write_new

RUN, OTHER = "rn50-1", "rn50-2"


class Account:
    """A bucket with files of two runs and a dataset, and the four roles of the machines."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.operator: ObjectStore = open_store(f"s3://{bucket}")
        for key in ("runs/{}/spec.json", "runs/{}/result.json", "checkpoints/{}/HEAD.json"):
            for run in (RUN, OTHER, "prepare-1"):
                self.operator.put(key.format(run), b"{}")
        for name in ("one", "two"):
            self.operator.put(f"datasets/{name}/1/index.json", b"{}")
        iam = boto3.client("iam")
        self.roles = {
            f"{kind}-{part}": put_role(iam, f"{kind}-{part}", bucket)
            for kind in ("train", "prepare")
            for part in ("machine", "run")
        }
        self.sts = boto3.client("sts")

    def session(self, role: str, by: dict[str, str] | None = None, **more: Any) -> dict[str, str]:
        """The environment of who has taken on a role; `by` is the environment of who did it."""
        sts = self.sts if by is None else client("sts", by)
        found = sts.assume_role(RoleArn=self.roles[role], RoleSessionName="i-1", **more)["Credentials"]
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
        variables = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        return {variable: found[name] for variable, name in zip(variables, names, strict=True)}

    def container(self, kind: str, run: str, data: str = "") -> dict[str, str]:
        """As boot does it: the machine takes on the run's role, narrowed to the run."""
        machine = self.session(f"{kind}-machine")
        return self.session(f"{kind}-run", machine, Policy=session_policy(kind, self.bucket, run, data, []))


def client(service: str, session: dict[str, str]) -> Any:
    make: Any = boto3.client
    return make(service, **session)


def store_of(session: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in session.items():
        monkeypatch.setenv(name.upper(), value)
    return open_store(f"s3://{bucket}")


@pytest.fixture
def account(s3_uri: str) -> Iterator[Account]:
    made = Account(bucket_and_prefix(s3_uri)[0])
    yield made
    iam = boto3.client("iam", aws_access_key_id="testing", aws_secret_access_key="testing", aws_session_token="")
    os.environ.pop("AWS_SESSION_TOKEN", None)
    for name in made.roles:
        iam.delete_role_policy(RoleName=name, PolicyName=name)
        iam.delete_role(RoleName=name)


def refused(work: Any, *arguments: Any) -> bool:
    try:
        work(*arguments)
    except StoreError as error:
        return error.code in ("AccessDenied", "403")
    return False


def test_a_training_writes_its_own_files_and_is_refused_everywhere_else(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = account.container("train", RUN, f"s3://{account.bucket}/datasets/one/1")
    store = store_of(session, account.bucket, monkeypatch)
    store.probe(f"runs/{RUN}/probe")
    store.probe(f"checkpoints/{RUN}/probe", for_checkpoints=True)
    body = memoryview(bytes(40 << 20))
    store.put_large(f"checkpoints/{RUN}/data/1", body, Checksums.of(body))
    store.retire(f"checkpoints/{RUN}/data/1")
    assert store.abort_uploads(f"checkpoints/{RUN}/") == 0
    store.replace(f"checkpoints/{RUN}/HEAD.json", b"{1}", store.get_with_etag(f"checkpoints/{RUN}/HEAD.json")[1])
    store.put(f"runs/{RUN}/result.json", b"{1}")
    assert store.get(f"runs/{RUN}/spec.json") == store.get("datasets/one/1/index.json") == b"{}"
    for key in (
        f"runs/{RUN}/spec.json", f"runs/{RUN}/spend.json", f"runs/{RUN}/guard.json", f"runs/{OTHER}/result.json",
        f"runs/{RUN}0/result.json", f"checkpoints/{OTHER}/HEAD.json", "datasets/one/1/index.json", "datasets/new/1/x",
    ):  # fmt: skip
        assert refused(store.put, key, b"forged"), key
        assert refused(store.create, key, b"forged"), key
        assert refused(store.retire, key), key
    for key in (f"checkpoints/{OTHER}/HEAD.json", f"runs/{OTHER}/result.json", "datasets/two/1/index.json"):
        assert refused(store.get, key), key
    assert refused(list, store.list(f"runs/{OTHER}/"))
    s3 = client("s3", session)
    for call, more in (
        (s3.delete_object, {"Key": f"runs/{RUN}/result.json"}),
        (s3.copy_object, {"Key": f"runs/{RUN}/x", "CopySource": f"{account.bucket}/checkpoints/{OTHER}/HEAD.json"}),
        (s3.list_objects_v2, {}),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            call(Bucket=account.bucket, **more)


def test_a_preparation_creates_datasets_and_overwrites_none(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(account.container("prepare", "prepare-1"), account.bucket, monkeypatch)
    for _ in range(2):
        store.probe("datasets/probe", creates=True)
    for body in (b"shard", bytes(17 << 20)):
        write_new(store, f"datasets/new/1/{len(body)}", body)
        write_new(store, f"datasets/new/1/{len(body)}", body)
        with pytest.raises(UserError, match=r"holds other bytes .* may not be overwritten"):
            write_new(store, f"datasets/new/1/{len(body)}", body[1:] + b"x")
    assert refused(store.put, "datasets/one/1/index.json", b"forged")
    assert refused(store.put, "datasets/new/1/other", b"forged")  # without the condition
    assert refused(store.retire, "datasets/one/1/index.json")
    with pytest.raises(ConflictError):
        store.create("datasets/one/1/index.json", b"forged")
    store.put("runs/prepare-1/heartbeat.json", b"{1}")
    for key in ("runs/prepare-1/spec.json", "runs/prepare-2/heartbeat.json", f"runs/{RUN}/result.json"):
        assert refused(store.put, key, b"forged"), key


def test_a_machine_takes_on_its_own_runs_role_and_no_other_and_for_an_hour_at_most(account: Account) -> None:
    machine, run = account.session("train-machine"), account.container("train", RUN)
    for by, role, more in (
        (machine, "prepare-run", {}),
        (machine, "train-machine", {}),
        (run, "train-run", {}),
        (machine, "train-run", {"DurationSeconds": 3601}),
        (machine, "train-run", {"Policy": " " * 2049}),
    ):
        with pytest.raises(ClientError):
            account.session(role, by, **more)
    with pytest.raises(ClientError, match="AccessDenied"):
        client("s3", machine).put_object(Bucket=account.bucket, Key=f"runs/{RUN}/spec.json", Body=b"forged")


def test_a_session_ends(account: Account, monkeypatch: pytest.MonkeyPatch, s3_control: Control) -> None:
    session = account.container("train", RUN)
    store = store_of(session, account.bucket, monkeypatch)
    store.put(f"runs/{RUN}/result.json", b"1")
    s3_control.set(session_seconds=0.001)
    with pytest.raises(StoreError) as caught:
        store.put(f"runs/{RUN}/result.json", b"2")
    assert caught.value.code == "ExpiredToken"
