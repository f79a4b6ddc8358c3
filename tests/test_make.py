"""The Makefile as a newcomer meets it: targets, set-up messages, a terminal that is closed (Ctrl-C: test_docs)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.terminal import HANG_UP, on_a_terminal
from trainer.contract import Exit


def make(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = ("MAKE", "TRAINER_", "ARGS")  # what a variable of the make that runs these tests left
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=env | environ, capture_output=True, text=True, check=False, timeout=120
    )


def test_make_alone_prints_every_target_with_a_line_of_help_under_a_heading() -> None:
    declared = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    title, *groups = make().stdout.split("\n\n")
    assert "RECIPE=" in title
    targets, headings = [], []
    for group in groups:
        heading, *lines = group.splitlines()
        headings.append(heading)
        for line in lines:
            shown = re.fullmatch(r"  make (\S+) +(\S.*)", line)
            assert shown, line
            targets.append(shown[1])
    assert targets == declared
    assert headings == ["On this machine", "Data", "AWS", "Checks", "Benchmarks", "This repository"]
    assert len(declared) >= 10


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('case "$*" in *version_info*) exit 1;; *) echo "Python 3.9.2";; esac', "Python 3.9.2: Python 3.11 or later"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_a_python_that_lacks_something_is_named_with_the_fix(script: str, said: str, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    ended = make("train", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert ended.returncode == 2
    assert said in ended.stdout + ended.stderr
    assert not (tmp_path / "venv").exists()


def test_clean_leaves_what_was_exported_and_released() -> None:
    removed = make("-n", "clean").stdout.split()
    assert "out" in removed
    assert not {"exports", "releases"} & {*removed}


def test_a_set_up_environment_is_not_set_up_again() -> None:
    assert "setting up" not in make("recipes").stdout


def recorder(path: Path, said: str = "") -> Path:
    """A command that only prints its arguments, one a line, into a file beside it; a Python also runs trainer.words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = f'[ "$2" != trainer.words ] || exec {sys.executable} "$@"'
    path.write_text(f"#!/bin/sh\n{words}\nprintf '%s\\n' \"$@\" >> '{path}.log'\necho {said}\n")
    path.chmod(0o755)
    return path


def test_folders_with_spaces_reach_the_preparation_as_they_are(tmp_path: Path) -> None:
    python = recorder(tmp_path / "bin" / "python")
    store, data = tmp_path / "my $shards 'here'", tmp_path / "my photos"
    ended = make("prepare", f"BIN={python.parent}", f"STORE={store}", f"DATA={data}", "ARGS=--quality 80")
    assert ended.returncode == 0, ended.stderr
    arguments = Path(f"{python}.log").read_text().splitlines()
    assert arguments == ["-m", "trainer.prepare", "--store", str(store), "--data", str(data), "--quality", "80"]
    assert make("prepare", f"BIN={python.parent}").returncode == 0
    assert Path(f"{python}.log").read_text().splitlines()[-3:] == ["out", "--data", "ILSVRC/imagenet-1k"]


def test_processes_machines_and_where_they_meet_reach_the_trainer_and_the_container_only_if_they_are_given(
    tmp_path: Path,
) -> None:
    python = recorder(tmp_path / "bin" / "python")
    seen = tmp_path / "environ"
    names = ("PET_NPROC_PER_NODE", "TRAINER_NODES", "TRAINER_RENDEZVOUS")
    with python.open("a") as file:
        file.write("".join(f"echo \"${{{name}-unset}}\" >> '{seen}'\n" for name in names))
    (tmp_path / ".trainer").touch()
    given = ("NPROC=2", "NODES=2", "RENDEZVOUS=10.0.0.5:29500")
    for target, place in (("train", f"VENV={tmp_path}"), ("docker-train", f"PYTHON={python}")):
        ended = make(target, place, *given)
        assert ended.returncode == 0, ended.stderr
        assert seen.read_text().split()[-3:] == ["2", "2", "10.0.0.5:29500"], target
        assert make(target, place, PET_NPROC_PER_NODE="7").returncode == 0
        assert seen.read_text().split()[-3:] == ["7", "unset", "unset"], target
    modules = Path(f"{python}.log").read_text().splitlines()
    assert {"trainer.process.supervise", "trainer.container"} <= {*modules}


