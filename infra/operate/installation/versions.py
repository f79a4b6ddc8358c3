"""Old versions in the bucket: what a machine has overwritten, or somebody has deleted, can be brought back for days.

The storage stack turns them on. CloudFormation adopts a bucket without changing it, so there a deploy does it itself.
"""

from __future__ import annotations

from typing import Any

import botocore.exceptions

from infra.config import ABORT_UPLOADS_DAYS, OLD_SUPERSEDED_DAYS, OLD_VERSION_DAYS, SUPERSEDED_DAYS
from infra.operate.runs import ExplainedBucket
from infra.operate.session import explained
from infra.operate.terminal import show_line
from trainer.contract import SUPERSEDED_TAG

LIFECYCLE: list[dict[str, Any]] = [  # as in `stacks.storage`; a test compares them
    {
        "ID": "abort-stale-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_UPLOADS_DAYS},
    },
    {
        "ID": "expire-superseded-checkpoints", "Status": "Enabled",
        "Filter": {
            "And": {"Prefix": "checkpoints/", "Tags": [{"Key": SUPERSEDED_TAG[0], "Value": SUPERSEDED_TAG[1]}]}
        },
        "Expiration": {"Days": SUPERSEDED_DAYS},
        "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_SUPERSEDED_DAYS},
    },
    {
        "ID": "expire-old-versions", "Status": "Enabled", "Filter": {"Prefix": ""},
        "Expiration": {"ExpiredObjectDeleteMarker": True},
        "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_VERSION_DAYS},
    },
]  # fmt: skip


def keeps_versions(s3: Any, bucket: str) -> bool:
    """Whether what is overwritten or deleted in the bucket can be brought back. Raises ClientError."""
    return bool(s3.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled")


def keep_versions(bucket: ExplainedBucket) -> None:
    """Turn versions on where they are not, and say so. The rules come first: without them, nothing would expire.

    Rules that somebody has added stay.
    """
    with explained(f"the old versions in s3://{bucket.name}"):
        there = _rules(bucket)
        if keeps_versions(bucket.s3, bucket.name) and all(_days(there.get(rule["ID"], {})) == _days(rule)
                                                          for rule in LIFECYCLE):  # fmt: skip
            return
        rules = there | {rule["ID"]: rule for rule in LIFECYCLE}
        bucket.s3.put_bucket_lifecycle_configuration(
            Bucket=bucket.name, LifecycleConfiguration={"Rules": [*rules.values()]}
        )
        bucket.s3.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    show_line(f"s3://{bucket.name} keeps old versions from now on, for up to {OLD_VERSION_DAYS} days")


def _rules(bucket: ExplainedBucket) -> dict[str, dict[str, Any]]:
    try:
        found = bucket.s3.get_bucket_lifecycle_configuration(Bucket=bucket.name)["Rules"]
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "NoSuchLifecycleConfiguration":
            raise
        return {}
    return {rule.get("ID", str(number)): _in_todays_form(rule) for number, rule in enumerate(found)}


def _in_todays_form(rule: dict[str, Any]) -> dict[str, Any]:
    """The older form has its prefix beside its filter's place, and S3 takes no mixture of both."""
    if "Prefix" not in rule:
        return rule
    others = {name: value for name, value in rule.items() if name != "Prefix"}
    return {"Filter": {"Prefix": rule["Prefix"]}, **others}


def _days(rule: dict[str, Any]) -> list[Any]:
    return [
        rule.get(what) for what in ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
    ]  # fmt: skip
