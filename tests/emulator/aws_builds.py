"""CodeBuild in the emulator: a build is a real process. It runs the project's own buildspec with bash and this
machine's Docker engine, as the project's role: it reads its source from the emulated S3, writes its log, and pushes to
the registry of the setting `registry`.

Its `aws` is a program of two words, `aws ecr get-login-password`: CodeBuild's image brings the whole one.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moto.codebuild import models as codebuild
from moto.core.exceptions import JsonRESTError

from tests.emulator.aws_control import SETTINGS
from tests.emulator.aws_types import TYPES, Resource

ECR = ".dkr.ecr."
QUOTA = "L-9D07B6EF"
ENDPOINT: list[str] = []  # of this emulator, once it serves
RUNNING: dict[str, subprocess.Popen[str]] = {}  # by the build's id
AWS_PROGRAM = """#!{python}
import base64, boto3, sys
assert sys.argv[1:] == ["ecr", "get-login-password"], sys.argv
answer = boto3.client("ecr").get_authorization_token()["authorizationData"][0]
print(base64.b64decode(answer["authorizationToken"]).decode().partition(":")[2])
"""
Build = dict[str, Any]


class AccountLimitExceededError(JsonRESTError):
    code = 400

    def __init__(self) -> None:
        super().__init__("AccountLimitExceededException", "Cannot have more than 0 builds in queue for the account")


class Project(Resource):
    __module__ = "moto.emulator.models"
    name_property = "Name"

    def __init__(self, name: str, body: dict[str, Any], account: str, region: str) -> None:
        super().__init__(name, body, account, region)
        self.put(body, account, region)

    def put(self, body: dict[str, Any], account: str, region: str) -> None:
        given, backend = as_the_api_has_it(body["Properties"]), codebuild.codebuild_backends[account][region]
        builds = backend.build_history.get(self.name, [])  # an update keeps them
        backend.create_project(
            self.name, given.get("description"), given["source"], given["artifacts"], given["environment"],
            given["serviceRole"], given.get("tags"), None, given.get("timeoutInMinutes", 60),
            given.get("queuedTimeoutInMinutes", 480), None, given.get("logsConfig"), None,
        )  # fmt: skip
        backend.build_history[self.name] = builds

    @classmethod
    def update_from_cloudformation_json(cls, original_resource: Any, **of_the_new: Any) -> Resource:
        original_resource.put(of_the_new["cloudformation_json"], of_the_new["account_id"], of_the_new["region_name"])
        return original_resource

    @classmethod
    def delete_from_cloudformation_json(cls, name: str, body: Any, account: str, region: str) -> None:
        codebuild.codebuild_backends[account][region].delete_project(name)


def as_the_api_has_it(value: Any) -> Any:
    """CloudFormation's names begin with a capital, and the API's do not."""
    if isinstance(value, list):
        return [as_the_api_has_it(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {name[0].lower() + name[1:]: as_the_api_has_it(one) for name, one in value.items()}
    return {{"buildSpec": "buildspec"}.get(name, name): one for name, one in named.items()}


def patch() -> dict[str, Callable[[], None]]:
    """moto's builds succeed at once, without having run. There is no other way to a build's log, failure or end."""
    TYPES["AWS::CodeBuild::Project"] = Project
    backend = codebuild.CodeBuildBackend
    reset = backend.reset

    def start_build(self: codebuild.CodeBuildBackend, project_name: str, *overrides: Any) -> Build:
        if not SETTINGS.quotas[QUOTA]:
            raise AccountLimitExceededError
        build = new_build(self, self.codebuild_projects[project_name].project_metadata)
        self.build_history[project_name].insert(0, build["id"])  # the newest first
        self.build_metadata_history[project_name].append(build)
        threading.Thread(target=run, args=(build,), daemon=True).start()
        return build

    def batch_get_builds(self: codebuild.CodeBuildBackend, ids: list[str]) -> list[Build]:
        return [one for builds in self.build_metadata_history.values() for one in builds if one["id"] in ids]

    def stop_build(self: codebuild.CodeBuildBackend, build_id: str) -> Build:
        (build,) = batch_get_builds(self, [build_id])
        end(build, "STOPPED", "STOPPED", "")
        return build

    def reset_builds(self: codebuild.CodeBuildBackend) -> None:
        for builds in self.build_metadata_history.values():
            for build in builds:
                end(build, "STOPPED", "STOPPED", "")
        reset(self)

    backend.start_build, backend.batch_get_builds, backend.stop_build = start_build, batch_get_builds, stop_build
    backend.reset = reset_builds
    return {}


def new_build(account: codebuild.CodeBuildBackend, project: dict[str, Any]) -> Build:
    number = f"{len(account.build_metadata_history[project['name']]) + 1:012d}"
    group = project["logsConfig"]["cloudWatchLogs"]["groupName"]
    return {
        "id": f"{project['name']}:00000000-0000-0000-0000-{number}", "projectName": project["name"],
        "buildStatus": "IN_PROGRESS", "buildComplete": False, "currentPhase": "QUEUED", "startTime": time.time(),
        "phases": [], "source": project["source"], "environment": project["environment"],
        "serviceRole": project["serviceRole"], "timeoutInMinutes": project["timeoutInMinutes"],
        "logs": {"groupName": group, "streamName": f"00000000-0000-0000-0000-{number}"},
    }  # fmt: skip


def run(build: Build) -> None:
    """The whole life of a build, in a thread of its own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_in(build, Path(folder))
        except Exception as error:  # noqa: BLE001  # else the build would run for ever, and nobody would learn why
            end(build, "FAILED", "CLIENT_ERROR", f"{type(error).__name__}: {error}", phase="DOWNLOAD_SOURCE")


