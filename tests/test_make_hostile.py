"""Attacks on the Makefile: no value, typed or exported, is run as a command, and each arrives whole."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

TARGETS = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
DEFAULTED = re.findall(r"^(\w+) *\?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
OTHERS = [
    "FROM", "HOURS", "BUDGET", "TYPES", "PURGE", "YES", "NAME", "BUILD", "ON", "FAST", "AWS_ENDPOINT_URL", "HF_TOKEN",
    "UNKNOWN",
]  # fmt: skip
PROGRAMS = ["PYTHON", "VENV", "BIN", "INFRA", "TRACK"]  # whoever sets these chooses a program, but no second one
STAND_IN = f"""#!/bin/sh
case "$2" in trainer.words | trainer.container) exec {sys.executable} "$@" ;; esac
printf '%s\\0' "${{0##*/}}" "$@" >> "$LOG.arguments"
env -0 >> "$LOG.environ"
"""


def hostile(name: str) -> str:
    """A value that creates PWNED-… wherever a shell or make reads it as anything but text. Its quotes are closed."""
    touch = f"touch PWNED-{name}"
    return (
        f"x \"; {touch}1; \" '; {touch}2; ' ; {touch}3; $({touch}4) `{touch}5` $(shell {touch}6) $$({touch}7) "
        f"$$$$({touch}8) ${{shell {touch}9}} | {touch}10 && {touch}11 #\n\t{touch}12\n;{touch}13\n\t@{touch}14"
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile beside set-up environments whose programs only write down what they were given."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "trainer").symlink_to(ROOT / "trainer")
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/deps").touch()
    (tmp_path / "requirements").mkdir()
    for name in ("trainer", "export", "dev", "bench", "infra", "infra-dev", "trackers", "uv"):
        (tmp_path / f"requirements/{name}.txt").touch()
    (tmp_path / "package-lock.json").touch()
    programs = [f".venv/bin/{name}" for name in ("python", "uv", "ruff", "lint-imports", "mypy")]
    for name in [*programs, ".venv-infra/bin/python", ".venv-trackers/bin/python", "bin/docker", "bin/git"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    for stamp in ("trainer", "export", "dev", "bench"):
        (tmp_path / f".venv/.{stamp}").touch()
    for stamp in ("infra", "dev"):
        (tmp_path / f".venv-infra/.{stamp}").touch()
    (tmp_path / ".venv-trackers/.trackers").touch()
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/.package-lock.json").touch()
    return tmp_path


def make(checkout: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        "HOME": str(checkout),
        "LOG": str(checkout / "log"),
    }
    return subprocess.run(
        ["make", "-k", *arguments], cwd=checkout, env=inherited | environ, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def created(checkout: Path) -> list[str]:
    return sorted(str(path.relative_to(checkout)) for path in checkout.rglob("*PWNED-*"))


def logged(checkout: Path, what: str) -> list[str]:
    return (checkout / f"log.{what}").read_text().split("\0")


@pytest.mark.parametrize("origin", ["typed", "exported"])
def test_no_value_of_any_variable_is_run_by_any_target_and_each_arrives_whole(origin: str, checkout: Path) -> None:
    names = [name for name in [*DEFAULTED, *OTHERS] if name not in PROGRAMS]
    assert {"RECIPE", "RUN", "DATA", "STORE", "SCRATCH", "ARGS", "IMAGE", "BASE"} <= {*names}
    values = {name: hostile(name) for name in names}
    targets = [target for target in TARGETS if target != "clean"]
    given = [f"{name}={value}" for name, value in values.items()] if origin == "typed" else []
    ended = make(checkout, *targets, "clean", *given, **({} if given else values))
    assert not created(checkout), ended.stderr
    assert ended.returncode in (0, 2), ended.stderr
    environ = {*logged(checkout, "environ")}
    for name, variable in {"TRAINER_STORE": "STORE", "TRAINER_RUN_ID": "RUN", "TRAINER_DATA": "DATA"}.items():
        assert f"{name}={values[variable]}" in environ
    for name in ("HOURS", "BUDGET", "FROM", "UNKNOWN"):
        assert f"{name}={values[name]}" in environ
    arguments = logged(checkout, "arguments")
    for word in (values["RECIPE"], values["FROM"], values["IMAGE"], f"BASE={values['BASE']}"):
        assert word in arguments
    words = shlex.split(values["ARGS"])
    at = arguments.index("trainer.process.supervise")
    assert arguments[at + 1 : at + 2 + len(words)] == [values["RECIPE"], *words]
    for name in ("YES", "NAME", "BUILD"):
        assert (f"{name}={values[name]}" in environ) == (origin == "typed")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_value_that_names_a_program_or_a_folder_runs_no_other(name: str, checkout: Path) -> None:
    for stamp in (".venv/.trainer", ".venv-infra/.infra"):
        (checkout / stamp).unlink()
    touch = f"touch PWNED-{name}"
    for value in (hostile(name), f"x; {touch}", f"x: ; {touch} #", f"$(shell {touch})"):
        make(checkout, "train", "runs", "clean", f"{name}={value}", "PYTHON=false" if name != "PYTHON" else "BIN=bin")
        assert not created(checkout)
    assert (ROOT / "Makefile").exists()


def test_an_open_quote_in_args_is_an_error_with_its_fix(checkout: Path) -> None:
    ended = make(checkout, "train", "ARGS=--name it's")
    assert ended.returncode == 2
    assert "ARGS=--name it's" in ended.stderr
    assert "close each quote" in ended.stderr
    assert not (checkout / "log.arguments").exists()


def test_quotes_in_args_group_words_as_before(checkout: Path) -> None:
    make(checkout, "checkpoints", 'ARGS=export "my weights.safetensors" it\\\'s $HOME ~ * a\\ b')
    assert logged(checkout, "arguments")[3:-1] == ["export", "my weights.safetensors", "it's", "$HOME", "~", "*", "a b"]


def test_an_image_and_a_model_reach_predict_whole_and_the_name_of_the_container_image_does_not(checkout: Path) -> None:
    make(checkout, "predict", "IMAGE=my cat.jpg", "MODEL=a b", "ARGS=--top 1")
    assert logged(checkout, "arguments")[1:-1] == [
        "-m", "trainer.predict", "my cat.jpg", "--model", "a b", "--top", "1",
    ]  # fmt: skip
    (checkout / "log.arguments").unlink()
    make(checkout, "predict")
    assert logged(checkout, "arguments")[1:-1] == ["-m", "trainer.predict"]


def test_an_exported_model_does_not_beat_a_run_that_was_typed(checkout: Path) -> None:
    for target in ("predict", "evaluate", "compare", "release"):
        make(checkout, target, *([] if target == "compare" else ["RUN=mine"]), MODEL="other", RUNS="a,b")
    environ = logged(checkout, "environ")
    assert environ.count("TRAINER_RUN_ID=mine") == 3
    assert not [one for one in environ if one.startswith(("MODEL=", "RUNS="))]
    assert "other" not in logged(checkout, "arguments")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["predict", "RUN=a", "MODEL=b"], "error: MODEL= RUN=: make predict takes RUN= or MODEL=, and one alone"),
        (["predict", "RUNS=a,b"], "error: RUNS=: make predict takes RUN= or MODEL=, and one alone"),
        (["evaluate", "RUNS=a,b", "MODEL=b"], "make evaluate takes RUN= or MODEL= or RUNS=, and one alone"),
        (["compare", "RUN=a"], "error: RUN=: make compare takes RUNS=\n"),
        (["release", "RUN=a", "RUNS=b,c"], "make release takes RUN= or MODEL= or RUNS=, and one alone"),
    ],
)
def test_weights_that_are_named_twice_or_in_a_way_that_a_target_lacks_are_refused(
    typed: list[str], message: str, checkout: Path
) -> None:
    ended = make(checkout, *typed)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert not (checkout / "log.arguments").exists()


def test_each_way_to_name_weights_reaches_its_command(checkout: Path) -> None:
    for typed in (["evaluate", "MODEL=a b"], ["evaluate", "RUNS=c,d"], ["compare", "RUNS=e,f"], ["release", "MODEL=g"]):
        make(checkout, *typed)
        assert typed[1] in logged(checkout, "environ")


@pytest.mark.parametrize(
    "exported",
    [
        {"ON": "aws", "YES": "1"},
        {"ON": "$(shell touch PWNED-ON)"},
        {"MAKEFLAGS": "ON=aws YES=1"},
        {"MAKEFLAGS": "-k -- Y\\ES=1\nON:=aws MEANT=ON FLAGS="},
        {"GNUMAKEFLAGS": "ON\\ ::=\\ aws TYPED=YES YES=1"},
    ],
)
def test_what_spends_or_deletes_counts_only_where_it_was_typed(exported: dict[str, str], checkout: Path) -> None:
    make(checkout, "prepare", "STORE=typed", **exported)
    assert logged(checkout, "arguments")[1:3] == ["-m", "trainer.prepare"]
    assert "TRAINER_STORE=typed" in logged(checkout, "environ")
    assert not [entry for entry in logged(checkout, "environ") if entry.startswith(("ON=", "YES="))]
    assert not created(checkout)


def test_a_typed_switch_counts_with_other_flags_exported_and_on_is_aws_or_an_error(checkout: Path) -> None:
    make(checkout, "prepare", "ON=aws", "YES=1", MAKEFLAGS="--no-print-directory RUN=r")
    assert logged(checkout, "arguments")[1:5] == ["-m", "infra", "--make", "prepare"]
    assert {"YES=1", "RUN=r"} <= {*logged(checkout, "environ")}
    (checkout / "log.arguments").unlink()
    assert "ON=gcp: ON=aws prepares on a machine there" in make(checkout, "prepare", "ON=gcp").stderr
    assert not (checkout / "log.arguments").exists()


def test_python_may_be_several_words_and_none_of_them_is_a_command_of_the_shell(checkout: Path) -> None:
    python = checkout / "my python"
    python.symlink_to(checkout / ".venv/bin/python")
    for value in ("env WORD=1 .venv/bin/python", str(python)):
        ended = make(checkout, "docker-train", f"PYTHON={value}")
        assert ended.returncode == 0, ended.stderr
    assert "WORD=1" in logged(checkout, "environ")
    for value in ("eval touch PWNED-1", "eval .venv/bin/python; touch PWNED-2", "source PWNED*"):
        assert make(checkout, "docker-train", f"PYTHON={value}").returncode
    assert not created(checkout)


def test_an_environment_is_set_up_once_by_a_parallel_make(checkout: Path) -> None:
    for name in (".infra", ".dev", "bin/pip", "bin/uv"):
        (checkout / ".venv-infra" / name).unlink(missing_ok=True)
        if name.startswith("bin"):
            (checkout / ".venv-infra" / name).symlink_to("python")
    (checkout / "node_modules/.package-lock.json").unlink()
    said = make(checkout, "-j4", "test", "PYTHON=.venv/bin/python").stdout
    assert said.count("setting up .venv-infra for") == 1


def test_help_reads_no_name_of_a_file_as_a_command(checkout: Path) -> None:
    (checkout / "x;echo>PWNED-help").touch()
    ended = make(checkout, "help", MAKEFILES="x;echo>PWNED-help")
    assert "make train" in ended.stdout
    assert created(checkout) == ["x;echo>PWNED-help"]
