"""The session's habits: fixtures for all, what this machine lacks, no skips under STRICT=1, seconds per file.

What a skip says goes to whoever runs `make test`; in CI (STRICT=1) a skip of any kind is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Generator
from importlib import import_module
from importlib.util import find_spec

import pytest

# tests/infra runs in an environment of its own, .venv-infra, which has CDK but not torch; all others in .venv.
IN_INFRA = find_spec("torch") is None
OWN_PLUGINS = (
    ["tests.emulator.aws", "tests.emulator.registry", "tests.infra.boot.boot_machines"] if IN_INFRA else ["tests.runs"]
)
pytest_plugins = ["tests.emulator.s3", "tests.emulator.imds", "tests.engine", *OWN_PLUGINS]
collect_ignore = [] if IN_INFRA else ["infra"]
if IN_INFRA:
    import_module("infra")  # tells CDK its Node.js, before a test imports CDK

for number in (signal.SIGINT, signal.SIGHUP):  # a shell's `&`, and nohup, have them ignored, also in every child
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)

STRICT = os.environ.get("STRICT") == "1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a headless-capable browser; skips without one."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium (make ci-deps, as root, installs one)")


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT and report.skipped:  # an expected failure reports itself as skipped, too
        report.outcome = "failed"
        report.longrepr = f"STRICT=1 allows no skipped test: {skip_reason(report)}"


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", report.longrepr))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, set[str]] = defaultdict(set)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.split("::")[0]
                seconds[file] += report.duration
                tests[file].add(report.nodeid)
    if seconds:
        terminalreporter.section("seconds per file")
        for file, total in sorted(seconds.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{total:8.1f} s  {len(tests[file]):4d} tests  {file}")
    skips = Counter(skip_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(skips.items()):
        terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''} skipped: {reason}")
