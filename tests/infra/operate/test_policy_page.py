"""What `policy` prints, and the page that lists every permission."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from infra.config import Installation
from infra.operate.commands.policy import POLICIES, rights_by
from infra.operate.rehearsal.scope import rehearsal_of
from infra.operate.rights.right import MANAGED_LETTERS, Names, Right, iam_policy, letters, managed_policies
from infra.operate.rights.table import rights, rights_of
from tests import ROOT
from tests.emulator.aws import Aws

NAMES = Names(installation=Installation(), account="111122223333", region="us-east-1")
PAGE = ROOT / "docs/permissions.md"
HEAD = "| what | on | if | by | why so wide |\n|---|---|---|---|---|\n"


def cell(texts: Any) -> str:
    return ", ".join(f"`{text}`" for text in texts)


def condition(right: Right) -> str:
    pairs = [pair for keys in (right.condition or {}).values() for pair in keys.items()]
    return "; ".join(
        f"`{key}` is {cell([values] if isinstance(values, str) else values).replace(', ', ' or ')}"
        for key, values in pairs
    )


def row(right: Right) -> str:
    by = cell(name for name in POLICIES if name in right.by)
    return f"| {cell(right.actions)} | {cell(right.on)} | {condition(right)} | {by} | {right.why} |\n"


def test_the_page_lists_every_permission() -> None:
    wanted = HEAD + "".join(map(row, rights(NAMES)))
    said = PAGE.read_text()
    assert wanted in said, f"write this table into {PAGE}:\n{wanted}"


LONGEST = Installation(name="a" * 24, bucket_name="b" * 63)


@pytest.mark.parametrize("installation", [Installation(), LONGEST])
def test_each_policy_fits_into_a_managed_one_of_iam_but_that_of_a_rehearsal_into_three(
    installation: Installation,
) -> None:
    names = Names(installation=installation, account="111122223333", region="ap-southeast-7")
    for name in POLICIES:
        rights = rights_by(names, [name])
        parts = managed_policies(rights)
        assert all(letters(one) <= MANAGED_LETTERS for one in parts)
        assert len(parts) == (3 if name == "rehearse" else 1), name
        statements = [one for part in parts for one in part["Statement"]]
        assert sorted(statements, key=str) == sorted(iam_policy(rights)["Statement"], key=str)


def test_every_wide_resource_has_its_reason_and_no_policy_allows_all_of_a_service() -> None:
    for right in rights(NAMES):
        assert not any("*" in action for action in right.actions), right
        if any("*" in resource.replace("${aws:userid}-*", "") for resource in right.on):
            assert right.why.endswith("."), right


def test_a_policy_is_printed_as_json_and_nothing_else(aws: Aws, run: Callable[..., tuple[int, str, str]]) -> None:
    code, said, error = run("policy", "stop,logs")
    assert (code, error) == (0, "")
    here = Names(installation=Installation(), account=aws.account, region=aws.region)
    assert json.loads(said) == iam_policy(rights_of(here, ["stop", "logs"]))
    other = run("policy", "stop", "--account", "111122223333")[1]
    assert json.loads(other) == iam_policy(rights_of(NAMES, ["stop"]))
    assert aws.calls() == ["sts.GetCallerIdentity"]


def test_the_policies_of_a_rehearsal_are_a_list_and_for_its_own_installation_alone(
    aws: Aws, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, said, error = run("policy", "stop,rehearse", "--account", NAMES.account)
    assert (code, error) == (0, "3 policies, in a JSON list: IAM takes 6,144 letters in one. Attach them all.\n")
    rehearsed = Names(installation=rehearsal_of(Installation()), account=NAMES.account, region=NAMES.region)
    rights = [*rights_of(NAMES, ["stop"]), *rights_of(rehearsed, ["rehearse"])]
    assert json.loads(said) == managed_policies(rights)
    alone = run("policy", "rehearse", "--account", NAMES.account)[1]
    assert f"role/{rehearsed.installation.notice_role}" in alone
    assert "/resnet-spot-train" not in alone  # a group of the other installation
    assert "/resnet-spot-rehearsal-train" in alone


def test_without_a_command_each_policy_is_listed_with_its_length(
    run: Callable[..., tuple[int, str, str]], aws: Aws
) -> None:
    code, said, _ = run("policy")
    assert code == 0
    for name in POLICIES:
        assert f"{letters(iam_policy(rights_by(NAMES, [name]))):,}" in said
        assert f"\n{name} " in said
    assert "IAM takes 6,144 letters" in said


def test_a_policy_that_does_not_exist_is_a_mistake_of_the_user(
    run: Callable[..., tuple[int, str, str]], aws: Aws
) -> None:
    code, said, error = run("policy", "status,nothing")
    assert (code, said) == (2, "")
    assert "COMMAND='nothing' has no policy: use one of preflight, deploy" in error
    code, said, error = run("policy", "status", "--account", "123")
    assert (code, said) == (2, "")
    assert "ACCOUNT='123' is no account's number: it has 12 digits" in error


def test_rights_on_the_same_thing_are_one_statement_unless_their_conditions_differ() -> None:
    on = ["arn:aws:s3:::bucket"]
    given = [
        Right(by=["stop"], actions=["s3:ListBucket"], on=on),
        Right(by=["stop"], actions=["s3:GetBucketTagging"], on=on),
        Right(by=["stop"], actions=["s3:ListBucket"], on=on, condition={"Null": {"s3:prefix": "true"}}),
    ]
    first, second = iam_policy(given)["Statement"]
    assert first["Action"] == ["s3:GetBucketTagging", "s3:ListBucket"]
    assert second["Condition"] == {"Null": {"s3:prefix": "true"}}
