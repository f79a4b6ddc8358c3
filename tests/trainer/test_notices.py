"""The notices of third parties: every package is named with its licence and the texts that come with it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine import Container
from trainer import notices


def test_every_installed_package_is_named_and_its_text_stands_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gcc", "g++"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "copyright").write_text("The text of the GNU compilers \xe9")
    monkeypatch.setattr(sys, "argv", ["notices.py", str(tmp_path)])
    notices.main()
    written = capsys.readouterr().out
    for package in importlib.metadata.distributions():
        assert f"\n{package.metadata['Name']} {package.version}: " in written
    assert "\nnumpy " in written
    assert "\nDebian: g++, Debian: gcc\n" in written
    assert written.count("The text of the GNU compilers") == 1


@pytest.mark.engine
def test_the_image_has_the_notices_of_all_that_is_in_it(run_container: Callable[..., Container]) -> None:
    script = """
import importlib.metadata, subprocess
print(*(one.metadata["Name"] for one in importlib.metadata.distributions()))
print(*subprocess.check_output(["dpkg-query", "-W", "-f", "${Package} "], text=True).split())
print(open("/opt/notices/NOTICES.txt").read())
"""
    container = run_container("-c", script, entrypoint=["python"])
    assert container.wait() == 0, container.logs()
    installed, debian, written = container.logs().split("\n", 2)
    assert {"torch", "numpy"} <= {*installed.split()}
    assert "g++" in debian.split()
    for name in installed.split():
        assert f"\n{name} " in written
    assert not [name for name in debian.split() if f"\nDebian: {name}: " not in written]
    for text in ("End User License Agreement", "GNU GENERAL PUBLIC LICENSE", "docs.nvidia.com/cuda/eula"):
        assert text.lower() in written.lower()
