"""What the installation costs while nothing runs: the bucket, the secret, the image. None of it bills by the hour."""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import ClientError

from infra.config import Installation, Output, Tag
from infra.operate.runs import ExplainedBucket, open_bucket
from infra.operate.session import Aws, explained
from infra.operate.terminal import display, table
from infra.operate.text import size, usd

SOURCE = "list prices of us-east-1 in March 2026"  # aws.amazon.com/s3/pricing, /ecr/pricing, /secrets-manager/pricing
S3_USD_PER_GB_MONTH = 0.023  # S3 Standard, the first 50 TB
ECR_USD_PER_GB_MONTH = 0.10
SECRET_USD_PER_MONTH = 0.40


@dataclass(frozen=True)
class Kept:
    """Something that bills by the month."""

    what: str
    name: str
    size: str
    usd_per_month: float


def kept_buckets(aws: Aws, installation: Installation) -> list[ExplainedBucket]:
    """The installation's bucket, and the buckets that earlier storage stacks left."""
    s3 = aws.client("s3")
    current = open_bucket(aws, installation)
    names = {current.name} if current else set()
    with explained("the buckets"):
        for page in s3.get_paginator("list_buckets").paginate():
            for bucket in page["Buckets"]:
                name = bucket["Name"]
                is_named = name == installation.bucket_name or name.startswith(f"{installation.storage_stack}-")
                if is_named and is_bucket_of(aws, name, installation):
                    names.add(name)
    return [ExplainedBucket(s3, name) for name in sorted(names)]


def is_bucket_of(aws: Aws, name: str, installation: Installation) -> bool:
    """Whether a deploy of this installation made the bucket: it is this account's, and its tag says so."""
    try:
        tags = aws.client("s3").get_bucket_tagging(Bucket=name, ExpectedBucketOwner=aws.account)["TagSet"]
    except ClientError:  # no such bucket, no tags, or not ours to read
        return False
    return {"Key": Tag.INSTALLATION, "Value": installation.name} in tags


@dataclass(frozen=True)
class Count:
    number: int = 0
    bytes: int = 0


def count_versions(bucket: ExplainedBucket) -> tuple[Count, Count]:
    """The objects, and what no listing of objects shows: their old versions. Marks of deletions have no bytes."""
    counts = {True: Count(), False: Count()}
    with explained(f"list the versions in s3://{bucket.name}"):
        for page in bucket.s3.get_paginator("list_object_versions").paginate(Bucket=bucket.name):
            for found in page.get("Versions", []):
                before = counts[found["IsLatest"]]
                counts[found["IsLatest"]] = Count(before.number + 1, before.bytes + found["Size"])
    return counts[True], counts[False]


def kept_data(bucket: ExplainedBucket, installation: Installation) -> list[Kept]:
    """What `destroy` keeps, with its price. Old versions bill like the objects until they expire."""
    present, old = count_versions(bucket)
    said = f"{size(present.bytes)} in {present.number:,} objects" if present.number else size(0)
    return [
        Kept(
            "data",
            f"s3://{bucket.name}",
            said + (f", and {size(old.bytes)} in {old.number:,} old versions" if old.number else ""),
            (present.bytes + old.bytes) / 1e9 * S3_USD_PER_GB_MONTH,
        ),
        Kept("token", f"secret {installation.secret_name}", "", SECRET_USD_PER_MONTH),
    ]


def kept_image(aws: Aws, installation: Installation) -> list[Kept]:
    """The image that the training stack runs, if it is in this account's registry."""
    uri = aws.outputs(installation.training_stack).get(Output.IMAGE, "")
    registry, _, name = uri.partition("/")
    named, _, digest = name.partition("@")
    repository, _, tag = named.partition(":")
    if not registry.startswith(f"{aws.account}.dkr.ecr.{aws.region}."):
        return []
    ecr = aws.client("ecr")
    wanted = {"imageDigest": digest} if digest else {"imageTag": tag}
    with explained(f"the image {uri}"):
        try:
            (image,) = ecr.describe_images(repositoryName=repository, imageIds=[wanted])["imageDetails"]
        except (ecr.exceptions.ImageNotFoundException, ecr.exceptions.RepositoryNotFoundException):
            return []
    count = image["imageSizeInBytes"]
    return [Kept("image", f"{repository}:{(tag or digest)[:24]}", size(count), count / 1e9 * ECR_USD_PER_GB_MONTH)]


def print_kept(kept: list[Kept]) -> None:
    rows = [(one.what, one.name, one.size, f"{usd(one.usd_per_month)} a month") for one in kept]
    total = sum(one.usd_per_month for one in kept)
    display(table(rows, indent=2), f"  together {usd(total)} a month, {usd(total / 30)} a day ({SOURCE})")
