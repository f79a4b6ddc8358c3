"""The account, the region and the installation; and AWS's errors as sentences with a fix.

Every call to AWS of the operator's commands goes through `Aws.client`.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

from infra.config import ROOT, Installation, context_key
from infra.operate import credentials
from trainer.contract import UserError

PARTITION = "aws"  # all regions but those of China, of governments and of Europe's sovereign cloud
MOST_CONNECTIONS = 32  # to a service at once; what more threads open is thrown away after each request
BOTO_CONFIG = Config(
    connect_timeout=5, read_timeout=20, max_pool_connections=MOST_CONNECTIONS,
    retries={"mode": "standard", "max_attempts": 4},
    user_agent="resnet-spot",  # botocore takes a quarter of a small request's time to compose its own
)  # fmt: skip
QUICK_CONFIG = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1})
OF_AWS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError)


class ExitCode(IntEnum):
    """The exit codes of `python -m infra …`."""

    DONE = 0
    USAGE = 2
    PREFLIGHT = 3
    REFUSED = 4
    LEFT_OVERS = 5


class AwsError(Exception):
    """AWS refused, or did not answer. The message says what was asked, what AWS said, and what to do. The exit code is
    4.
    """


@dataclass(frozen=True)
class Aws:
    """The account and region of the credentials."""

    session: boto3.Session

    def client(self, service: str) -> Any:
        """Raises AwsError if the profile's credentials cannot be read."""
        with explained("your AWS credentials"):
            return _client(self.session, service)

    @property
    def region(self) -> str:
        region: str | None = self.session.region_name
        if not region:
            raise UserError("no AWS region is set: export AWS_REGION=us-east-1, or run `aws configure`")
        return region

    @cached_property
    def account(self) -> str:
        with explained("who am I (sts get-caller-identity)"):
            return str(self.client("sts").get_caller_identity()["Account"])

    def outputs(self, stack: str) -> dict[str, str]:
        """The outputs of a stack. Returns {} if there is no such stack."""
        with explained(f"the stack {stack}"):
            found = self.stack(stack)
        return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}

    def stack(self, name: str) -> dict[str, Any]:
        """CloudFormation's description of a stack. Returns {} where CloudFormation itself says that there is none.

        Raises what botocore raises. "Token for me does not exist" of a login is no word of CloudFormation.
        """
        try:
            (found,) = self.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        except botocore.exceptions.ClientError as error:
            said = error.response["Error"]
            if said.get("Code") == "ValidationError" and "does not exist" in said.get("Message", ""):
                return {}
            raise
        return dict(found)


def check_partition(session: boto3.Session) -> None:
    """Raises UserError in China, GovCloud and other partitions: they have accounts, names and prices of their own."""
    try:
        partition = session.get_partition_for_region(session.region_name) if session.region_name else PARTITION
    except botocore.exceptions.UnknownRegionError:
        return  # the region's own check says so
    if partition != PARTITION:
        raise UserError(
            f"the region {session.region_name} is in AWS's partition {partition}, for which this project has no "
            "machine image, no prices and no test: use one of the other regions, for example AWS_REGION=us-east-1"
        )


@cache
def _client(session: boto3.Session, service: str) -> Any:
    return session.client(service, config=BOTO_CONFIG)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn botocore's errors into AwsErrors. The usual ones say how to fix them."""
    try:
        yield
    except botocore.exceptions.NoRegionError as error:
        raise AwsError("no AWS region is set: export AWS_REGION=us-east-1, or run `aws configure`") from error
    except (*OF_AWS, EOFError, getpass.GetPassWarning) as error:
        raise AwsError(f"{what}: {sentence(error)}") from error


def sentence(error: BaseException) -> str:
    """What botocore's error means, and what to do."""
    if trouble := credentials.trouble(error):
        return trouble
    if isinstance(error, botocore.exceptions.ClientError):
        code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
        is_denied = "AccessDenied" in code or "Unauthorized" in code
        fix = ": your user or role lacks this permission; ask the account's administrator" if is_denied else ""
        return f"AWS refused ({code}): {said}{fix}"
    if isinstance(error, OSError) and error.filename:
        return str(error)
    return f"AWS cannot be reached: {error}; check the network and AWS_REGION"


def reason_of(aws: Aws, error: AwsError) -> str:
    """What the error says. Where AWS does not know the keys, that the region is closed, if it is."""
    cause = error.__cause__
    is_unknown = isinstance(cause, botocore.exceptions.ClientError) and (
        cause.response["Error"].get("Code") in credentials.UNKNOWN_KEYS
    )
    return closed_region(aws) or str(error) if is_unknown else str(error)


def closed_region(aws: Aws) -> str:
    """Says that the account has not enabled the region, where that is so. AWS knows no keys of the account there."""
    home = aws.session.client("ec2", region_name="us-east-1", config=QUICK_CONFIG)
    try:
        (found,) = home.describe_regions(RegionNames=[aws.region], AllRegions=True)["Regions"]
    except (*OF_AWS, ValueError):
        return ""
    if found.get("OptInStatus") != "not-opted-in":
        return ""
    return (
        f"this account has not enabled the region {aws.region}: "
        f"`aws account enable-region --region us-east-1 --region-name {aws.region}`, or export AWS_REGION=us-east-1"
    )


def load_installation(overrides: Sequence[str], root: Path = ROOT) -> Installation:
    """Read cdk.json's context, with `-c field=value` on top. Raises UserError with the key, the value and the rule."""
    for pair in overrides:
        if "=" not in pair:
            raise UserError(f"-c {pair!r} is not FIELD=VALUE: for example -c market=on-demand")
    given = dict(pair.split("=", 1) for pair in overrides)
    context: dict[str, object] = json.loads((root / "cdk.json").read_text()).get("context", {})
    return Installation.from_context(context | {context_key(name): value for name, value in given.items()})
