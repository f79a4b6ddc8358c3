"""Lets the emulators refuse what IAM would: calls with the credentials of a role that was taken on.

Those of the tests themselves ("testing") may do anything, also take on any role, as EC2 does for a machine. What a role
may do is in the emulated IAM: its inline policies. A session has its policy, and ends: `cap_sessions` ends it sooner.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import unquote

from moto.core.utils import utcnow
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.sts.models import AssumedRole, STSBackend, sts_backends

from tests.emulator.aws_control import ASKED, SETTINGS, call_of
from tests.emulator.iam_requests import ACCOUNT, form, requests
from tests.emulator.policies import Caller, Request, parse, trusts

CHAINED_SECONDS = 3600  # AWS's limit where a role takes on another
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
    for request in requests(call, environ, session.user_id):
        if why := ask(caller, replace(request, context={**request.context, "aws:userid": session.user_id})):
            text = f"User: {session.arn} is not authorized to perform: {request.action} on resource: {request.resource}"
            return ("AccessDenied", f"{text} {why}")
    return refusal_of_missing(call, environ, caller)


def ask(caller: Caller, request: Request) -> str:
    """Why IAM refuses, which is noted; "" if it allows."""
    why = caller.why_not(request)
    ASKED.append(asdict(request) | {"role": caller.role, "refused": why})
    return why


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
    """Without the nulls that moto leaves where a template says AWS::NoValue, and CloudFormation leaves nothing."""
    document = json.loads(policy) if isinstance(policy, str) else policy
    if isinstance(document["Statement"], list):
        return document | {"Statement": [one for one in document["Statement"] if one is not None]}
    return document


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


def refusal_of_missing(call: str, environ: dict[str, Any], caller: Caller) -> Refusal | None:
    """Who may not list does not learn that a key is missing."""
    if call not in ("s3.GetObject", "s3.HeadObject"):
        return None
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    holder = s3_backends[ACCOUNT]["aws"]
    if bucket not in holder.buckets or holder.get_object(bucket, key) is not None:
        return None
    listing = Request("s3:ListBucket", f"arn:aws:s3:::{bucket}", {"s3:prefix": key})
    return ("AccessDenied", "Access Denied") if ask(caller, listing) else None
