"""The image's build in the account: each content once, followed to its end, whatever end that is.

CodeBuild is the emulator's, whose builds are real processes under the project's role. The buildspec of the builder
stack itself, with a Docker engine, is in test_end_to_end_build.py; here short commands take its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.operate.commands.deploy import deploy_stacks
from infra.operate.installation import building, cdk
from infra.operate.installation.engine import Engine, find_engine, place_of_build
from infra.operate.session import AwsError
from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, Deployed, client, tags
from tests.infra.operate.builder import BUCKET, PUSHES, SOURCE, put_source, template
from tests.infra.operator import fixes, infra, left, operate, operator, rows

Builds = Callable[..., None]


@pytest.fixture
def builds(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """An account whose next deploy of the builder stack makes a project of these commands."""
    put_source(aws)
    for name, seconds in (("BUILD_LOOK", 0.05), ("LAST_LINES", 0.3)):
        monkeypatch.setattr(building, f"{name}_SECONDS", seconds)
    cloudformation = client(aws, "cloudformation")

    def are(*commands: str) -> None:
        def deploy(_: object, __: object, *stacks: str) -> None:
            assert stacks == (INSTALLATION.builder_stack,)
            is_there = bool(operator().outputs(INSTALLATION.builder_stack))
            change = cloudformation.update_stack if is_there else cloudformation.create_stack
            change(
                StackName=INSTALLATION.builder_stack, TemplateBody=template(commands), Tags=tags(),
                Capabilities=["CAPABILITY_IAM"],
            )  # fmt: skip

        monkeypatch.setattr(cdk, "deploy", deploy)

    return are


def build() -> None:
    building.build_image(operator(), INSTALLATION)


def states(aws: Aws) -> list[str]:
    """How the builds ended, the newest first."""
    codebuild = client(aws, "codebuild")
    ids = codebuild.list_builds_for_project(projectName=INSTALLATION.build_project)["ids"]
    return [one["buildStatus"] for id in ids for one in codebuild.batch_get_builds(ids=[id])["builds"]]


def wait_for(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_same_content_is_built_once_and_its_log_shown(
    aws: Aws, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    builds(*PUSHES)
    build()
    said = capsys.readouterr().out
    assert "CodeBuild builds the image: about 12 min and $0.06; at most 45 min and $0.23" in said
    assert said.count("\n  the source is here\n") == 1
    build()
    assert "the registry has the image of this code: nothing is built" in capsys.readouterr().out
    assert states(aws) == ["SUCCEEDED"]


def test_a_build_that_fails_shows_its_last_lines_its_exit_code_and_what_to_do(
    aws: Aws, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    builds("echo no space left; (exit 3)", "echo never")
    with pytest.raises(
        AwsError, match=r"failed \(build: .* exit status 3\).*`make deploy` builds again; .*BUILD=local"
    ):
        build()
    said = capsys.readouterr().out
    assert "\n  no space left\n" in said
    assert "\n  never\n" not in said
    builds(*PUSHES)
    build()
    assert states(aws) == ["SUCCEEDED", "FAILED"]


def test_a_build_whose_source_is_gone_says_so(aws: Aws, builds: Builds) -> None:
    builds(*PUSHES)
    client(aws, "s3").delete_object(Bucket=BUCKET, Key=SOURCE)
    with pytest.raises(AwsError, match=r"download_source: .*AccessDenied.* GetObject"):
        build()


def test_a_build_that_hangs_is_ended_by_its_project(aws: Aws, builds: Builds, tmp_path: Path) -> None:
    aws.set(build_minute_seconds=0.03)
    builds(f"echo $$ > {tmp_path}/pid; sleep 300")
    with pytest.raises(AwsError, match=r"took longer than 45 min and was ended \(build: Build has timed out"):
        build()
    wait_for(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())


def interrupt(monkeypatch: pytest.MonkeyPatch, when: Callable[[], object]) -> None:
    """Ctrl-C, as soon as something is true."""

    def sleep(seconds: float) -> None:
        if when():
            raise KeyboardInterrupt
        threading.Event().wait(seconds)

    monkeypatch.setattr(time, "sleep", sleep)


def test_ctrl_c_stops_the_build_so_that_it_bills_no_longer(
    aws: Aws, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    builds(f"touch {begun}; sleep 300")
    interrupt(monkeypatch, begun.exists)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert states(aws) == ["STOPPED"]
    assert "the build is stopped" in capsys.readouterr().out


def test_two_operators_at_once_share_one_build_and_only_the_first_can_stop_it(
    aws: Aws, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go = tmp_path / "go"
    builds(f"until [ -e {go} ]; do sleep 0.05; done", *PUSHES)
    cdk.deploy(operator(), INSTALLATION, INSTALLATION.builder_stack)
    building.start_build(operator(), INSTALLATION)
    with monkeypatch.context() as patch:
        interrupt(patch, lambda: True)
        with pytest.raises(KeyboardInterrupt):
            build()
    assert states(aws) == ["IN_PROGRESS"]
    go.touch()
    build()
    assert "a build of this code runs already" in capsys.readouterr().out
    assert states(aws) == ["SUCCEEDED"]


def test_an_account_that_may_run_no_build_gets_the_command_that_asks_for_one(aws: Aws, builds: Builds) -> None:
    aws.set(quotas={building.QUOTA: 0})
    builds(*PUSHES)
    with pytest.raises(AwsError, match=r"more than 0 builds in queue.*--quota-code L-9D07B6EF .*BUILD=local"):
        build()
    assert states(aws) == []


@pytest.mark.parametrize(
    ("given", "architecture", "place"),
    [
        ("", "amd64", "local"),
        ("", "arm64", "aws"),
        ("", "", "aws"),
        ("local", "arm64", "local"),
        ("aws", "amd64", "aws"),
    ],
)
def test_the_place_is_where_an_engine_is_like_the_machines_unless_build_says_another(
    given: str, architecture: str, place: str
) -> None:
    assert place_of_build(given, Engine("28", architecture)) == place


def stand_in_for_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_engine_tells_its_own_architecture_whichever_machine_it_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_docker(tmp_path, monkeypatch, "echo 28.1 arm64")
    assert find_engine() == Engine("28.1", "arm64")


def test_preflight_says_where_the_image_is_built_and_what_that_costs(
    ready: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_docker(tmp_path, monkeypatch, "echo Cannot connect >&2; exit 1")
    said = infra("preflight", "--recipe", "digits").said
    assert rows(said)["Docker"] == (
        "not needed", "CodeBuild builds the image: the engine does not answer: Cannot connect"
    )  # fmt: skip
    assert rows(said)["image build"] == (
        "ok", "in the account: about 12 min and $0.06, unless the registry has it; at most 45 min and $0.23"
    )  # fmt: skip
    ready.set(quotas={building.QUOTA: 0})
    ended = infra("preflight", "--recipe", "digits")
    assert (ended.code, fixes(ended.said)["image build"]) == (3, building.RAISE_QUOTA)
    ended = infra("preflight", "--recipe", "digits", "--build", "local")
    assert rows(ended.said)["image build"] == ("not needed", "Docker builds the image here")
    assert fixes(ended.said)["Docker"] == "sudo systemctl start docker"


def test_a_builder_stack_that_failed_at_first_is_made_again(
    aws: Aws, builds: Builds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.set(stack_status={INSTALLATION.builder_stack: "ROLLBACK_COMPLETE"})
    deployed = list[tuple[str, ...]]()
    monkeypatch.setattr(building, "build_image", lambda *_: deployed.append(("build",)))
    monkeypatch.setattr(cdk, "deploy", lambda _, __, *stacks: deployed.append(stacks))
    deploy_stacks(operator(), INSTALLATION, "aws")
    assert f"{INSTALLATION.builder_stack} is in ROLLBACK_COMPLETE" in capsys.readouterr().out
    assert operator().stack(INSTALLATION.builder_stack) == {}
    assert deployed == [("build",), (INSTALLATION.storage_stack, INSTALLATION.training_stack)]  # in this order


@pytest.mark.usefixtures("quick_destroy")
def test_destroy_stops_a_build_and_leaves_no_project_log_or_source(
    deployed: Deployed, builds: Builds, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    builds(f"touch {begun}; sleep 300")
    cdk.deploy(operator(), INSTALLATION, INSTALLATION.builder_stack)
    id = building.start_build(operator(), INSTALLATION)
    wait_for(begun.exists)
    s3, codebuild = client(deployed.aws, "s3"), client(deployed.aws, "codebuild")
    s3.put_object(Bucket=BUCKET, Key=f"{INSTALLATION.name}-too/other.zip", Body=b"")
    found = left()
    assert {"CodeBuild build", "CodeBuild project", "source of a build"} <= {*found}
    assert operate("destroy") == 0
    assert left() == []
    versions = s3.list_object_versions(Bucket=BUCKET)
    assert [one["Key"] for one in versions["Versions"]] == [f"{INSTALLATION.name}-too/other.zip"]
    assert codebuild.list_projects()["projects"] == []
    assert codebuild.batch_get_builds(ids=[id])["builds"][0]["buildStatus"] == "STOPPED"