def run_in(build: Build, folder: Path) -> None:
    environ = environ_of(build, folder)
    tell = Log(build, environ)
    source = folder / "src"
    bucket, _, key = build["source"]["location"].partition("/")
    body = client("s3", environ).get_object(Bucket=bucket, Key=key)["Body"].read()
    zipfile.ZipFile(io.BytesIO(body)).extractall(source)
    build["currentPhase"] = "BUILD"
    commands = json.loads(build["source"]["buildspec"])["phases"]["build"]["commands"]
    steps = [f"echo '[Container] Running command' {shlex.quote(one)}; {one} || exit $?" for one in commands]
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(steps)], cwd=source, env=environ, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
    )  # fmt: skip
    RUNNING[build["id"]] = process
    limit = threading.Timer(
        build["timeoutInMinutes"] * SETTINGS.build_minute_seconds, end,
        (build, "TIMED_OUT", "BUILD_TIMED_OUT", "Build has timed out. "),
    )  # fmt: skip
    limit.start()
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            tell(line)
    limit.cancel()
    if process.returncode:
        why = f"Error while executing command. Reason: exit status {process.returncode}"
        end(build, "FAILED", "COMMAND_EXECUTION_ERROR", why)
    else:
        end(build, "SUCCEEDED", "", "")


def end(build: Build, status: str, code: str, message: str, phase: str = "BUILD") -> None:
    """The first end counts."""
    if build["buildComplete"]:
        return
    contexts = [{"statusCode": code, "message": message}] if message else []
    build["phases"].append({"phaseType": phase, "phaseStatus": status, "contexts": contexts})
    build |= {"buildStatus": status, "currentPhase": "COMPLETED", "buildComplete": True, "endTime": time.time()}
    if (process := RUNNING.pop(build["id"], None)) and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def environ_of(build: Build, folder: Path) -> dict[str, str]:
    """What a build finds: its role's credentials, its project's variables. ECR's host is the registry."""
    keys = client("sts", {}).assume_role(RoleArn=build["serviceRole"], RoleSessionName="build")["Credentials"]
    programs = folder / "bin"
    programs.mkdir()
    (programs / "aws").write_text(AWS_PROGRAM.format(python=sys.executable))
    (programs / "aws").chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name in ("DOCKER_HOST", "LANG")}
    given = {one["name"]: one["value"] for one in build["environment"]["environmentVariables"]}
    for name, value in given.items():
        host, separator, rest = value.partition("/")
        environ[name] = f"{SETTINGS.registry}{separator}{rest}" if ECR in host else value
    return environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "DOCKER_CONFIG": str(folder / "docker"),
        "AWS_ENDPOINT_URL": ENDPOINT[0], "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }  # fmt: skip


def client(service: str, environ: dict[str, str]) -> Any:
    import boto3  # moto has it; here it is the way in from outside, through what IAM refuses

    return boto3.client(
        service, endpoint_url=ENDPOINT[0], region_name="us-east-1",
        aws_access_key_id=environ.get("AWS_ACCESS_KEY_ID", "testing"),
        aws_secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY", "testing"),
        aws_session_token=environ.get("AWS_SESSION_TOKEN"),
    )  # fmt: skip


class Log:
    """A build's stream in its project's log group."""

    def __init__(self, build: Build, environ: dict[str, str]) -> None:
        self.logs = client("logs", environ)
        self.place = {"logGroupName": build["logs"]["groupName"], "logStreamName": build["logs"]["streamName"]}
        self.logs.create_log_stream(**self.place)

    def __call__(self, line: str) -> None:
        event = {"timestamp": int(time.time() * 1000), "message": line}
        self.logs.put_log_events(**self.place, logEvents=[event])
