"""The checks of `preflight` on the run: data, token, bucket, budget, other runs."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import botocore.exceptions

from infra.config import Tag
from infra.operate.checks.finding import INFRA, Finding, Wanted, doubtful, ok, unneeded, wrong
from infra.operate.installation.stack_states import has_stack
from infra.operate.installation.standing import is_bucket_of
from infra.operate.installation.token import blocking_secret, find_secret, stored_token
from infra.operate.installation.versions import keeps_versions
from infra.operate.planning import catalog, datasets
from infra.operate.planning.disks import RoomError
from infra.operate.planning.plan import MeansError, find_dataset, make_plan
from infra.operate.planning.start import find_active
from infra.operate.text import size, usd
from trainer.contract import check_hub_address

HUB = "https://huggingface.co"
ANSWERS_SECONDS = 8


def token(wanted: Wanted) -> Finding:
    name, aws = wanted.installation.secret_name, wanted.aws
    is_deployed = has_stack(aws, wanted.installation.storage_stack)
    if blocking := blocking_secret(find_secret(aws, name), name, is_deployed=is_deployed):
        return wrong(*blocking)
    value = stored_token(aws, name)
    if not _needs_hub(wanted):
        return unneeded(f"the data is {wanted.data}")
    if value:
        return ok(f"secret {name}")
    status = _knock(wanted.data, "")
    if status == 200:
        return unneeded(f"{wanted.data} is open to everybody")
    return wrong(f"the secret {name} holds no token, and {wanted.data} is gated", "make secret")


def gate(wanted: Wanted) -> Finding:
    if not _needs_hub(wanted):
        return unneeded("nothing is read from the hub")
    value = stored_token(wanted.aws, wanted.installation.secret_name)
    status, page = _knock(wanted.data, value or ""), f"{_hub()}/datasets/{datasets.hub_id(wanted.data)}"
    if status == 200:
        return ok(f"{wanted.data} lets {'this token' if value else 'everybody'} in")
    if status == 404:
        return wrong(f"the hub has no dataset {wanted.data}, or hides it from this token", "make secret")
    if status == 401 and value:
        return wrong("the hub does not know this token", "make secret")
    if status == 403 or (status == 401 and not value):
        if not value:
            return Finding("unknown", "needs the token first")
        return wrong(f"{wanted.data} is closed for this token's account: accept its terms there", f"open {page}")
    if 300 <= status < 400:
        return Finding("unknown", f"{_hub()} answered {status}: it sends to another host, which gets no token")
    return Finding("unknown", f"the hub answered {status}")


def _needs_hub(wanted: Wanted) -> bool:
    if not datasets.is_hub_id(wanted.data):
        return False
    is_prepared = wanted.request.kind == "train" and wanted.bucket and find_dataset(wanted.bucket, wanted.request)
    return not is_prepared


def _hub() -> str:
    """The hub's address. Raises UserError for one to which a token would travel without TLS."""
    return check_hub_address(os.environ.get("HF_ENDPOINT", HUB).rstrip("/"))


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the same scheme, host and port only: the token goes with the request."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(rest[-1])
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            return None
        return super().redirect_request(req, *rest)


def _knock(data: str, value: str) -> int:
    """Ask the hub whether this token may read the dataset. Returns the HTTP status of its answer."""
    headers = {"Authorization": f"Bearer {value}"} if value else {}
    address = f"{_hub()}/api/datasets/{datasets.hub_id(data)}/auth-check"
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.build_opener(SameHost).open(request, timeout=ANSWERS_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def bucket(wanted: Wanted) -> Finding:
    name, deployed = wanted.installation.bucket_name, wanted.bucket.name if wanted.bucket else ""
    if name and deployed and name != deployed:
        return wrong(
            f"cdk.json says {name}, but the stack has {deployed}, whose data would stay behind",
            f"{INFRA} -c bucket_name={deployed} deploy",
        )
    if not name and not deployed:
        return ok("AWS makes up its name")
    name = name or deployed
    another = f"{INFRA} -c bucket_name={name[:50]}-{wanted.aws.account} deploy"
    try:
        answer = wanted.aws.client("s3").head_bucket(Bucket=name, ExpectedBucketOwner=wanted.aws.account)
    except botocore.exceptions.ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404 and deployed:
            return wrong(f"{name} is the stack's bucket, but somebody deleted it", f"aws s3 mb s3://{name}")
        if status == 404:
            return ok(f"{name} is free")
        if status in (301, 400):
            return wrong(f"{name} is in another region than {wanted.aws.region}", another)
        if status == 403:
            return wrong(f"{name} belongs to somebody else, or you may not use it", another)
        raise
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", wanted.aws.region)
    if region != wanted.aws.region:
        return wrong(f"{name} is in {region}", f"export AWS_REGION={region}")
    is_kept = keeps_versions(wanted.aws.client("s3"), name)
    later = "" if is_kept else "; it keeps no old versions yet: the next deploy turns them on"
    if deployed:
        return ok(f"{name} is there{later}")
    if not is_bucket_of(wanted.aws, name, wanted.installation):
        tag = f"{Tag.INSTALLATION}={wanted.installation.name}"
        return wrong(
            f"{name} is there without the tag {tag}: no deploy of this installation made it, and none would set it up "
            "(lifecycle, no public access)",
            another,
        )
    return ok(f"{name} is there and will be adopted{later}")


def budget(wanted: Wanted) -> Finding:
    try:
        plan = wanted.plan or make_plan(
            wanted.aws, wanted.installation, wanted.bucket, wanted.request, time.time()
        )  # fmt: skip
    except RoomError:
        return Finding("unknown", "needs a type with room for the data")
    except MeansError as error:
        return wrong(str(error), error.command)
    best = plan.offered[0]
    estimate = f"{best.type}: about {best.hours:.1f} h, {usd(best.usd)}"
    return ok(f"{usd(plan.spec.budget_usd)} and {plan.spec.hours:.0f} h; {estimate}")


def mail(wanted: Wanted) -> Finding:
    if wanted.installation.email:
        return ok(f"to {wanted.installation.email}, once you have confirmed the address to AWS")
    return doubtful(
        "nobody is told when the guard acts or fails, or when logs or the bucket grow too fast: "
        'set "resnet-spot:email" in cdk.json, then `make deploy`'
    )


def alone(wanted: Wanted) -> Finding:
    names = wanted.installation.groups_of(wanted.request.kind)
    if active := find_active(wanted.aws.client, wanted.installation, names):
        return wrong(active, "make stop")
    return ok("no other run is active")


def idle(wanted: Wanted) -> Finding:
    """No run may be active in any group: a deploy changes all."""
    if active := find_active(wanted.aws.client, wanted.installation, wanted.installation.groups):
        return wrong(active, "make stop")
    return ok("no run is active")


def data(wanted: Wanted) -> Finding:
    if wanted.request.kind == "prepare":
        return ok(f"{wanted.data}, from the hub")
    if wanted.data == "digits":
        return ok("digits come with the image")
    dataset = find_dataset(wanted.bucket, wanted.request) if wanted.bucket else None
    if dataset:
        return ok(f"{dataset.uri}, {dataset.train_images:,} images, {size(dataset.bytes, 0)}")
    if wanted.data.startswith("s3://"):
        return wrong(f"there is no prepared dataset at {wanted.data} (no index.json)", "make prepare ON=aws")
    return ok(
        f"{wanted.data} is not prepared: every new machine downloads {catalog.IMAGENET_SOURCE_GB} GB for ImageNet; "
        "`make prepare ON=aws` once is cheaper"
    )
