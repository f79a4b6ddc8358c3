"""What the pages say is so: their commands work as written, and their links, names and marks lead somewhere.

A block marked `sh` is run in a copy of this checkout. One marked `sh aws`, `sh gpu` or `sh slow` is not: its targets,
variables and options are looked up instead. CONTRIBUTING.md tells writers of these marks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.chaos.__main__ import SCENARIOS
from tests.pages import Block, Page, pages
from tests.terminal import CTRL_C, on_a_terminal

PAGES = {page.name: page for page in pages()}
RUN = "sh"
MARKS = {RUN, "sh aws", "sh gpu", "sh slow", "console", "text"}
README_LINES = 150
SENTENCE_WORDS = 30
PATIENCE_SECONDS = 1800  # on a machine that has much else to do
ROOMS = r"(trainer|infra|tests|benchmarks|docs|requirements|\.github|\.ci)"
INFRA_PYTHON = ROOT / ".venv-infra/bin/python"
PARSE = """
import json, sys
from infra.__main__ import parse
for case in json.load(sys.stdin):
    try:
        parse(case["arguments"], case["variables"])
    except SystemExit:
        sys.exit(f"python -m infra {case['arguments']} with {case['variables']}")
"""


def blocks(*marks: str) -> list[Block]:
    return [block for page in PAGES.values() for block in page.blocks if block.info in marks]


def environ() -> dict[str, str]:
    """A newcomer's: nothing that a variable of make, or this test's own make, left. One thread, beside other tests."""
    own = r"MAKE.*|MFLAGS|TRAINER_.*|RECIPE|RUN|DATA|STORE|SCRATCH|ARGS|FAST|STRICT|BASH_ENV"
    return {name: value for name, value in os.environ.items() if not re.fullmatch(own, name)} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, as a clone would be, with the environments of this one."""
    folder = tmp_path_factory.mktemp("newcomer") / "resnet-spot"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    compiled = [str(path.relative_to(ROOT)) for path in (ROOT / "trainer").rglob("*.nb[ic]")]  # numba's, for speed
    for name in [*listed.stdout.splitlines(), *compiled]:
        with suppress(FileNotFoundError):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in (".venv", ".venv-infra", ".venv-trackers", "node_modules"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def run(block: Block, checkout: Path) -> str:
    """What the commands of a block print. The first that fails, fails it."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", block.text], cwd=checkout, env=environ(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    except BaseException:  # also Ctrl-C: nothing is left running
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
        raise
    assert process.returncode == 0, f"{block.where}:\n{block.text}\n{said[-3000:]}"
    return said


@pytest.fixture(scope="module")
def interrupted(checkout: Path) -> tuple[int, str]:
    """README's first command on a terminal, and Ctrl-C after an epoch."""
    return on_a_terminal(
        ["env", "-i", *(f"{name}={value}" for name, value in environ().items()), "make", "train"],
        keys={b"epoch 1 validated": CTRL_C}, timeout=PATIENCE_SECONDS, folder=checkout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first_block(interrupted: tuple[int, str], checkout: Path) -> str:
    """README's first block as it is written, after the interruption."""
    return run(PAGES["README.md"].blocks[0], checkout)


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_saves_and_the_same_command_continues(
    interrupted: tuple[int, str], first_block: str
) -> None:
    code, seen = interrupted
    assert code != 0
    assert "The same command continues from there" in seen, seen
    assert PAGES["README.md"].blocks[0].text == "make train"
    assert re.search(r"continuing run 'digits' from step [1-9]\d* of 352", first_block)
    assert "report " in first_block


@pytest.mark.slow
def test_the_first_command_reaches_the_accuracy_that_its_recipe_promises(first_block: str) -> None:
    best = re.search(r"^  top-1 +([\d.]+) %", first_block, re.MULTILINE)
    assert best, first_block
    assert float(best[1]) > 98


@pytest.mark.slow
def test_every_other_command_of_the_pages_works_as_written(first_block: str, checkout: Path) -> None:
    """In the order of the pages; a command that stands on several of them is run once."""
    done = {PAGES["README.md"].blocks[0].text}
    left = blocks(RUN)
    assert len(left) > 3
    for block in left:
        lines = [line for line in block.text.splitlines() if line not in done]
        done.update(lines)
        if lines:
            run(Block(block.where, block.info, "\n".join(lines)), checkout)


def test_every_block_says_whether_it_can_be_run() -> None:
    assert {block.info for block in blocks(*MARKS)} <= MARKS
    assert [(b.where, b.info) for page in PAGES.values() for b in page.blocks if b.info not in MARKS] == []


# What is not run: are the names right?


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of every command that is shown and not run; a prompt and leading variables are left out."""
    for block in blocks(*(MARKS - {RUN, "text"})):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.info != "console" or line.startswith("$ "):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield block.where, words
    for page in PAGES.values():
        for name in page.names():
            if re.match(r"([A-Z_]+=\S+ )*make( |$)", name) and "…" not in name:
                yield page.name, shlex.split(name[name.index("make") :])


def targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def variables() -> str:
    """The text that names every variable that a user may give."""
    operate = "\n".join(path.read_text() for path in (ROOT / "infra/operate").rglob("*.py"))
    options = [name.upper().replace("-", "_") for name in re.findall(r'option\(\s*"([a-z-]+)"', operate)]
    return "\n".join([(ROOT / "Makefile").read_text(), *options])


def test_every_make_command_that_is_shown_names_a_target_and_variables_that_exist() -> None:
    known, text, shown = targets(), variables(), [one for one in commands() if one[1][0] == "make"]
    assert len(shown) > 30
    for where, words in shown:
        for word in words[1:]:
            name = re.match(r"([A-Z_]+)=", word)
            if name:
                assert re.search(rf"\b{name[1]}\b", text), f"{where}: {' '.join(words)}: no variable {name[1]}="
            else:
                assert word in known, f"{where}: {' '.join(words)}: no target {word}"
    for page in PAGES.values():
        for named in page.names():
            if found := re.match(r"([A-Z_]+)=", named):
                assert re.search(rf"\b{found[1]}\b", text), f"{page.name}: no variable {found[1]}="


@pytest.mark.slow
def test_the_options_of_every_aws_command_that_is_shown_are_accepted() -> None:
    cases: list[dict[str, Any]] = []
    for where, words in commands():
        given = dict(word.split("=", 1) for word in words[1:] if re.match(r"[A-Z_]+=", word))
        line = shlex.join(words)
        if words[0] == "make" and words[1:]:
            dry = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, env=environ(), capture_output=True, text=True, check=False
            )
            assert dry.returncode == 0, f"{where}: {' '.join(words)}: {dry.stderr}"
            line = next((line for line in dry.stdout.splitlines() if "-m infra " in line), "")
        if "-m infra " in line and "--help" not in line:
            cases.append({"arguments": shlex.split(line.split("-m infra ", 1)[1]), "variables": given})
    assert len(cases) > 10
    if not INFRA_PYTHON.exists():
        pytest.skip("no .venv-infra (make test sets it up)")
    command = [str(INFRA_PYTHON), "-c", PARSE]
    parsed = subprocess.run(
        command, cwd=ROOT, env=environ(), input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert parsed.returncode == 0, parsed.stderr


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_its_heading(name: str) -> None:
    page = PAGES[name]
    for target in page.links():
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in Page(file).anchors(), f"{name}: {target}: {sorted(Page(file).anchors())}"


@pytest.mark.parametrize("name", PAGES)
def test_every_path_and_module_that_is_named_exists(name: str) -> None:
    found = [word for name in PAGES[name].names() for word in name.split()]
    if name != "CHANGELOG.md":  # it names modules as they were
        for module in [word for word in found if re.fullmatch(r"(trainer|infra)(\.\w+)+", word)]:
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{name}: {module}"
    for place in [word for word in found if re.fullmatch(rf"{ROOMS}/[\w./-]*", word)]:
        assert (ROOT / place).exists(), f"{name}: {place}"


@pytest.mark.parametrize("name", PAGES)
def test_no_sentence_is_longer_than_one_can_say_aloud(name: str) -> None:
    long = [sentence for sentence in PAGES[name].sentences() if len(sentence.split()) > SENTENCE_WORDS]
    assert long == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_forms_and_workflows_are_whole_and_the_weekly_job_knows_every_fault() -> None:
    yaml = import_module("yaml")
    files = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github").rglob("*.yml"))}
    for form in ("bug.yml", "feature.yml"):
        assert {"name", "description", "body"} <= files[form].keys()
    assert {one["package-ecosystem"] for one in files["dependabot.yml"]["updates"]} == {
        "pip", "npm", "github-actions", "docker"
    }  # fmt: skip
    assert files["weekly.yml"]["jobs"]["chaos"]["strategy"]["matrix"]["scenario"] == list(SCENARIOS)
    for workflow in ("ci.yml", "weekly.yml"):
        steps = [step for job in files[workflow]["jobs"].values() for step in job["steps"]]
        for target in re.findall(r"\bmake ([a-z-]+)", "\n".join(step.get("run", "") for step in steps)):
            assert target in targets(), f"{workflow}: make {target}"


def test_the_table_of_walls_names_tests_that_exist_for_every_principal() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    table, listed = text.split("## Who can do what")[1].split("### The tests")
    numbered = dict(re.findall(r"^(\d+)\. (.+)$", listed.split("\n## ")[0], re.MULTILINE))
    assert set(re.findall(r"\[(\d+)\]", table)) == set(numbered)
    assert all("[" in row for row in table.splitlines() if row.startswith("| **"))
    for number, names in numbered.items():
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", names)
        assert tests, f"SECURITY.md names no test as {number}"
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(), f"SECURITY.md, {number}: {file} has no {name}"
