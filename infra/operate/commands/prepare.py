"""`prepare`: turn a dataset of the hub into shards in the bucket, on a cheap CPU machine of AWS.

A launch of the other group: the same guards, heartbeat and log. Locally it is `python -m trainer.prepare`.
"""

from __future__ import annotations

import argparse
import shlex

from infra.config import Installation
from infra.operate.commands.launch import find_place, launch
from infra.operate.planning import datasets, options
from infra.operate.planning.plan import Request
from infra.operate.runs import need_bucket
from infra.operate.session import Aws, ExitCode
from infra.operate.terminal import next_commands
from trainer.contract import UserError

HELP = "turn a dataset of the Hugging Face hub into training shards in the bucket, on a CPU machine"
IMAGENET = "ILSVRC/imagenet-1k"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", default=IMAGENET, help=f"Hugging Face id (default: {IMAGENET})")
    add("--args", default="", metavar='"--quality 85"', help="options of trainer.prepare")
    add("--again", action="store_true", help="even if the bucket holds it prepared")
    options.configure_limits(parser)


def request_of(given: argparse.Namespace, store: str) -> Request:
    if not datasets.is_hub_id(given.data):
        raise UserError(
            f"DATA={given.data!r} is not a Hugging Face id, which alone a machine on AWS can fetch: for example "
            f"DATA={IMAGENET}; a folder is prepared here: make prepare DATA=… STORE=s3://…"
        )
    return Request(
        kind="prepare",
        data=given.data,
        arguments=("--data", given.data, "--store", store, *shlex.split(given.args)),
        **options.limits_of(given),
    )


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    find_place(aws, installation, "prepare")
    bucket = need_bucket(aws, installation)
    request = request_of(given, f"s3://{bucket.name}")
    if not given.again and not given.args and (found := datasets.newest(bucket, given.data)):
        print(f"{given.data} is prepared: {found.uri}, {found.train_images:,} images, {found.bytes / 1e9:.1f} GB")
        next_commands(
            ("make launch", "train from it"),
            (f"make prepare ON=aws DATA={given.data} AGAIN=1", "look whether the hub has another version"),
        )
        return ExitCode.DONE
    return launch(aws, installation, request)
