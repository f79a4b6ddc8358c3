"""Credentials as people have them: a profile of each kind, botocore's own errors, and what a command then says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests import ROOT
from tests.emulator.aws import Aws
from tests.infra import deployed
from tests.infra.operator import infra, rows

SSO = """
[profile me]
sso_session = {session}
sso_account_id = 123456789012
sso_role_name = admin
[sso-session {session}]
sso_region = us-east-1
sso_start_url = https://example.awsapps.com/start
"""
ANSWER_SECONDS = 2.0  # of the processor
BUSY_SECONDS = 10.0  # on a machine with much else to do
Run = Callable[..., tuple[int, str, str]]


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
    assert "the keys in the environment have expired" in found["bucket"][1]


ROLE = """
[profile me]
role_arn = arn:aws:iam::123456789012:role/admin
source_profile = base
"""
KEYS = """
[profile base]
aws_access_key_id = AKIA0123456789ABCDEF
aws_secret_access_key = secret
"""


def error_of(run: Run, command: str = "status") -> str:
    """What the command says on standard error: one line, at once, and nothing else anywhere."""
    began, worked = time.monotonic(), time.process_time()
    code, said, error = run(command)
    assert time.process_time() - worked < ANSWER_SECONDS
    assert time.monotonic() - began < BUSY_SECONDS
    assert (code, said) == (4, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (SSO.format(session="nobody"),
         "the SSO login of profile 'me' was never made on this machine, or was ended: `aws sso login --profile me`"),
        (ROLE + SSO.format(session="nobody").replace("profile me", "profile base"),
         "was ended: `aws sso login --profile base`"),
        ("[profile me]\nlogin_session = arn:aws:iam::123456789012:user/me",
         "the login of profile 'me' has ended or was never made: `aws login --profile me`"),
        ("[profile you]\nregion = us-east-1",
         "AWS_PROFILE=me names no profile; there are: you: export AWS_PROFILE=… with one of them"),
        ("[profile me]\naws_access_key_id = AKIA0123456789ABCDEF",
         "the credentials of profile 'me' are half of what is needed"),
        ("[profile me]\ncredential_process = /nowhere/login", "credential_process of profile 'me' cannot be started"),
        ("[profile me]\ncredential_process = false", "look why this program gives no good credentials: `false`"),
        ("[profile me]\nrole_arn = arn:aws:iam::123456789012:role/ci\nweb_identity_token_file = /nowhere/token",
         "the web identity's token '/nowhere/token' cannot be read"),
        (ROLE, 'the credentials of profile \'me\' cannot be used: The source_profile "base" referenced in'),
        ("[profile me", "cannot be used: Unable to parse config file"),
    ],
)  # fmt: skip
def test_a_profile_that_gives_no_credentials_is_one_sentence_with_the_command_that_mends_it(
    configuration: str, message: str, aws: Aws, use: Callable[..., None], run: Run
) -> None:
    use(configuration)
    assert message in error_of(run)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIA0123456789ABCDEF"}, "AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": "x"}, "`export AWS_ACCESS_KEY_ID=…`, or `unset AWS_SECRET_ACCESS_KEY`"),
        ({}, "there are no AWS credentials: export AWS_PROFILE=… of a profile, or `aws login`, or `aws configure sso`"),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/ci"},
         "the web identity's token '/nowhere/token' cannot be read"),
    ],
)  # fmt: skip
def test_an_environment_without_whole_credentials_names_the_variable(
    environment: dict[str, str], message: str, aws: Aws, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in error_of(run)


@pytest.mark.parametrize(
    ("call", "code", "said", "message"),
    [
        ("*", "ExpiredTokenException", "The security token included in the request is expired",
         "the keys in the environment have expired: export new AWS_ACCESS_KEY_ID"),
        ("*", "RequestExpired", "Request has expired.", "have expired"),
        ("*", "InvalidClientTokenId", "The security token included in the request is invalid.",
         "AWS_ACCESS_KEY_ID is a temporary key, and AWS_SESSION_TOKEN is not set"),
        ("*", "SignatureDoesNotMatch", "Signature expired: 20261128T003000Z is now earlier than 20261128T010000Z",
         "this machine's clock is wrong: it says "),
        ("*", "SignatureDoesNotMatch", "The request signature we calculated does not match",
         "have a wrong secret key"),
        ("*", "OptInRequired", "You are not subscribed to this service.",
         "finish the registration at https://portal.aws.amazon.com/billing/signup"),
    ],
)  # fmt: skip
def test_what_aws_answers_to_bad_keys_is_told_with_what_mends_it(
    call: str, code: str, said: str, message: str, aws: Aws, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIA0123456789ABCDEF")
    aws.fault(call, code=code, message=said, status=403)
    assert message in error_of(run)


def test_an_answer_whose_date_is_far_off_tells_of_the_clock_whatever_the_code_is(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    class AnHourAhead(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"<ErrorResponse><Error><Code>RequestExpired</Code></Error></ErrorResponse>")

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + 3600)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), AnHourAhead) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        said = error_of(run)
        server.shutdown()
        thread.join()
    assert "this machine's clock is wrong" in said
    assert "`sudo timedatectl set-ntp true`" in said


def test_each_service_has_its_own_code_for_keys_that_aws_does_not_know(
    aws: Aws, use: Callable[..., None], run: Run
) -> None:
    use(KEYS, profile="base")
    for code in ("UnrecognizedClientException", "AuthFailure", "InvalidAccessKeyId", "InvalidClientTokenId"):
        aws.fault("*", code=code, message="no", status=403)
        said = error_of(run)
        assert f"AWS does not know the credentials of profile 'base' ({code})" in said
        assert "`aws configure --profile base`" in said
        aws.heal()


def test_a_role_that_may_not_be_taken_on_and_a_token_that_is_refused_name_the_profile(
    aws: Aws, use: Callable[..., None], run: Run, tmp_path: Path
) -> None:
    aws.fault("sts.AssumeRole", code="AccessDenied", message="not you", status=403)
    use(ROLE + KEYS)
    assert "profile 'me' may not take on its role (not you)" in error_of(run)
    (tmp_path / "token").write_text("x" * 20)
    aws.fault("sts.AssumeRoleWithWebIdentity", code="InvalidIdentityToken", message="wrong issuer")
    (tmp_path / "config").write_text(
        f"[profile me]\nrole_arn = arn:aws:iam::123456789012:role/ci\nweb_identity_token_file = {tmp_path / 'token'}"
    )
    assert "AWS does not take the web identity's token (InvalidIdentityToken: wrong issuer)" in error_of(run)


def test_a_profile_with_a_code_asks_for_a_terminal_where_there_is_none(aws: Aws, use: Callable[..., None]) -> None:
    use(f"{ROLE}mfa_serial = arn:aws:iam::123456789012:mfa/me\n{KEYS}")
    ended = subprocess.run(
        [sys.executable, "-m", "infra", "stop"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, start_new_session=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert 'eval "$(aws configure export-credentials --profile me --format env)"' in ended.stderr


def test_a_login_that_has_ended_is_told_from_one_that_never_was(
    aws: Aws, use: Callable[..., None], tmp_path: Path
) -> None:
    use(SSO.format(session="acme"))
    cache = tmp_path / ".aws/sso/cache"
    cache.mkdir(parents=True)
    token = {"accessToken": "x", "expiresAt": "2026-01-01T00:00:00Z", "region": "us-east-1", "startUrl": "https://x"}
    (cache / f"{hashlib.sha1(b'acme').hexdigest()}.json").write_text(json.dumps(token))
    ended = infra("status", HOME=str(tmp_path))
    assert (ended.code, ended.said) == (4, "")
    assert ended.error.count("\n") == 1, ended.error
    assert "the SSO login of profile 'me' has ended: `aws sso login --profile me`" in ended.error


def test_a_region_that_the_account_has_not_enabled_is_told_from_keys_that_nobody_knows(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    aws.fault("cloudformation.*", code="InvalidClientTokenId", message="no", status=403)
    aws.fault("sts.*", code="InvalidClientTokenId", message="no", status=403)
    assert "AWS does not know the keys in the environment" in error_of(run)
    monkeypatch.setenv("AWS_REGION", "eu-south-2")
    enable = "aws account enable-region --region us-east-1 --region-name eu-south-2"
    assert f"this account has not enabled the region eu-south-2: `{enable}`" in error_of(run)
    code, said, _ = run("preflight")
    assert code == 3
    assert "has not enabled the region eu-south-2" in rows(said)["credentials"][1]


def test_a_role_that_ends_while_the_log_is_followed_names_the_command_that_renews_it(
    aws: Aws, use: Callable[..., None], run: Run, quick_logs: None
) -> None:
    deployed.deploy(aws).launch()
    aws.set(session_seconds=60)  # botocore then takes it on again before each call
    use(ROLE + KEYS)

    def end() -> None:
        while "logs.FilterLogEvents" not in aws.calls():
            time.sleep(0.1)
        aws.fault("sts.AssumeRole", code="ExpiredToken", message="the token has expired", status=403)

    ending = threading.Thread(target=end)
    ending.start()
    code, said, error = run("logs")
    ending.join()
    assert (code, said) == (4, "")
    assert "the credentials of profile 'me' have expired: `aws login --profile base`" in error.splitlines()[-1]
    assert "Traceback" not in error
