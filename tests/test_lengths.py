"""No file and no function is longer than one reads at a sitting, tests and benchmarks included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60
HOLDS_FUNCTIONS = (ast.stmt, ast.excepthandler, ast.match_case)
PACKAGES = ("trainer", "infra", "tests", "benchmarks")


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a module, methods and inner ones included, and its lines from `def` to the end."""
    left: list[ast.AST] = [ast.parse(path.read_text())]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1
        left += [one for one in ast.iter_child_nodes(node) if isinstance(one, HOLDS_FUNCTIONS)]


def test_no_python_file_has_more_than_300_lines() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {path.partition("/")[0] for path in lines} == set(PACKAGES)
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}


def test_no_function_has_more_than_60_lines() -> None:
    lines = dict(function for path in modules() for function in functions(path))
    assert any("test_lengths.py" in name for name in lines)
    assert not {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FUNCTION}