def test_runs_are_those_of_a_store_that_was_typed_else_those_on_aws(tmp_path: Path) -> None:
    here, aws = (recorder(tmp_path / name / "bin" / "python") for name in ("here", "aws"))
    environments = (f"VENV={here.parents[1]}", f"INFRA={aws.parents[1]}")
    for python, stamp in ((here, ".trainer"), (aws, ".infra")):
        (python.parents[1] / stamp).touch()
    ended = make("runs", *environments, f"STORE={tmp_path}/my runs", "ARGS=--json")
    assert ended.returncode == 0, ended.stderr
    assert Path(f"{here}.log").read_text().splitlines() == ["-m", "trainer.runs", "--json"]
    assert not Path(f"{aws}.log").exists()
    assert make("runs", *environments, STORE="exported").returncode == 0
    assert Path(f"{aws}.log").read_text().splitlines() == ["-m", "infra", "--make", "runs"]


def test_folders_with_spaces_reach_the_container_and_no_other_folder_is_made(tmp_path: Path) -> None:
    docker = recorder(tmp_path / "bin" / "docker", "sha256:0123")
    work = tmp_path / "work"
    (work / "my photos").mkdir(parents=True)
    places = ["STORE=my results", "SCRATCH=my scratch", "DATA=my photos/"]
    path = f"{docker.parent}:{os.environ['PATH']}"
    ended = make("docker-train", "-C", str(work), "-f", str(ROOT / "Makefile"), *places, PATH=path)
    assert ended.returncode == 0, ended.stderr
    assert sorted(folder.name for folder in work.iterdir()) == ["my photos", "my results", "my scratch"]
    arguments = Path(f"{docker}.log").read_text().splitlines()
    for said in (
        f"{work}/my scratch:/scratch", f"{work}/my results:/store", "TRAINER_STORE=/store",
        f"{work}/my photos:/data/my photos:ro", "TRAINER_DATA=/data/my photos",
    ):  # fmt: skip
        assert said in arguments
    assert arguments[-2:] == ["resnet-spot", "digits"]

    ended = make("docker-train", "-C", str(work), "-f", str(ROOT / "Makefile"), "STORE=s3://b", "DATA=a/b", PATH=path)
    assert ended.returncode == 0, ended.stderr
    assert not (work / "s3:").exists()
    arguments = Path(f"{docker}.log").read_text().splitlines()
    assert arguments[-6:] == ["-e", "TRAINER_STORE", "-e", "TRAINER_DATA", "resnet-spot", "digits"]
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        assert name in arguments


def test_a_store_that_is_the_address_of_a_folder_is_that_folder_in_the_container(tmp_path: Path) -> None:
    docker = recorder(tmp_path / "bin" / "docker", "sha256:0123")
    (work := tmp_path / "work").mkdir()
    path = f"{docker.parent}:{os.environ['PATH']}"
    for store in (f"file://{tmp_path}/my%20results", "s3:/typed", "gs://bucket"):
        ended = make("docker-train", "-C", str(work), "-f", str(ROOT / "Makefile"), f"STORE={store}", PATH=path)
        assert ended.returncode == 0, ended.stderr
        arguments = Path(f"{docker}.log").read_text().splitlines()
        is_folder = store.startswith("file:")
        assert (f"{tmp_path}/my results:/store" in arguments[-8:]) == is_folder
        assert ("TRAINER_STORE=/store" in arguments[-8:]) == is_folder
        assert ("TRAINER_STORE" in arguments[-6:]) == (not is_folder)
    assert (tmp_path / "my results").is_dir()
    assert [folder.name for folder in work.iterdir()] == [".scratch"]


def test_recipes_shows_options_and_never_trains(tmp_path: Path) -> None:
    places = [f"STORE={tmp_path / 'store'}", f"SCRATCH={tmp_path / 'scratch'}"]
    ended = make("recipes", *places, "RECIPE=digits", "ARGS=--model.name resnet34")
    assert ended.returncode == 0, ended.stderr
    assert "--model.name" in ended.stdout
    assert not list(tmp_path.iterdir())


def test_a_terminal_that_is_closed_is_an_interruption_that_saves(tmp_path: Path, digits_folder: Path) -> None:
    options = "--epochs 50 --global-batch-size 256 --device-batch-size 64 --log-every-steps 1"
    store = tmp_path / "out"
    places = [f"STORE={store}", f"SCRATCH={tmp_path / 'scratch'}", f"DATA={digits_folder}"]
    on_a_terminal(["make", "train", *places, f"ARGS={options}"], keys={b"step 3/": HANG_UP})
    ended, deadline = {}, time.monotonic() + 40
    while "exit" not in ended and time.monotonic() < deadline:
        time.sleep(0.2)
        ended = json.loads((store / "runs/digits/attempts/1.json").read_text())
    assert ended["exit"] == Exit.INTERRUPTED
    assert "is saved" in ended["message"]
