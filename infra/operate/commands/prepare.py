"""`prepare`: turn a dataset of the hub into shards in the bucket, on a cheap CPU machine of AWS.

It is a launch of the other group, with the same guards, heartbeat and log. On this machine, use `python -m
trainer.prepare`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.commands.launch import find_place, launch
from infra.operate.planning import datasets, options
from infra.operate.planning.options import Request
from infra.operate.runs import need_bucket
from infra.operate.session import Aws, ExitCode
from infra.operate.terminal import next_commands, show_line
from infra.operate.text import size
from trainer.contract import UserError

HELP = "turn a dataset of the Hugging Face hub into training shards in the bucket, on a CPU machine"
IMAGENET_NAME = "ILSVRC/imagenet-1k"


def configure(parser: CommandLine) -> None:
    parser.option("again", "even if the bucket holds it prepared", action="store_true")
    options.configure(parser, "prepare")


def preparation_of(given: argparse.Namespace, store: str) -> Request:
    asked = options.request_of(given, kind="prepare")
    data = asked.data or IMAGENET_NAME
    if not datasets.is_hub_id(data):
        raise UserError(
            f"DATA={data!r} is not a Hugging Face id, and a machine on AWS can fetch nothing else: for example "
            f"DATA={IMAGENET_NAME}; a folder is prepared here: make prepare DATA=… STORE=s3://…"
        )
    return replace(asked, data=data, arguments=("--data", data, "--store", store, *asked.arguments))


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    find_place(aws, installation, "prepare")
    bucket = need_bucket(aws, installation)
    request = preparation_of(given, f"s3://{bucket.name}")
    if not given.again and not given.arguments and (found := datasets.newest(bucket, request.data)):
        show_line(f"{request.data} is prepared: {found.uri}, {found.train_images:,} images, {size(found.bytes)}")
        next_commands(
            ("make launch", "train from it"),
            (f"make prepare ON=aws DATA={request.data} AGAIN=1", "look whether the hub has another version"),
        )
        return ExitCode.DONE
    return launch(aws, installation, request)
