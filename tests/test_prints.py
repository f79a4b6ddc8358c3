"""All text goes to a terminal through one filter for each half: nothing else prints, asks or writes to a stream."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

FILTERS = {"trainer/text.py", "infra/operate/terminal.py"}
OTHERS = {  # what prints, but not what others wrote to a terminal
    "trainer/upload/machines.py": "JSON for the supervisor, through a pipe",
    "trainer/upload/uploader.py": "JSON for the supervisor, through a pipe",
    "trainer/recipes/command_line.py": "JSON for the supervisor, through a pipe",
    "trainer/process/supervise.py": "the options' help, which only this program writes",
    "trainer/notices.py": "a document, while the image is built",
    "infra/app.py": "filters its one line itself: starting CDK needs nothing of the operator's",
    "infra/boot/handover.py": "the journal of a machine",
    "infra/guard/__init__.py": "a log in CloudWatch",
    "infra/guard/acting.py": "a log in CloudWatch",
    "infra/guard/prices.py": "a log in CloudWatch",
    "infra/operate/rehearsal/cleaning.py": "one fixed sentence, from a signal's handler, which may not wait for a lock",
}
STREAMS = {"stdout", "stderr"}


def prints(path: Path) -> Iterator[int]:
    """The lines on which a module prints, asks, or writes to a standard stream."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id="print" | "input")):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr="write" | "writelines", value=ast.Attribute(attr=stream))):
                if stream in STREAMS:
                    yield node.lineno
            case ast.Call(func=ast.Attribute(attr="write", value=ast.Name(id="os" | "tqdm"))):
                if isinstance(node.args[0], ast.Constant | ast.Call):
                    yield from () if "show_lines" in ast.dump(node) else (node.lineno,)


def test_only_the_filters_print() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): [*prints(path)]
        for half in ("trainer", "infra")
        for path in (ROOT / half).rglob("*.py")
    }
    assert all(found[name] for name in OTHERS)
    assert not {name: lines for name, lines in found.items() if lines and name not in FILTERS | OTHERS.keys()}
