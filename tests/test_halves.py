"""What `make test` runs: which half a path belongs to, both at once, one exit code, one table, an end by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.__main__ import INFRA, NO_TESTS, TRAINER, exit_code, halves
from tests.seconds import table

MODULE = "tests/test_make.py"
INFRA_MODULE = "tests/infra/run/test_spend.py"


def commands(*arguments: str) -> dict[str, list[str]]:
    """By environment: what follows `-m pytest`."""
    found = [half.command() for half in halves(arguments)]
    return {command[0].split("/")[0]: command[3:] for command in found}


def test_without_a_path_both_halves_run_with_all_options() -> None:
    whole = {".venv": ["tests", *TRAINER.workers], ".venv-infra": ["tests/infra", *INFRA.workers]}
    assert commands() == whole
    options = ["-x", "-k", "tests", "--durations=5"]
    assert commands(*options) == {name: [*command, *options] for name, command in whole.items()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([MODULE], {".venv": [MODULE]}),
        ([f"{MODULE}::test_a", "-k", "range"], {".venv": [f"{MODULE}::test_a", "-k", "range"]}),
        ([f"./{MODULE}", "-x"], {".venv": [f"./{MODULE}", "-x"]}),
        ([str(ROOT / INFRA_MODULE)], {".venv-infra": [str(ROOT / INFRA_MODULE)]}),
        (["tests/infra/guard", "-q"], {".venv-infra": ["tests/infra/guard", "-q"]}),
        (["tests/infra"], {".venv-infra": ["tests/infra", *INFRA.workers]}),
        (["tests/infrared.py"], {".venv": ["tests/infrared.py"]}),
        ([MODULE, INFRA_MODULE], {".venv": [MODULE], ".venv-infra": [INFRA_MODULE]}),
        (["tests"], {".venv": ["tests", *TRAINER.workers], ".venv-infra": ["tests/infra", *INFRA.workers]}),
    ],
)
def test_a_path_runs_alone_in_the_environment_of_its_folder(
    arguments: list[str], expected: dict[str, list[str]]
) -> None:
    assert commands(*arguments) == expected


def test_either_half_that_fails_counts_and_one_without_a_chosen_test_does_not() -> None:
    codes = {(0, 0): 0, (0, NO_TESTS): 0, (NO_TESTS, 0): 0, (NO_TESTS, NO_TESTS): NO_TESTS, (0, 1): 1, (2, 1): 2}
    assert {pair: exit_code(pair) for pair in codes} == codes
    assert exit_code([-9, 0]) != 0


TOGETHER = """
import sys
from tests.__main__ import Half, run_together
sys.exit(run_together([Half(sys.executable, path, (), options=("-c", "/dev/null")) for path in sys.argv[1:]]))
"""


def together(*files: Path) -> subprocess.Popen[str]:
    """The runner on files of tests, each a half of its own."""
    command = [sys.executable, "-c", TOGETHER, *map(str, files)]
    environ = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_halves_are_shown_one_after_the_other_and_one_that_fails_counts(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}(): assert {name == 'a'}\n")
    process = together(tmp_path / "test_a.py", tmp_path / "test_b.py")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert said.index("1 passed") < said.index("1 failed")


WAITING = """
import pathlib, pytest, time
@pytest.fixture
def ends():
    pathlib.Path("{name}.begun").touch()
    yield
    pathlib.Path("{name}.ended").touch()
def test_it(ends):
    time.sleep(60)
"""


def test_ctrl_c_ends_both_and_their_tests_go_through_their_ends(tmp_path: Path) -> None:
    files = [tmp_path / "test_a.py", tmp_path / "test_b.py"]
    for file in files:
        file.write_text(WAITING.format(name=file))
    process, deadline = together(*files), time.monotonic() + 60
    while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert said.count("KeyboardInterrupt") >= 2, said
    assert len(list(tmp_path.glob("*.ended"))) == 2


def test_the_table_has_every_file_the_slowest_first_and_their_sum() -> None:
    taken = {"tests/a.py": {"wall": 1.0, "cpu": 0.5, "tests": 2}, "tests/b.py": {"wall": 2.0, "cpu": 0.25, "tests": 1}}
    assert [line.split() for line in table(taken)[1:]] == [
        ["2.0", "0.2", "1", "tests/b.py"],
        ["1.0", "0.5", "2", "tests/a.py"],
        ["3.0", "0.8", "3", "in", "all"],
    ]
