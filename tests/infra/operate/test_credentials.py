"""Credentials as people have them: a profile of each kind, botocore's own errors, and what a command then says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import __main__ as program
from tests.emulator.aws import Aws
from tests.infra import deployed
from tests.infra.operator import rows

SSO = """
[profile me]
sso_session = {session}
sso_account_id = 123456789012
sso_role_name = admin
[sso-session {session}]
sso_region = us-east-1
sso_start_url = https://example.awsapps.com/start
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`python -m infra …` in this process: exit code, standard output, standard error."""

    def ended(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infra", *arguments])
        code = program.main()
        told = capsys.readouterr()
        return code, told.out, told.err

    return ended


@pytest.fixture
def use(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take away the keys, and use the profile `me` of this configuration."""

    def used(configuration: str, profile: str = "me") -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        (tmp_path / "config").write_text(configuration)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", profile)

    return used


@pytest.mark.parametrize("command", ["status", "logs", "pull", "stop", "runs"])
def test_with_a_login_that_never_was_no_command_says_what_is_deployed(
    command: str, aws: Aws, use: Callable[..., None], run: Run
) -> None:
    deployed.deploy(aws).launch()
    use(SSO.format(session=f"nobody-{os.getpid()}"))
    code, said, error = run(command)
    assert (code, said) == (4, "")
    assert "deploy" not in error
    assert "nothing" not in error


def test_preflight_says_nothing_of_a_bucket_that_aws_does_not_tell_of(ready: Aws, look: Callable[..., str]) -> None:
    ready.fault("cloudformation.DescribeStacks", code="ExpiredToken", message="the token is expired", status=403)
    found = rows(look())
    assert {found[name][0] for name in ("bucket", "data", "token", "stacks")} == {"unknown"}
    assert "ExpiredToken" in found["bucket"][1]
