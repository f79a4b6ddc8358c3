"""The scratch folder is this user's alone: another user's, or one that others may write to, is refused with the fix."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from trainer.contract import UserError
from trainer.process.scratch import open_scratch

OTHER = 12_345


def test_a_new_folder_is_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        monkeypatch.chdir(tmp_path)
        folder = open_scratch("deep/scratch")
    finally:
        os.umask(before)
    assert folder == tmp_path / "deep/scratch"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert open_scratch(folder) == folder


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o775, 0o2770])
def test_a_folder_of_this_users_own_is_taken_and_its_group_may_no_longer_write_there(
    mode: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(mode)
    for _ in range(2):
        assert open_scratch(tmp_path) == tmp_path
        assert stat.S_IMODE(tmp_path.stat().st_mode) == mode & ~0o020
    assert capfd.readouterr().err.count("your group may no longer write") == bool(mode & 0o020)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o772])
def test_a_folder_that_everybody_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match=rf"mode {mode:o}.*\.cache/resnet-spot") as refused:
        open_scratch(tmp_path)
    assert ("chmod go-w" in str(refused.value)) == (mode != 0o1777), "a folder that is shared stays so"
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_roots_folder_that_others_may_write_to_is_refused_without_advice_to_change_it(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setattr("trainer.process.scratch.ROOT_UID", tmp_path.stat().st_uid)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    with pytest.raises(UserError, match=rf"mode {mode:o}") as refused:
        open_scratch(tmp_path)
    assert "chmod" not in str(refused.value)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode


@pytest.mark.parametrize("name", ["folder", "link"])
def test_a_folder_or_link_that_another_user_made_first_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    if os.geteuid() == 0:
        os.chown(tmp_path / name, OTHER, OTHER, follow_symlinks=False)
    else:  # only root can give a folder away
        monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    with pytest.raises(UserError, match=r"belongs to another user.*for example SCRATCH=\S*/\.cache/resnet-spot"):
        open_scratch(tmp_path / name)


def test_a_group_of_others_that_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o775)
    monkeypatch.setattr(os, "getegid", lambda: OTHER)
    with pytest.raises(UserError, match="mode 775"):
        open_scratch(tmp_path)
