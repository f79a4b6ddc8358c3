"""The session's habits: fixtures for all, no skips under STRICT=1, what FAST=1 leaves out, seconds per file.

What a skip says goes to whoever runs `make test`; in CI (STRICT=1) a skip of any kind is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Generator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.seconds import SECONDS_FILE, cpu_seconds, table

# tests/infra runs in an environment of its own, .venv-infra, which has CDK but not torch; all others in .venv.
IN_INFRA = find_spec("torch") is None
TRAINER_PLUGINS = ["tests.runs"]
INFRA_PLUGINS = ["tests.emulator.aws", "tests.emulator.registry"]
OWN_PLUGINS = INFRA_PLUGINS if IN_INFRA else TRAINER_PLUGINS
pytest_plugins = ["tests.emulator.s3", "tests.emulator.imds", "tests.engine", *OWN_PLUGINS]
collect_ignore = [] if IN_INFRA else ["infra"]
if IN_INFRA:
    import_module("infra")  # tells CDK its Node.js, before a test imports CDK

# Where a shell forbids Python to keep what it compiled, each of hundreds of processes would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

for number in (signal.SIGINT, signal.SIGHUP):  # a shell's `&`, and nohup, have them ignored, also in every child
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)

STRICT = os.environ.get("STRICT") == "1"
FAST = os.environ.get("FAST") == "1"  # leave out what is marked slow, and whatever starts a server, CDK or a whole run
BOOTS = ("tests/infra/boot/test_boot.py", "tests/infra/boot/test_boot_ends.py")
STACKS = "tests/infra/stacks/"
SLOW_FIXTURES = frozenset(
    {
        "aws_server", "chromium", "digits_folder", "engine", "hub", "new_run", "s3_endpoint", "template",
        "trackers_python",
    }
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of this session."""
    mine = tmp_path_factory.getbasetemp()
    return mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a headless-capable browser; skips without one."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium (make ci-deps, as root, installs one)")


@pytest.fixture(scope="session")
def trackers_python() -> str:
    """The interpreter of .venv-trackers, which has TensorBoard and the trackers of others; skips without one."""
    path = ROOT / ".venv-trackers/bin/python"
    if not path.exists():
        pytest.skip("no .venv-trackers (make test sets it up)")
    return str(path)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT and report.skipped:  # an expected failure reports itself as skipped, too
        report.outcome = "failed"
        report.longrepr = f"STRICT=1 allows no skipped test: {skip_reason(report)}"


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", report.longrepr))


spent = 0.0


def pytest_collection_finish() -> None:
    global spent
    spent = cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    global spent
    report = yield
    refuse_skip(report)
    before, spent = spent, cpu_seconds()
    report.user_properties.append(("cpu_seconds", spent - before))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if FAST:
        config.hook.pytest_deselected(items=[item for item in items if is_slow(item)])
        items[:] = [item for item in items if not is_slow(item)]
    slow_files = {item.path for item in items if is_slow(item)}
    items.sort(key=lambda item: item.path not in slow_files)  # first, so that no worker is left with one at the end


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests on one worker, which makes their fixtures once; but each boot of a machine where there is room.

    All files about the stacks are on one worker: starting CDK and synthesizing takes longer than what they then check.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(BOOTS):
                return nodeid
            return STACKS if nodeid.startswith(STACKS) else nodeid.split("::")[0]

    return ByFile(config, log)


def is_slow(item: pytest.Item) -> bool:
    fixtures = {*getattr(item, "fixturenames", ())}
    parameters = getattr(item, "callspec", None)
    if parameters is not None and parameters.params.get("store") == "s3":  # which asks for its server when it runs
        fixtures.add("s3_endpoint")
    return item.get_closest_marker("slow") is not None or not SLOW_FIXTURES.isdisjoint(fixtures)


def taken(terminalreporter: pytest.TerminalReporter) -> dict[str, dict[str, float]]:
    """By file: its seconds, those of the processor, and how many tests."""
    files: dict[str, dict[str, float]] = {}
    tests: set[str] = set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                values = files.setdefault(report.nodeid.split("::")[0], {"wall": 0, "cpu": 0, "tests": 0})
                values["wall"] += report.duration
                properties: dict[str, Any] = dict(report.user_properties)
                values["cpu"] += properties.get("cpu_seconds", 0)
                values["tests"] += report.nodeid not in tests
                tests.add(report.nodeid)
    return files


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files = taken(terminalreporter)
    if path := os.environ.get(SECONDS_FILE):
        Path(path).write_text(json.dumps(files))
    elif files:
        terminalreporter.section("seconds per file")
        terminalreporter.write("\n".join([*table(files), ""]))
    skips = Counter(skip_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(skips.items()):
        terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''} skipped: {reason}")
