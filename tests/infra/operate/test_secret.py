"""secret: the token goes from standard input into Secrets Manager, and nowhere else."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.config import Installation
from infra.operate.commands.secret import PARTS, read_secret
from infra.operate.installation.token import store_part, stored_token
from tests import ROOT
from tests.emulator.aws import Aws
from tests.infra import deployed, hub
from tests.infra.operator import fixes, infra, operator, rows, stand_in_for_cdk
from trainer.contract import UserError

NAME = Installation().secret_name
WEBHOOK = "https://hooks.slack.com/services/T0/B0/canary"


def stored(aws: Aws) -> str:
    return str(aws.client("secretsmanager").get_secret_value(SecretId=NAME)["SecretString"])


def test_the_token_is_put_without_its_white_space_and_never_printed(aws: Aws) -> None:
    deployed.deploy(aws)
    ended = infra("secret", stdin=f"  {hub.TOKEN}  \r\n")
    assert ended.code == 0, ended.error
    assert stored(aws) == hub.TOKEN
    assert hub.TOKEN not in ended.said + ended.error
    assert "make preflight" in ended.said


def test_a_new_token_takes_the_place_of_the_old_one(aws: Aws) -> None:
    deployed.deploy(aws)
    for token in ("hf_0123456789abcdef", hub.TOKEN):
        assert infra("secret", stdin=token).code == 0
    assert stored(aws) == hub.TOKEN


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("", "no token came from standard input"),
        ("\n", "no token came from standard input"),
        ("sk-0123456789abcdefghij", "is not a Hugging Face token (23 characters): it has the form hf_"),
        ("hf_short", "is not a Hugging Face token (8 characters)"),
        ("hf_0123456789 and more", "is not a Hugging Face token (22 characters)"),
    ],
)
def test_what_is_no_token_is_refused_without_showing_it(aws: Aws, stdin: str, message: str) -> None:
    ended = infra("secret", stdin=stdin)
    assert ended.code == 2
    assert message in ended.error
    assert not stdin.strip() or stdin.strip() not in ended.said + ended.error
    assert aws.calls() == []


def test_a_webhook_and_the_token_are_parts_of_one_secret_and_each_leaves_the_other(aws: Aws) -> None:
    deployed.deploy(aws)
    store_part(operator(), NAME, "hf_token", hub.TOKEN)
    ended = infra("--make", "secret", stdin=f" {WEBHOOK}\n", NAME="webhook")
    assert ended.code == 0, ended.error
    assert json.loads(stored(aws)) == {"hf_token": hub.TOKEN, "webhook": WEBHOOK}
    assert WEBHOOK not in ended.said + ended.error
    assert "send alerts to it" in ended.said
    store_part(operator(), NAME, "hf_token", "hf_new")
    assert json.loads(stored(aws)) == {"hf_token": "hf_new", "webhook": WEBHOOK}
    assert stored_token(operator(), NAME) == "hf_new"


def test_a_webhook_needs_no_token(aws: Aws) -> None:
    deployed.deploy(aws)
    store_part(operator(), NAME, "webhook", WEBHOOK)
    assert json.loads(stored(aws)) == {"webhook": WEBHOOK}
    assert stored_token(operator(), NAME) is None


@pytest.mark.parametrize(
    "typed",
    ["http://hooks.slack.com/KEY", "https://hooks.slack.com/", "https://me:KEY@hooks.slack.com/KEY", hub.TOKEN,
     "https://hooks.slack.com/KEY and more", "https://hooks.slack.com/\x1b[2JKEY", f"https://a.b/{'KEY' * 1000}"],
)  # fmt: skip
def test_what_is_no_address_of_a_webhook_is_refused_without_showing_it(
    typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{typed}\n"))
    with pytest.raises(UserError, match="is not a webhook's address") as refused:
        read_secret(PARTS["webhook"])
    assert "KEY" not in str(refused.value)
    assert hub.TOKEN not in str(refused.value)


def test_what_is_typed_on_a_terminal_is_not_echoed(aws: Aws) -> None:
    deployed.deploy(aws)
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "infra", "secret"], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: controlling(theirs),
    )  # fmt: skip
    os.close(theirs)
    seen = read_until(mine, b"(hidden): ")
    os.write(mine, hub.TOKEN.encode() + b"\n")
    seen += read_until(mine, b"")
    assert process.wait(60) == 0, seen
    os.close(mine)
    assert hub.TOKEN.encode() not in seen
    assert stored(aws) == hub.TOKEN


def controlling(terminal: int) -> None:
    """Make it the child's terminal, as a shell's is: getpass reads from there."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Up to these bytes, or to the end where there are none."""
    seen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline and not (wanted and wanted in seen):
        try:
            more = os.read(terminal, 4096)
        except OSError:  # the other side has ended
            break
        if not more:
            break
        seen += more
    return seen


def test_before_the_first_deploy_the_stack_of_the_secret_is_deployed_alone(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    ended = infra("secret", stdin=hub.TOKEN)
    assert ended.code == 4  # the stand-in deploys nothing, so there is no secret to put it into
    (call,) = calls()
    assert call[:2] == ["deploy", Installation().storage_stack]
    assert hub.TOKEN not in str(call)
    assert hub.TOKEN not in ended.said + ended.error


def test_a_secret_that_was_deleted_by_hand_is_restored_where_its_stack_stands(
    aws: Aws, look: Callable[..., str]
) -> None:
    deployed.deploy(aws)
    aws.client("secretsmanager").delete_secret(SecretId=NAME, RecoveryWindowInDays=7)
    said = look()
    assert "was deleted by hand, and AWS keeps it for 7 to 30 days" in rows(said)["token"][1]
    assert fixes(said)["token"] == f"aws secretsmanager restore-secret --secret-id {NAME}"
    ended = infra("secret", stdin=hub.TOKEN)
    assert ended.code == 2
    assert f"`aws secretsmanager restore-secret --secret-id {NAME}`, then `make secret` again" in ended.error
    aws.client("secretsmanager").restore_secret(SecretId=NAME)
    assert infra("secret", stdin=hub.TOKEN).code == 0
    assert stored(aws) == hub.TOKEN


def test_a_secret_that_was_deleted_by_hand_is_deleted_at_once_where_no_stack_stands(
    ready: Aws, look: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.client("cloudformation").delete_stack(StackName=Installation().storage_stack)
    ready.client("secretsmanager").delete_secret(SecretId=NAME, RecoveryWindowInDays=7)
    calls = stand_in_for_cdk(tmp_path, monkeypatch)
    delete = f"aws secretsmanager delete-secret --force-delete-without-recovery --secret-id {NAME}"
    assert fixes(look())["token"] == delete
    ended = infra("secret", stdin=hub.TOKEN)
    assert (ended.code, calls()) == (2, [])
    assert f"until then no stack can make it anew: `{delete}`" in ended.error
