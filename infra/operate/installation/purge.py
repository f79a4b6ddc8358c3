"""What `destroy --purge` deletes beyond the training stack: the bucket with everything in it, and the token.

Nothing here runs without `--purge`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping

from infra.config import Installation
from infra.operate.installation.standing import kept_buckets, kept_data, print_kept
from infra.operate.installation.token import find_secret
from infra.operate.runs import ExplainedBucket
from infra.operate.session import Aws, AwsError, explained
from infra.operate.terminal import LiveLine, ask, show_line
from trainer.contract import UserError

FREED_SECONDS, FREED_PAUSE_SECONDS = 60.0, 1.0


def confirm_purge(aws: Aws, installation: Installation) -> None:
    for bucket in kept_buckets(aws, installation):
        print_kept(kept_data(bucket, installation))
    show_line("PURGE deletes all of this for ever: datasets, checkpoints, results, the token.")
    if not sys.stdin.isatty():
        raise UserError("--purge asks before it deletes, and there is no terminal: add --yes (make: PURGE=1 YES=1)")
    if ask(f"type {installation.name} to delete it: ") != installation.name:
        raise UserError("not confirmed: nothing was deleted; `make destroy` alone keeps the data")


def purge(aws: Aws, installation: Installation) -> None:
    """Empty and delete the bucket, and delete the secret. The stack goes after them, since it names the bucket."""
    for bucket in kept_buckets(aws, installation):
        with explained(f"delete s3://{bucket.name}"):
            empty(bucket)
            bucket.s3.delete_bucket(Bucket=bucket.name)
        show_line(f"deleted: s3://{bucket.name}")
    secrets = aws.client("secretsmanager")
    with explained(f"delete the secret {installation.secret_name}"):
        try:
            secrets.describe_secret(SecretId=installation.secret_name)
        except secrets.exceptions.ResourceNotFoundException:
            return
        secrets.delete_secret(SecretId=installation.secret_name, ForceDeleteWithoutRecovery=True)
        wait_until_forgotten(aws, installation.secret_name)
    show_line(f"deleted: secret {installation.secret_name}")


def wait_until_forgotten(aws: Aws, name: str) -> None:
    """Secrets Manager deletes in the background, and nothing can be made under the name before (its API reference)."""
    deadline = time.monotonic() + FREED_SECONDS
    with LiveLine() as live:
        while find_secret(aws, name) and time.monotonic() < deadline:
            live.show(f"secret {name}: AWS deletes it")
            time.sleep(FREED_PAUSE_SECONDS)


def empty(bucket: ExplainedBucket) -> None:
    """Delete every version of every object, every mark of a deletion, and abort unfinished uploads.

    Each round asks for the first page anew, so what somebody writes meanwhile goes as well.
    """
    with LiveLine() as live:
        deleted = 0
        while found := first_versions(bucket):
            delete_versions(bucket, found)
            deleted += len(found)
            live.show(f"s3://{bucket.name}: {deleted:,} versions of objects deleted")
    for page in bucket.s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name):
        for upload in page.get("Uploads", []):
            bucket.s3.abort_multipart_upload(Bucket=bucket.name, Key=upload["Key"], UploadId=upload["UploadId"])


def first_versions(bucket: ExplainedBucket) -> list[Mapping[str, str]]:
    """Up to a thousand versions and marks of deletions. [] if the bucket has none."""
    page = bucket.s3.list_object_versions(Bucket=bucket.name)
    return [*page.get("Versions", []), *page.get("DeleteMarkers", [])]


def delete_versions(bucket: ExplainedBucket, found: Iterable[Mapping[str, str]]) -> None:
    objects = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]
    answer = bucket.s3.delete_objects(Bucket=bucket.name, Delete={"Objects": objects, "Quiet": True})
    if errors := answer.get("Errors"):
        raise AwsError(
            f"s3://{bucket.name}/{errors[0]['Key']} cannot be deleted ({errors[0]['Code']}): "
            f"{errors[0].get('Message', '')}; {len(errors)} in all; run the same command again"
        )
