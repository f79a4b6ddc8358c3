"""What a run has left in the bucket: which runs there are, their files, and whether a run has ended.

It only reads, and little at a time. `infra.run.fleet` has the machines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import botocore.exceptions

from infra.config import Installation, Output
from infra.operate.documents import Result, check_attempt, number_or_zero
from infra.operate.session import MOST_CONNECTIONS, Aws, AwsError, explained
from infra.run import fleet
from infra.run.spec import Spec
from infra.run.spend import Spend
from infra.run.values import MOST_BYTES, check_object, printable
from trainer.contract import RUN_ID_RULE, UserError, attempt_key, run_key


@dataclass(frozen=True)
class ListedObject:
    key: str
    bytes: int
    modified: datetime
    etag: str = ""


@dataclass(frozen=True)
class DatedBody:
    """An object as it was read."""

    body: bytes
    modified: datetime


@dataclass(frozen=True)
class ExplainedBucket:
    """The store, read from the operator's machine. Its errors are AwsErrors with a fix."""

    s3: Any
    name: str

    def get(self, key: str, most: int = MOST_BYTES) -> DatedBody | None:
        """The object. None if there is no such object. Raises UserError if it has more than `most` bytes."""
        with explained(f"read s3://{self.name}/{key}"):
            try:
                answer = self.s3.get_object(Bucket=self.name, Key=key)
                stream = answer["Body"]
                body = bytes(stream.read(most + 1))
                if len(body) <= most:
                    stream.read()  # at the end, this compares length and checksum: a body that was cut raises
            except botocore.exceptions.ClientError as error:
                if error.response["Error"].get("Code") == "NoSuchKey":
                    return None
                raise
        if len(body) > most:
            stream.close()
            raise UserError(
                f"s3://{self.name}/{key} is larger than {most:,} bytes, which no run writes: find out who wrote it, "
                "then delete it"
            )
        return DatedBody(body, answer["LastModified"])

    def read(self, key: str, most: int = MOST_BYTES) -> bytes | None:
        """The bytes of `get`."""
        found = self.get(key, most)
        return found.body if found else None

    def read_json(self, key: str) -> dict[str, Any]:
        """The JSON object under a key. Returns {} if there is none, or if the body is not a JSON object."""
        return parse_object_or_nothing(self.read(key) or b"")

    def list(self, prefix: str, after: str = "", page: int = 1_000) -> Iterator[ListedObject]:
        """The objects below a prefix, in the order of their keys. `after` leaves out the keys up to that one.

        Each request asks for `page` keys. Raises AwsError if the endpoint names a key that is not below the prefix.
        """
        start = {"StartAfter": after} if after else {}
        with explained(f"list s3://{self.name}/{prefix}"):
            lister = self.s3.get_paginator("list_objects_v2")
            pages = lister.paginate(Bucket=self.name, Prefix=prefix, MaxKeys=page, **start)
            for answer in pages:
                for found in answer.get("Contents", []):
                    if not found["Key"].startswith(prefix):
                        raise AwsError(
                            f"s3://{self.name} was asked for the keys that begin with {prefix!r} and named "
                            f"{found['Key']!r}: this is no S3; look at AWS_ENDPOINT_URL"
                        )
                    yield ListedObject(found["Key"], found["Size"], found["LastModified"], found["ETag"])

    def run_names(self) -> Sequence[str]:
        """The folders that are named like runs."""
        with explained(f"list the runs in s3://{self.name}"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix="runs/", Delimiter="/")
            folders = [found["Prefix"] for page in pages for found in page.get("CommonPrefixes", [])]
        return [found[1] for folder in folders if (found := re.fullmatch(f"runs/({RUN_ID_RULE})/", folder))]

    def runs(self) -> dict[str, datetime]:
        """Every run that was launched, and when its spec was written."""
        names = self.run_names()
        with ThreadPoolExecutor(MOST_CONNECTIONS) as pool:
            specs = pool.map(lambda name: self.get(run_key(name, "spec.json")), names)
        return {name: spec.modified for name, spec in zip(names, specs, strict=True) if spec}


def parse_object_or_nothing(body: bytes) -> dict[str, Any]:
    """The JSON object; {} if it is none."""
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    how: str  # done, failed, or stopped
    message: str
    at: float  # Unix seconds
    result: Result | None = None  # of a training that is done, if `done.json` repeats it


def open_bucket(aws: Aws, installation: Installation) -> ExplainedBucket | None:
    """The installation's bucket. None if the storage stack was never deployed."""
    name = aws.outputs(installation.storage_stack).get(Output.BUCKET)
    return ExplainedBucket(aws.client("s3"), name) if name else None


