"""What the operator sees: wrapped in columns on a real terminal, plain lines of any length elsewhere."""

from __future__ import annotations

import re
import sys

import pytest

from infra.operate import terminal
from tests.emulator.aws import Aws
from tests.infra.operator import GIVEN_IMAGE, infra
from tests.terminal import CTRL_C, on_a_terminal

STYLE = re.compile(r"\x1b\[[0-9;]*m")
LONG = " ".join(f"word{i}" for i in range(30))
PROGRAM = "from infra.operate.terminal import *; import time\n"


@pytest.fixture(autouse=True)
def colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal as people have it."""
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def drawn(program: str, columns: int = 100, **keys: bytes) -> str:
    """What a few lines of Python draw."""
    pressed = {cue.encode(): key for cue, key in keys.items()}
    return on_a_terminal([sys.executable, "-c", PROGRAM + program], keys=pressed, columns=columns)[1]


def lines(seen: str) -> list[str]:
    """Without colours."""
    return [line.rstrip() for line in STYLE.sub("", seen).splitlines()]


ROWS = f"[('quota', styled('failed', 'red'), {LONG!r}), ('a longer name', styled('not needed', 'dim'), 'short')]"


@pytest.mark.parametrize("columns", [100, 60])
def test_a_long_cell_is_wrapped_in_its_column(columns: int) -> None:
    seen = lines(drawn(f"display(table({ROWS}))", columns))
    assert max(map(len, seen)) <= columns
    *wrapped, last = seen
    assert len(wrapped) > 1
    assert wrapped[0].startswith("quota          failed      word0 word1")
    assert all(line.startswith(" " * 27 + "word") for line in wrapped[1:])
    assert last == "a longer name  not needed  short"
    assert " ".join(line[27:] for line in wrapped) == LONG


def test_a_coloured_cell_is_as_wide_as_it_looks(capsys: pytest.CaptureFixture[str]) -> None:
    seen = drawn("display(table([('a', styled('not needed', 'dim'), 'x'), ('b', styled('ok', 'green'), 'x')]))")
    assert "\x1b[2mnot needed\x1b[0m" in seen
    assert "\x1b[32mok" in seen
    assert lines(seen) == ["a  not needed  x", "b  ok          x"]


def test_no_color_leaves_every_style_out_and_wraps_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with_colors = drawn(f"display(table({ROWS}, ('one', 'two', 'three')))", 60)
    monkeypatch.setenv("NO_COLOR", "1")
    without = drawn(f"display(table({ROWS}, ('one', 'two', 'three')))", 60)
    assert STYLE.search(with_colors)
    assert "\x1b" not in without
    assert lines(with_colors) == lines(without)


def test_to_a_file_nothing_is_wrapped_styled_or_cut(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.display(
        terminal.table([("a", terminal.styled("1", "red"), LONG), ("bb", "22", "")], ("name", "$", "what"), indent=2),
        terminal.styled(LONG, "bold"),
    )
    expected = ["  name   $  what", f"  a      1  {LONG}", "  bb    22", LONG]
    assert capsys.readouterr().out.splitlines() == expected


def test_each_line_is_cut_so_that_a_long_message_keeps_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (terminal.show_line, terminal.display):
        show("\n".join(["x" * 10_000, *["y" * 3_000] * 5, "fix: make deploy"]))
        *many, last = capsys.readouterr().out.splitlines()
        assert last == "fix: make deploy"
        assert [*map(len, many)] == [4_000, *[3_000] * 5]
        show("y\n" * 100_000 + "fix: make deploy")
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) < 2_000
        assert shown[-1] == "fix: make deploy"


def test_a_text_that_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]s3://bucket[/red] :smile: [1, 2] 'x'"
    terminal.display(text, terminal.table([(text, "x")]))
    assert capsys.readouterr().out == f"{text}\n{text}  x\n"
    assert lines(drawn(f"display({text!r})")) == [text]


@pytest.mark.parametrize("columns", [100, 60])
def test_a_command_can_be_copied_from_a_narrow_terminal(columns: int) -> None:
    command = "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-1 --desired-value 16"
    seen = drawn(f"display_commands([('vCPU quota', {command!r}), ('token', 'make secret')])", columns)
    assert lines(seen) == ["  vCPU quota", f"    {command}", "  token", "    make secret"]
    assert lines(drawn("display_commands([('token', 'make secret')])", columns)) == ["  token  make secret"]


def test_next_commands_keep_their_column_where_the_explanation_wraps() -> None:
    seen = lines(drawn("next_commands(('make status RUN=rn50-20260101-ab12', 'step, images/s, dollars, and why'))", 60))
    assert seen[2].startswith("  make status RUN=rn50-20260101-ab12  step, images/s,")
    assert seen[3].strip() == "dollars, and why"


def test_a_live_line_is_gone_at_the_end_and_never_wraps_into_many() -> None:
    shown = f"live.show('first'); live.show({LONG!r}); live.show('second')"
    seen = drawn(f"with LiveLine() as live: {shown}\nprint('end')", 60)
    assert "first" in seen
    assert "second" in seen
    last = seen[seen.rindex("second") :]
    assert "\x1b[2K" in last
    assert last.endswith("end\r\n")


def test_ctrl_c_on_a_live_line_gives_the_cursor_back() -> None:
    seen = drawn("with LiveLine() as live:\n    live.show('waiting')\n    time.sleep(60)", waiting=CTRL_C)
    assert seen.index("\x1b[?25l") < seen.rindex("\x1b[?25h")


def test_to_a_file_every_new_text_of_a_live_line_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.LiveLine() as live:
        for text in ("one", "one", LONG):
            live.show(text)
    assert capsys.readouterr().out == f"one\n{LONG}\n"


@pytest.mark.parametrize("columns", [100, 60])
def test_preflight_on_a_terminal_has_straight_columns(aws: Aws, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    command = [sys.executable, "-m", "infra", "-c", f"image_uri={GIVEN_IMAGE}", "preflight"]
    code, seen = on_a_terminal(command, columns=columns)
    assert code == 3
    table, _, below = "\n".join(lines(seen)).partition(" failed\n\nfix:\n")
    *rows, _ = table.splitlines()
    assert max(map(len, rows)) <= columns
    starts = {
        line.index(state)
        for line in rows
        for state in ("  failed", "  unknown", "  ok ", "  not needed")
        if state in line
    }
    assert len(starts) == 1
    assert any("not needed" in line for line in rows)
    assert len(rows) >= 20
    assert "aws configure" in below
    assert {line[: min(starts)].rstrip() for line in rows} >= {"credentials", "vCPU quota of on-demand", "Docker"}


def test_preflight_to_a_file_has_a_line_for_each_check(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "60")
    said = infra("-c", f"image_uri={GIVEN_IMAGE}", "preflight").said
    assert "\x1b" not in said
    assert f"Docker                   not needed  the image is given: {GIVEN_IMAGE}\n" in said


def test_the_plain_table_of_many_rows_looks_as_rich_draws_it_and_steers_no_terminal() -> None:
    rows = [("rn50-1", "done", "1,000 of 1,000", "63.00 %", "$0.80", "4 min"), ("b", "x\x1b[2J", "0", "7 %", "$12", "")]
    header = ("run", "state", "step", "top-1", "dollars", "age")
    lines = terminal.plain_table(rows, header).splitlines()
    assert lines == [line.rstrip() for line in terminal.plain(terminal.table(rows, header)).splitlines()]
    assert lines[1].startswith("rn50-1  done")
    assert "\x1b" not in lines[2]
