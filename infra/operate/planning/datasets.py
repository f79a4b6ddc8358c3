"""The data of a run: what DATA= may name, and which prepared datasets the bucket has. Reads only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from infra.operate.runs import ExplainedBucket
from infra.run.values import check_object, check_text, check_texts, check_whole
from trainer.contract import UserError, dataset_key

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[0-9a-f]{40})?"  # of the newest commit, or of the one after the @
MOST_STORED = 1 << 50  # bytes
INDEX_BYTES = 64 << 20  # at most: a line for each shard
KNOWN = (
    "a Hugging Face id (ILSVRC/imagenet-1k, or with a commit: …@<40 hex digits>), "
    "s3://<bucket>/datasets/<name>/<version>, or digits"
)


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: `datasets/<name>/<version>/` with its index."""

    uri: str
    train_images: int
    val_images: int
    classes: int  # 0 if the index does not say
    bytes: int
    commit: str  # of the hub; "" if it did not come from there
    sizes: tuple[tuple[str, int, int], ...] = ()  # split, short side, bytes


def is_hub_id(data: str) -> bool:
    return bool(re.fullmatch(HUB_ID, data))


def hub_id(data: str) -> str:
    return data.partition("@")[0]


def slug(data: str) -> str:
    """The name that `trainer.prepare` gives to the dataset of a Hugging Face id."""
    return re.sub(r"[^a-z0-9_.-]+", "-", hub_id(data).rpartition("/")[2].lower()).strip("-.") or "data"


def check_form(data: str) -> None:
    """Raises UserError if no machine on AWS could read what DATA= names."""
    if data and data != "digits" and not is_hub_id(data) and not re.fullmatch(r"s3://[^/]+/.*\S", data):
        raise UserError(f"DATA={data!r} is not known to a machine on AWS: use {KNOWN}")


def newest(bucket: ExplainedBucket, data: str) -> Dataset | None:
    """The dataset that was prepared last from a Hugging Face id, or from one of its commits. None if there is none."""
    prefix = dataset_key(slug(data), "", "").removesuffix("/")
    found = [one for one in bucket.list(prefix) if re.fullmatch(re.escape(prefix) + r"[^/]+/index\.json", one.key)]
    commit = data.partition("@")[2]
    for one in sorted(found, key=lambda one: one.modified, reverse=True):
        dataset = read(bucket, f"s3://{bucket.name}/{one.key.removesuffix('/index.json')}")
        if dataset and commit in ("", dataset.commit):
            return dataset
    return None


def read(bucket: ExplainedBucket, uri: str) -> Dataset | None:
    """The dataset at an address in this bucket. None if there is no index; UserError if it is in another bucket."""
    if not uri.startswith(f"s3://{bucket.name}/"):
        raise UserError(
            f"DATA={uri!r} is in another bucket, which the machine's role may not read: copy it to this one: "
            f"aws s3 sync {uri} s3://{bucket.name}/datasets/{'/'.join(uri.split('/')[-2:])}"
        )
    body = bucket.read(uri.removeprefix(f"s3://{bucket.name}/").rstrip("/") + "/index.json", INDEX_BYTES)
    if body is None:
        return None
    try:
        index = check_object("the file", json.loads(body))
        splits, source = check_object("splits", index["splits"]), check_object("source", index.get("source") or {})
        sizes = tuple(_side_and_bytes(name, one) for name, split in splits.items() for one in split["sizes"])
        train, val = (check_whole("images", splits[name]["images"]) for name in ("train", "val"))
        classes = len(check_texts("classes", index.get("classes", [])))
        commit = check_text("commit", source.get("commit", ""))
        size = sum(count for _, _, count in sizes)
        return Dataset(uri.rstrip("/"), train, val, classes, size, commit, sizes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{uri}/index.json is damaged ({error!r}): prepare the data again, `make prepare`") from error


def _side_and_bytes(split: str, value: Any) -> tuple[str, int, int]:
    """One stored size of a split: its short side and its bytes."""
    count = sum(check_whole("bytes", shard["bytes"], MOST_STORED) for shard in value["shards"])
    return split, check_whole("short_side", value["short_side"]), count
