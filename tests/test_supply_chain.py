"""What the build, CI and the packages' installation take from elsewhere is named by its content, not by a tag."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def test_every_action_is_named_by_its_commit_and_the_version_stands_beside() -> None:
    for path in WORKFLOWS:
        used = re.findall(r"uses: *(.*)", path.read_text())
        assert len(used) == sum("uses" in step for step in steps(path)) > 0
        for action in used:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), f"{path.name}: {action}"


def test_no_workflow_may_write_or_keeps_a_token() -> None:
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
        for step in steps(path):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_the_base_of_the_image_is_named_by_its_digest() -> None:
    bases = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [bool(re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", base)) for base in bases] == [True]
    assert "slim-bookworm" not in (ROOT / "Makefile").read_text()


def test_every_python_package_is_named_by_its_hash() -> None:
    lists = sorted((ROOT / "requirements").glob("*.txt"))
    assert len(lists) >= 6
    for path in lists:
        packages = re.split(r"\n(?=\S)", path.read_text().strip())
        assert all("--hash=sha256:" in one for one in packages if not one.startswith("#")), path


def test_npm_runs_no_script_of_a_package() -> None:
    assert "ignore-scripts=true" in (ROOT / ".npmrc").read_text().splitlines()
    assert '"hasInstallScript"' not in (ROOT / "package-lock.json").read_text()


def test_all_that_is_pinned_is_renewed_and_audited() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"pip", "npm", "github-actions", "docker"}
    ran = "\n".join(step.get("run", "") for path in WORKFLOWS for step in steps(path))
    assert "pip-audit" in ran
    assert "npm audit" in ran
    for path in (ROOT / "requirements").glob("*.txt"):
        assert re.search(rf"\b{path.stem}\b", ran), f"{path.name} is not audited"
