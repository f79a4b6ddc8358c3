"""Each module-level name of the trainer and of the AWS app has one meaning, so that a search finds one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests import ROOT

# What every command, or every module that has such a thing, calls the same.
CONVENTIONS = {
    "main",  # of a module that is run
    "Options", "CONFIG", "HELP", "configure", "run",  # of a command
    "__all__", "T",
}  # fmt: skip


def defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that statements at the top of a module define; imported ones are defined elsewhere."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=then, orelse=otherwise):
                yield from defined([*then, *otherwise])


def owners(roots: Iterable[Path]) -> dict[str, set[str]]:
    """Each name, and the modules that define it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in (path for root in roots for path in root.rglob("*.py")):
        for name in defined(ast.parse(path.read_text()).body):
            found[name].add(path.relative_to(ROOT).as_posix())
    return found


def test_no_two_modules_use_one_name_for_different_things() -> None:
    found = owners([ROOT / "trainer", ROOT / "infra"])
    assert found.keys() >= CONVENTIONS
    twice = {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}
    assert not {name: paths for name, paths in twice.items() if name not in CONVENTIONS}
