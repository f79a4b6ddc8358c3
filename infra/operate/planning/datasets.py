"""The data of a run: what DATA= names, and which prepared datasets the bucket holds. Reads only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from infra.operate.runs import ExplainedBucket
from trainer.contract import UserError, dataset_key

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
KNOWN = "a Hugging Face id (ILSVRC/imagenet-1k), s3://<bucket>/datasets/<name>/<version>, or digits"


@dataclass(frozen=True)
class Dataset:
    """A prepared one: `datasets/<name>/<version>/` with its index."""

    uri: str
    train_images: int
    bytes: int


def is_hub_id(data: str) -> bool:
    return bool(re.fullmatch(HUB_ID, data))


def slug(data: str) -> str:
    """The name that `trainer.prepare` gives to the dataset of a Hugging Face id."""
    return re.sub(r"[^a-z0-9_.-]+", "-", data.rpartition("/")[2].lower()).strip("-.") or "data"


def check_form(data: str) -> None:
    """Raises UserError where a machine on AWS could not know what is meant."""
    if data and data != "digits" and not is_hub_id(data) and not re.fullmatch(r"s3://[^/]+/.*\S", data):
        raise UserError(f"DATA={data!r} is not known to a machine on AWS: use {KNOWN}")


def newest(bucket: ExplainedBucket, data: str) -> Dataset | None:
    """The dataset that was prepared last from a Hugging Face id; None where there is none."""
    prefix = dataset_key(slug(data), "", "").removesuffix("/")
    found = [one for one in bucket.list(prefix) if re.fullmatch(re.escape(prefix) + r"[^/]+/index\.json", one.key)]
    if not found:
        return None
    key = max(found, key=lambda one: one.modified).key
    return read(bucket, f"s3://{bucket.name}/{key.removesuffix('/index.json')}")


def read(bucket: ExplainedBucket, uri: str) -> Dataset | None:
    """None where there is no index at that address of this bucket."""
    if not uri.startswith(f"s3://{bucket.name}/"):
        raise UserError(
            f"DATA={uri!r} is in another bucket, which the machine's role may not read: copy it to this one: "
            f"aws s3 sync {uri} s3://{bucket.name}/datasets/{'/'.join(uri.split('/')[-2:])}"
        )
    body = bucket.read(uri.removeprefix(f"s3://{bucket.name}/").rstrip("/") + "/index.json")
    if body is None:
        return None
    try:
        splits = json.loads(body)["splits"]
        size = sum(shard["bytes"] for split in splits.values() for one in split["sizes"] for shard in one["shards"])
        return Dataset(uri.rstrip("/"), int(splits["train"]["images"]), int(size))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri}/index.json is damaged ({error!r}): prepare the data again, `make prepare`") from error
