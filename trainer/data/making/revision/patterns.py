"""Few patterns for many files: what tells the hub's client which files of a dataset are wanted."""

from __future__ import annotations

import glob
from collections.abc import Collection


def fetch_patterns(wanted: Collection[str], others: Collection[str]) -> tuple[list[str] | None, list[str] | None]:
    """Patterns that allow and that ignore: with them the hub's client fetches the wanted files alone.

    It tries each pattern on each file, so one of the two is None, and the other is short.
    """
    allow, ignore = _covering(wanted, others), _covering(others, wanted)
    return (allow, None) if len(allow) <= len(ignore) else (None, ignore)


def _covering(paths: Collection[str], others: Collection[str]) -> list[str]:
    """Patterns that match all of these paths and none of the others: of whole folders, where that is possible."""
    mixed = {folder for path in others for folder in _folders_of(path)}
    return sorted(
        {
            next((f"{glob.escape(folder)}/*" for folder in _folders_of(path) if folder not in mixed), glob.escape(path))
            for path in paths
        }
    )


def _folders_of(path: str) -> list[str]:
    """The folders above a file, the topmost first."""
    return [path[:i] for i, sign in enumerate(path) if sign == "/"]
