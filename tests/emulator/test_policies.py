"""The policy simulator answers as AWS's documentation says of small cases."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.policies import Caller, Request, effect, parse, trusts

ROLE = "arn:aws:iam::111122223333:role/machine"
BUCKET = "arn:aws:s3:::amzn-s3-demo-bucket"


def allow(
    action: str | list[str], resource: str | list[str], effect: str = "Allow", **condition: Any
) -> dict[str, Any]:
    found: dict[str, Any] = {"Effect": effect, "Action": action, "Resource": resource}
    return found | ({"Condition": condition} if condition else {})


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [*statements]}


def asked(statement: dict[str, Any], action: str, resource: str, **context: str) -> str:
    return effect(policy(statement), Request(action, resource, {k.replace("__", ":"): v for k, v in context.items()}))


# User guide, "Policy evaluation logic": an explicit deny wins, nothing said is a denial, a session policy intersects.


def test_nothing_said_refuses_and_a_denial_counts_more_than_an_allowance() -> None:
    everything = policy(allow("s3:*", "*"))
    put = Request("s3:PutObject", f"{BUCKET}/a")
    assert Caller(ROLE, [everything]).may(put)
    assert Caller(ROLE, []).why_not(put) == "because no identity-based policy allows the s3:PutObject action"
    denied = Caller(ROLE, [everything, policy(allow("s3:PutObject", f"{BUCKET}/*", "Deny"))])
    assert denied.why_not(put) == "with an explicit deny in an identity-based policy"


def test_a_session_has_what_both_its_role_and_its_policy_allow() -> None:
    role = [policy(allow(["s3:GetObject", "s3:PutObject"], f"{BUCKET}/*"))]
    session = policy(allow("s3:*", f"{BUCKET}/mine/*"))
    caller = Caller(ROLE, role, session)
    assert caller.may(Request("s3:PutObject", f"{BUCKET}/mine/a"))
    assert caller.why_not(Request("s3:PutObject", f"{BUCKET}/a")) == (
        "because no session policy allows the s3:PutObject action"
    )
    assert not caller.may(Request("s3:DeleteObject", f"{BUCKET}/mine/a"))  # a session policy gives nothing
    assert not Caller(ROLE, role, policy(allow("s3:*", "*"), allow("s3:*", "*", "Deny"))).may(
        Request("s3:GetObject", f"{BUCKET}/a")
    )


# Reference, "IAM JSON policy elements: Resource", "Action" and "Policy variables".


@pytest.mark.parametrize(
    ("pattern", "resource", "applies"),
    [
        ("*", f"{BUCKET}/a", True),
        (f"{BUCKET}/*", f"{BUCKET}/a/b/c", True),  # a wildcard goes over slashes
        (f"{BUCKET}/*", BUCKET, False),
        (f"{BUCKET}/*/test/*", f"{BUCKET}/1/2/test/3", True),
        (f"{BUCKET}/file?.txt", f"{BUCKET}/file1.txt", True),
        (f"{BUCKET}/file?.txt", f"{BUCKET}/file.txt", False),
        (f"{BUCKET}/A", f"{BUCKET}/a", False),
        (f"{BUCKET}/${{*}}", f"{BUCKET}/*", True),
        (f"{BUCKET}/${{*}}", f"{BUCKET}/a", False),
        (f"{BUCKET}/${{aws:username}}/*", f"{BUCKET}/ann/x", True),
        (f"{BUCKET}/${{aws:username}}/*", f"{BUCKET}/bob/x", False),
        (f"{BUCKET}/${{aws:userid}}/*", f"{BUCKET}/ann/x", False),  # a variable without a value
        ("arn:aws:sns:*:111122223333:*", "arn:aws:sns:eu-west-1:111122223333:t", True),
        ("arn:aws:*:t", "arn:aws:sns:eu-west-1:111122223333:t", False),  # no wildcard goes over the parts of an ARN
    ],
)
def test_a_resource_is_matched_as_the_reference_says(pattern: str, resource: str, applies: bool) -> None:
    assert asked(allow("s3:*", pattern), "s3:GetObject", resource, aws__username="ann") == ("Allow" if applies else "")


def test_an_action_is_the_same_in_any_case_and_may_have_wildcards() -> None:
    for action in ("S3:getobject", "s3:Get*", "s3:GetObjec?", "*"):
        assert asked(allow(action, "*"), "s3:GetObject", f"{BUCKET}/a") == "Allow"
    assert asked(allow("s3:Get*", "*"), "s3:PutObject", f"{BUCKET}/a") == ""


# Reference, "Condition operators".


@pytest.mark.parametrize(
    ("condition", "context", "applies"),
    [
        ({"StringEquals": {"s3:prefix": ["a", "b"]}}, {"s3__prefix": "b"}, True),
        ({"StringEquals": {"s3:prefix": "a"}}, {"S3__Prefix": "a"}, True),
        ({"StringEquals": {"s3:prefix": "a*"}}, {"s3__prefix": "ab"}, False),
        ({"StringEquals": {"s3:prefix": "a"}}, {}, False),
        ({"StringNotEquals": {"s3:prefix": "a"}}, {}, True),
        ({"StringNotEquals": {"s3:prefix": ["a", "b"]}}, {"s3__prefix": "b"}, False),
        ({"StringLike": {"s3:prefix": ["runs/*"]}}, {"s3__prefix": "runs/a"}, True),
        ({"StringLike": {"s3:prefix": ["runs/*"]}}, {"s3__prefix": "run"}, False),
        ({"StringEquals": {"a:b": "1", "a:c": "2"}}, {"a__b": "1"}, False),
        ({"Bool": {"aws:SecureTransport": "false"}}, {"aws__SecureTransport": "false"}, True),
        ({"Bool": {"aws:SecureTransport": "false"}}, {}, False),
        ({"Null": {"s3:if-none-match": "false"}}, {"s3__if-none-match": "*"}, True),
        ({"Null": {"s3:if-none-match": "false"}}, {}, False),
        ({"Null": {"aws:TokenIssueTime": "true"}}, {}, True),
        ({"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:1:*"}}, {"aws__SourceArn": "arn:aws:sns:eu-west-1:1:t"}, True),
        ({"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:1:*"}}, {"aws__SourceArn": "arn:aws:sns:eu-west-1:2:t"}, False),
    ],
)
def test_a_condition_holds_as_the_reference_says(
    condition: dict[str, Any], context: dict[str, str], applies: bool
) -> None:
    found = asked(allow("*", "*", **condition), "s3:ListBucket", BUCKET, **context)
    assert found == ("Allow" if applies else "")


# User guide of S3, "Enforce conditional writes": its first example.


@pytest.mark.parametrize(
    ("context", "may"),
    [
        ({"s3:ObjectCreationOperation": "true", "s3:if-none-match": "*"}, True),  # PutObject, or the end of an upload
        ({"s3:ObjectCreationOperation": "true"}, False),
        ({"s3:ObjectCreationOperation": "false"}, True),  # the beginning of an upload, and its parts
    ],
)
def test_only_new_names_can_be_written_where_conditional_writes_are_enforced(
    context: dict[str, str], may: bool
) -> None:
    example = policy(
        allow("s3:PutObject", f"{BUCKET}/*", Null={"s3:if-none-match": "false"}),
        allow("s3:PutObject", f"{BUCKET}/*", Bool={"s3:ObjectCreationOperation": "false"}),
    )
    assert Caller(ROLE, [example]).may(Request("s3:PutObject", f"{BUCKET}/a", context)) is may


def test_a_role_is_taken_on_by_whom_it_trusts_and_who_may() -> None:
    run = "arn:aws:iam::111122223333:role/run"
    trust = {"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": ROLE}}}
    assert trusts(trust, ROLE)
    assert not trusts(trust, run)
    assert Caller(ROLE, [policy(allow("sts:AssumeRole", run))]).may_assume(run, trust)
    assert not Caller(ROLE, []).may_assume(run, trust)
    assert not Caller(run, [policy(allow("sts:AssumeRole", run))]).may_assume(run, trust)


@pytest.mark.parametrize(
    "statement",
    [
        allow("*", "*", NumericLessThan={"s3:max-keys": "10"}),
        {"Effect": "Allow", "NotAction": "s3:*", "Action": "s3:*", "Resource": "*"},
        {"Effect": "allow", "Action": "s3:*", "Resource": "*"},
    ],
)
def test_what_the_simulator_does_not_know_passes_nowhere(statement: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"simulator|no Effect"):
        asked(statement, "s3:GetObject", BUCKET)


def test_a_session_policy_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="2,048"):
        parse('{"Statement": []}' + " " * 2048)
