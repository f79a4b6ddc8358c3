"""The checks of `preflight` on the account and the laptop: credentials, region, CDK, stacks.

A check takes a `Wanted` and returns a `Finding`. It changes nothing. `checks.network`, `checks.image`,
`checks.machines` and `checks.run` have the others.
"""

from __future__ import annotations

from typing import Any

import botocore.exceptions

from infra.config import ROOT, ZONES
from infra.operate import credentials as logins
from infra.operate.checks.finding import INFRA, Finding, Wanted, ok, wrong
from infra.operate.installation import cdk
from infra.operate.installation.stack_states import DEAD, stack_status
from infra.operate.installation.zones import zones_of_region
from infra.operate.session import BOTO_CONFIG, Aws, AwsError, explained, reason_of

HOME_REGION = "us-east-1"
LEAST_BOOTSTRAP = 6  # what the synthesised stacks require
WAIT = "aws cloudformation wait {} --stack-name {{stack}}"
STUCK = {  # status of a stack with which no deploy can go on: the one command that helps
    "DELETE_FAILED": "make destroy",
    "ROLLBACK_FAILED": "make destroy",
    "IMPORT_ROLLBACK_FAILED": "make destroy",
    "UPDATE_FAILED": "aws cloudformation rollback-stack --stack-name {stack}",
    "UPDATE_ROLLBACK_FAILED": "aws cloudformation continue-update-rollback --stack-name {stack}",
    # Each of these waiters ends, with or without an error, where that operation ends (botocore's waiters-2.json)
    "CREATE_IN_PROGRESS": WAIT.format("stack-create-complete"),
    "ROLLBACK_IN_PROGRESS": WAIT.format("stack-create-complete"),
    "DELETE_IN_PROGRESS": WAIT.format("stack-delete-complete"),
    "UPDATE_IN_PROGRESS": WAIT.format("stack-update-complete"),
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": WAIT.format("stack-update-complete"),
    "UPDATE_ROLLBACK_IN_PROGRESS": WAIT.format("stack-rollback-complete"),
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": WAIT.format("stack-rollback-complete"),
    "IMPORT_IN_PROGRESS": WAIT.format("stack-import-complete"),
    "IMPORT_ROLLBACK_IN_PROGRESS": "sleep 60; make preflight",  # there is no waiter for it
}
KEEPING = dict.fromkeys(  # for the storage stack, which `destroy` never touches, and whose parts all outlive it
    ("DELETE_FAILED", "ROLLBACK_FAILED", "IMPORT_ROLLBACK_FAILED"),
    "aws cloudformation delete-stack --stack-name {stack}",
)


def credentials(wanted: Wanted) -> Finding:
    try:
        with explained("who am I"):
            caller = sts_of(wanted.aws).get_caller_identity()
    except AwsError as error:
        return wrong(reason_of(wanted.aws, error), logins.fix())
    return ok(f"account {caller['Account']}, {caller['Arn'].rpartition(':')[2]}")


def is_region(aws: Aws) -> bool:
    """Whether AWS has a region of this name. Without one or with a wrong one, no call would say what is wrong."""
    session = aws.session
    try:
        return bool(session.region_name) and aws.region in session.get_available_regions(
            "ec2", session.get_partition_for_region(aws.region)
        )
    except botocore.exceptions.UnknownRegionError:
        return False


def sts_of(aws: Aws) -> Any:
    """Where no region is known yet, the first one tells as well who asks."""
    return aws.client("sts") if is_region(aws) else aws.session.client("sts", HOME_REGION, config=BOTO_CONFIG)


def region(wanted: Wanted) -> Finding:
    if not wanted.aws.session.region_name:
        return wrong("no region is set", f"export AWS_REGION={HOME_REGION}")
    name = wanted.aws.region
    if not is_region(wanted.aws):
        return wrong(f"{name!r} is not a region of AWS", f"export AWS_REGION={HOME_REGION}")
    installation, zones = wanted.installation, zones_of_region(wanted.aws)
    told = f"{INFRA} -c zones={','.join(zones[:ZONES])} deploy"
    if missing := sorted(set(filter(None, installation.zones.split(","))) - set(zones)):
        return wrong(f"{name} has no zone {', '.join(missing)}", told)
    return ok(f"{name}, {len(zones)} zones")


def bootstrap(wanted: Wanted) -> Finding:
    command = cdk.shell_command("bootstrap", f"aws://{wanted.aws.account}/{wanted.aws.region}")
    try:
        parameter = wanted.aws.client("ssm").get_parameter(Name="/cdk-bootstrap/hnb659fds/version")["Parameter"]
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "ParameterNotFound":
            raise
        return wrong("this account and region are not prepared for CDK", command)
    version = int(parameter["Value"])
    if version < LEAST_BOOTSTRAP:
        return wrong(f"its version is {version}, at least {LEAST_BOOTSTRAP} is needed", command)
    return ok(f"version {version}")


def cdk_command_line(wanted: Wanted) -> Finding:
    if not cdk.CLI.exists():
        return wrong(f"{cdk.CLI.relative_to(ROOT)} is not installed", "make node_modules/.package-lock.json")
    return ok(f"aws-cdk {cdk.version()}")


def quota_value(wanted: Wanted, code: str, service: str = "ec2") -> float:
    client = wanted.aws.client("service-quotas")
    try:
        answer = client.get_service_quota(ServiceCode=service, QuotaCode=code)
    except client.exceptions.NoSuchResourceException:  # never changed in this account
        answer = client.get_aws_default_service_quota(ServiceCode=service, QuotaCode=code)
    return float(answer["Quota"]["Value"])


def stacks(wanted: Wanted) -> Finding:
    said = []
    storage, training = wanted.installation.storage_stack, wanted.installation.training_stack
    builder = wanted.installation.builder_stack  # which most installations have not
    for name in (storage, training, *([builder] if stack_status(wanted.aws, builder) else [])):
        status = stack_status(wanted.aws, name)
        if status in STUCK:
            is_alone = name == storage and not stack_status(wanted.aws, training)  # else its outputs are in use
            fixes = STUCK | (KEEPING if is_alone else {})
            return wrong(f"{name} is in {status}", fixes[status].format(stack=name))
        dead = ", from a deploy that failed: the next one deletes it first" if status in DEAD else ""
        said.append(f"{name}: {status or 'not there yet'}{dead}")
    return ok(", ".join(said))


def why(error: BaseException) -> str:
    """The reason why a check could not be made, as text."""
    if isinstance(error, AwsError):
        return str(error)
    if trouble := logins.trouble(error):
        return trouble
    if isinstance(error, botocore.exceptions.ClientError):
        return f"AWS refused ({error.response['Error'].get('Code', '')}): {error.response['Error'].get('Message', '')}"
    return f"{type(error).__name__}: {error}"
