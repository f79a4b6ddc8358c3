"""How the code is divided: rooms, arrows between them, and the largest folder, file and function, before and after.

make bench-structure ARGS="--before COMMIT"

A room is a module or a package of a level. An arrow goes from one room to another of the same level if anything inside
the first imports anything inside the second. Import-linter's graph (grimp) finds the imports.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import grimp

from benchmarks.machine import write

ROOT = Path(__file__).parents[1]
PACKAGES = ("trainer", "infra")
LEVELS = ("trainer", "trainer.data", "infra", "infra.operate")


def measure(checkout: Path) -> dict[str, Any]:
    """All figures of the packages in a folder."""
    folders = [folder for package in PACKAGES for folder in [checkout / package, *(checkout / package).rglob("*/")]]
    files = {folder: [path for path in folder.iterdir() if path.is_file()] for folder in folders}
    files = {folder: found for folder, found in files.items() if folder.name != "__pycache__"}
    modules = [path for found in files.values() for path in found if path.suffix == ".py"]
    functions = [function for path in modules for function in lengths(path, checkout)]
    return {
        "levels": levels(checkout),
        "most_files": max((len(found), str(folder.relative_to(checkout))) for folder, found in files.items()),
        "longest_file": max((path.read_text().count("\n"), str(path.relative_to(checkout))) for path in modules),
        "longest_function": max(functions),
        "files_over_300_lines": sum(path.read_text().count("\n") > 300 for path in modules),
        "functions_over_60_lines": sum(lines > 60 for lines, _ in functions),
    }


def levels(checkout: Path) -> dict[str, dict[str, int]]:
    """By package: its rooms and the arrows between them."""
    sys.path.insert(0, str(checkout))
    try:
        graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    finally:
        sys.path.pop(0)
    found = {}
    for level in LEVELS:
        rooms = graph.find_children(level)
        inside = {module: room for room in rooms for module in {room, *graph.find_descendants(room)}}
        arrows = {
            (inside[module], inside[imported])
            for module in inside
            for imported in graph.find_modules_directly_imported_by(module)
            if imported in inside and inside[module] != inside[imported]
        }
        found[level] = {"rooms": len(rooms), "arrows": len(arrows)}
    return found


def lengths(path: Path, checkout: Path) -> list[tuple[int, str]]:
    """Lines and name of each function in a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.relative_to(checkout)}: {node.name}")
        for node in nodes
    ]


def at(commit: str, folder: Path) -> Path:
    """The packages as they were at a commit."""
    archive = subprocess.run(["git", "archive", commit, *PACKAGES], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def rows(figures: dict[str, Any]) -> dict[str, str]:
    """What is printed of the figures."""
    told = {f"rooms in {level}": str(counts["rooms"]) for level, counts in figures["levels"].items()}
    told |= {f"arrows in {level}": str(counts["arrows"]) for level, counts in figures["levels"].items()}
    for name in ("most_files", "longest_file", "longest_function"):
        number, where = figures[name]
        told[name.replace("_", " ")] = f"{number} ({where})"
    return told | {name.replace("_", " "): str(figures[name]) for name in figures if "_over_" in name}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-structure", description="Counts rooms and arrows.")
    parser.add_argument("--before", default="f2853a4", metavar="COMMIT", help="compare with this commit (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before, now = measure(at(options.before, Path(folder))), measure(ROOT)
    left, right = rows(before), rows(now)
    print(f"{'':28}{options.before:52}now")
    for name in left:
        print(f"{name:28}{left[name]:52}{right[name]}")
    path = write("structure", {"before": {"commit": options.before, **before}, "now": now})
    print(f"\nwritten to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
