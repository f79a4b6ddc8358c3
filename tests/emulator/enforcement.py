"""Lets the emulators refuse what IAM would: calls with the credentials of a role that was taken on.

Those of the tests themselves ("testing") may do anything, also take on any role, as EC2 does for a machine. What a role
may do is in the emulated IAM: its inline policies. A session has its policy, and ends: `cap_sessions` ends it sooner.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.autoscaling.models import autoscaling_backends
from moto.core.utils import utcnow
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.secretsmanager.models import secretsmanager_backends
from moto.sts.models import AssumedRole, STSBackend, sts_backends

from tests.emulator.aws_control import SETTINGS, call_of, read_body
from tests.emulator.policies import Caller, Request, parse, trusts

ACCOUNT, REGION = "123456789012", "us-east-1"
CHAINED_SECONDS = 3600  # AWS's limit where a role takes on another
S3_ACTIONS = {
    "HeadObject": "GetObject", "ListObjectsV2": "ListBucket", "ListObjects": "ListBucket", "HeadBucket": "ListBucket",
    "CreateMultipartUpload": "PutObject", "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject",
    "ListMultipartUploads": "ListBucketMultipartUploads", "ListParts": "ListMultipartUploadParts",
    "ListObjectVersions": "ListBucketVersions", "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration", "ListBuckets": "ListAllMyBuckets",
    "DeleteObjects": "DeleteObject",
}  # fmt: skip
CREATES = {"PutObject": "true", "CompleteMultipartUpload": "true", "CreateMultipartUpload": "false",
           "UploadPart": "false"}  # fmt: skip
# Parts of an update of a group that AWS takes for a use of its launch template: who sends them needs what starting a
# machine needs. https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-launch-template-permissions.html
WITH_TEMPLATE = ("MixedInstancesPolicy.", "LaunchTemplate.")
OF_AN_UPLOAD = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload",
                "GET": "ListParts"}  # fmt: skip  # `call_of` does not tell these from what is done with an object
LIFETIME: dict[str, float] = {}  # seconds, under "most": sessions end so long after their beginning at the latest


Refusal = tuple[str, str]  # code and message


def patch() -> dict[str, Callable[[], None]]:
    """Sessions get the lifetime that a test has set, and say so."""
    assume = STSBackend.assume_role

    def capped(self: STSBackend, **asked: Any) -> AssumedRole:
        return assume(self, **asked | {"duration": min(asked["duration"], LIFETIME.get("most", asked["duration"]))})

    STSBackend.assume_role = capped
    return {"session_seconds": lambda: cap_sessions(SETTINGS.session_seconds)}


def cap_sessions(seconds: float) -> None:
    """Every session ends so many seconds from now, and later ones as long after their beginning; 0: as asked for."""
    LIFETIME.clear()
    if seconds:
        LIFETIME["most"] = seconds
        for session in sessions():
            session.expiration = min(session.expiration, utcnow() + datetime.timedelta(seconds=seconds))


def sessions() -> list[AssumedRole]:
    return [
        one for partitions in sts_backends.values() for backend in partitions.values() for one in backend.assumed_roles
    ]


def session_of(access_key: str) -> AssumedRole | None:
    return next((one for one in sessions() if one.access_key_id == access_key), None)


def is_over(session: AssumedRole) -> bool:
    return bool(utcnow() >= session.expiration)


def refusal(environ: dict[str, Any]) -> Refusal | None:
    """Why IAM refuses the request; None if it does not."""
    found = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    call = call_of(environ)
    session = session_of(found[1]) if found else None
    if call == "sts.AssumeRole" and (refused := refusal_to_assume(form(environ), session)):
        return refused
    if session is None:
        return None
    if environ.get("HTTP_X_AMZ_SECURITY_TOKEN", "") != session.session_token:
        return ("InvalidToken", "The provided token is malformed or otherwise invalid.")
    if is_over(session):
        return ("ExpiredToken", "The provided token has expired.")
    if (caller := caller_of(session)) is None:
        return None
    for request in [] if call == "sts.GetCallerIdentity" else requests(call, environ):
        if why := caller.why_not(request):
            text = f"User: {session.arn} is not authorized to perform: {request.action} on resource: {request.resource}"
            return ("AccessDenied", f"{text} {why}")
    return refusal_of_missing(call, environ, caller)


def caller_of(session: AssumedRole) -> Caller | None:
    """None for who may do anything: the roles of CDK's bootstrap, which only the operator takes on, and a role that is
    not there, which moto lets a test take on.
    """
    role = next((one for one in iam_backends[ACCOUNT]["aws"].roles.values() if one.arn == session.role_arn), None)
    if role is None or role.name.startswith("cdk-"):
        return None
    policies = [as_document(policy) for policy in role.policies.values()]
    return Caller(session.role_arn, policies, parse(session.policy) if session.policy else None)


def as_document(policy: Any) -> Any:
    return json.loads(policy) if isinstance(policy, str) else policy


def refusal_to_assume(asked: dict[str, str], session: AssumedRole | None) -> Refusal | None:
    """The role and its trust, the policy and the length of the new session."""
    arn, seconds = asked["RoleArn"], int(asked.get("DurationSeconds", "3600"))
    roles = {role.arn: role for role in iam_backends[ACCOUNT]["aws"].roles.values()}
    denied = ("AccessDenied", f"not authorized to perform: sts:AssumeRole on resource: {arn}")
    if session and (
        arn not in roles or not trusts(as_document(roles[arn].assume_role_policy_document), session.role_arn)
    ):
        return denied
    if not 900 <= seconds <= (CHAINED_SECONDS if session else 12 * 3600):
        return ("ValidationError", f"DurationSeconds {seconds}: 900 to 3600 where a role takes on another")
    try:
        parse(asked.get("Policy", '{"Statement": []}'))
    except (ValueError, KeyError, TypeError) as error:
        return ("MalformedPolicyDocument", str(error))
    return None


def form(environ: dict[str, Any]) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(read_body(environ).decode()).items()}


def requests(call: str, environ: dict[str, Any]) -> list[Request]:
    """What IAM is asked about a call: an action on a resource, and their context."""
    service, _, operation = call.partition(".")
    if service == "s3":
        return s3_requests(operation, environ)
    if service == "scheduler" and (named := re.fullmatch(r"/schedules/([^/]+)", environ["PATH_INFO"])):
        group = parse_qs(environ.get("QUERY_STRING", "")).get("groupName", ["default"])[0]
        where = f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/{group}/{named[1]}"
        return [Request(f"scheduler:{operation}", where)]
    body = form(environ) if "x-www-form-urlencoded" in environ.get("CONTENT_TYPE", "") else as_json(environ)
    found = [Request(f"{service}:{operation}", resource_of(service, operation, body))]
    if call == "autoscaling.UpdateAutoScalingGroup" and any(name.startswith(WITH_TEMPLATE) for name in body):
        found.append(Request("ec2:RunInstances", "*"))
    return found


def as_json(environ: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_body(environ) or b"{}")
    return found


def s3_requests(operation: str, environ: dict[str, Any]) -> list[Request]:
    query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", ""), True).items()}
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    if "uploadId" in query:
        operation = OF_AN_UPLOAD[environ["REQUEST_METHOD"]]
    elif environ["REQUEST_METHOD"] == "DELETE" and key and "tagging" not in query:
        operation = "DeleteObject"
    action, context = S3_ACTIONS.get(operation, operation), dict[str, str]()
    if "prefix" in query:
        context["s3:prefix"] = query["prefix"]
    if operation in CREATES:
        context["s3:ObjectCreationOperation"] = CREATES[operation]
    for header in ("if-none-match", "if-match"):
        if value := environ.get(f"HTTP_{header.upper().replace('-', '_')}"):
            context[f"s3:{header}"] = value
    if "versionId" in query:
        action = action.replace("Object", "ObjectVersion")
    if operation == "DeleteObjects":
        keys = re.findall(r"<Key>(.*?)</Key>", read_body(environ).decode())
        return [Request("s3:DeleteObject", f"{arn}/{one}") for one in keys]
    found = [Request(f"s3:{action}", f"{arn}/{key}" if key else arn, context)]
    if source := environ.get("HTTP_X_AMZ_COPY_SOURCE"):
        found.append(Request("s3:GetObject", f"arn:aws:s3:::{unquote(source).lstrip('/').partition('?')[0]}"))
    if "HTTP_X_AMZ_TAGGING" in environ:
        found.append(Request("s3:PutObjectTagging", f"{arn}/{key}"))
    return found


def refusal_of_missing(call: str, environ: dict[str, Any], caller: Caller) -> Refusal | None:
    """Who may not list does not learn that a key is missing."""
    if call not in ("s3.GetObject", "s3.HeadObject"):
        return None
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    holder = s3_backends[ACCOUNT]["aws"]
    if bucket not in holder.buckets or holder.get_object(bucket, key) is not None:
        return None
    listing = Request("s3:ListBucket", f"arn:aws:s3:::{bucket}", {"s3:prefix": key})
    return None if caller.may(listing) else ("AccessDenied", "Access Denied")


def resource_of(service: str, operation: str, body: dict[str, Any]) -> str:
    """The ARN that a call is about; "*" where AWS knows no resource, or this emulator does not."""
    place = f"arn:aws:{service}:{REGION}:{ACCOUNT}:"
    if service == "sts":
        return str(body.get("RoleArn", "*"))
    if service == "secretsmanager":
        name = str(body.get("SecretId", ""))
        known = secretsmanager_backends[ACCOUNT][REGION].secrets
        return next(
            (secret.arn for secret in known.values() if name in (secret.name, secret.arn)), f"{place}secret:{name}"
        )
    if service == "logs" and "logGroupName" in body:
        return f"{place}log-group:{body['logGroupName']}:log-stream:{body.get('logStreamName', '')}"
    if service == "ecr" and "repositoryName" in body:
        return f"{place}repository/{body['repositoryName']}"
    if service == "autoscaling" and not operation.startswith("Describe"):
        groups = autoscaling_backends[ACCOUNT][REGION].autoscaling_groups.values()
        instance = body.get("InstanceId")
        of_instance = (g.name for g in groups if any(i.instance.id == instance for i in g.instance_states))
        name = body.get("AutoScalingGroupName") or next(of_instance, "")
        return f"{place}autoScalingGroup:1:autoScalingGroupName/{name}"
    return str(body.get("TopicArn", "*")) if service == "sns" else "*"