def need_bucket(aws: Aws, installation: Installation) -> ExplainedBucket:
    if bucket := open_bucket(aws, installation):
        return bucket
    raise UserError(
        f"the stack {installation.storage_stack} is not deployed in {aws.region}: there is no run to look at; start "
        "with `make deploy`, or name another AWS_REGION or AWS_PROFILE"
    )


def choose_run(bucket: ExplainedBucket, asked: str, active: str) -> str:
    """The run that the user asked for, else the active run, else the newest. Raises UserError if there is none."""
    if asked:
        if not re.fullmatch(RUN_ID_RULE, asked) or bucket.read(run_key(asked, "spec.json")) is None:
            known = ", ".join(sorted(bucket.runs())) or "none yet"
            raise UserError(f"RUN={asked!r} is no run in s3://{bucket.name}: use one of: {known}")
        return asked
    if active:
        return active
    runs = bucket.runs()
    if not runs:
        raise UserError(f"there is no run in s3://{bucket.name} yet: start one with `make launch`")
    return max(runs, key=runs.__getitem__)


def read_spec(bucket: ExplainedBucket, run_id: str) -> Spec | None:
    body = bucket.read(run_key(run_id, "spec.json"))
    return Spec.from_json(body) if body else None


def launched_at(bucket: ExplainedBucket, run_id: str) -> float:
    """Unix seconds of the last launch, which wrote the spec. `created` in the spec is the time of the first launch."""
    spec = bucket.get(run_key(run_id, "spec.json"))
    return spec.modified.timestamp() if spec else 0.0


def read_spend(bucket: ExplainedBucket, run_id: str) -> Spend:
    """The guard's tally. Raises UserError if it is damaged."""
    body = bucket.read(run_key(run_id, "spend.json"))
    try:
        return Spend.from_json(body) if body else Spend()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"s3://{bucket.name}/{run_key(run_id, 'spend.json')} is damaged ({error!r}): the guard alone writes it; "
            "the bucket's console shows what the run's machines cost until then; delete the object to count anew"
        ) from error


def newest_attempt(bucket: ExplainedBucket, run_id: str) -> int:
    keys = (found.key for found in bucket.list(run_key(run_id, "attempts/")))
    return max((int(name) for key in keys if (name := key.split("/")[-1].removesuffix(".json")).isdecimal()), default=0)


def read_attempts(bucket: ExplainedBucket, run_id: str, most: int = 1000) -> list[dict[str, Any]]:
    """What each attempt wrote at its start and its end, the newest `most` of them, oldest first.

    Of a record that no machine of ours writes, there are only the number and the `problem`.
    """
    folder = run_key(run_id, "attempts/")
    names = (re.fullmatch(r"([1-9][0-9]{0,14})\.json", found.key.removeprefix(folder)) for found in bucket.list(folder))
    numbers = sorted(int(name[1]) for name in names if name)[-most:]

    def read(number: int) -> dict[str, Any]:
        key = attempt_key(run_id, number)
        found = bucket.read_json(key)
        try:
            return check_attempt(found) | {"attempt": number}
        except ValueError as error:
            return {"attempt": number, "problem": f"{key}, which no machine of ours writes: {error}"}

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(read, numbers))


def read_ending(bucket: ExplainedBucket, run_id: str) -> Ending | None:
    """How the run ended. None while it can go on. A `failed.json` counts only if no later attempt was started."""
    if done := bucket.read_json(run_key(run_id, "done.json")):
        at = number_or_zero(done.get("ended"))
        return Ending("done", printable(str(done.get("message", ""))), at, repeated_result(done))
    found = bucket.get(run_key(run_id, "failed.json"))
    failed = parse_object_or_nothing(found.body) if found else {}
    if found and failed and number_or_zero(failed.get("attempt")) >= newest_attempt(bucket, run_id):
        return Ending("failed", printable(str(failed.get("message", ""))), found.modified.timestamp())
    return None


def repeated_result(done: dict[str, Any]) -> Result | None:
    """None if an older version wrote `done.json`, or none of ours: result.json itself is then read."""
    try:
        return Result.from_json(check_object("result", done.get("result")))
    except ValueError:
        return None


def machine_stays_until(ending: Ending | None, spec: Spec | None, deadline: float) -> float:
    """Until when the machine on which the run failed stays on, if it is still there. 0: the run keeps none."""
    if not ending or ending.how != "failed" or not spec or not spec.keep_minutes:
        return 0.0
    return min(ending.at + spec.keep_minutes * 60, deadline)


def active_run(aws: Aws, installation: Installation) -> str:
    """The run for which a group has or wants machines. Returns "" if there is none."""
    with explained("the Auto Scaling groups"):
        groups = fleet.read_groups(aws.client("autoscaling"), installation.groups)
    return next((group.run_id for group in groups if group.desired or group.instance_ids), "")
