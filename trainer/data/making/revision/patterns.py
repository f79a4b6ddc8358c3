"""Few patterns for many files: what tells the hub's client which files of a dataset are wanted."""

from __future__ import annotations

import glob
from collections.abc import Collection


def fetch_patterns(wanted: Collection[str], others: Collection[str]) -> dict[str, list[str]]:
    """What tells the hub's client to fetch the wanted files alone. It tries each on each file: few are quick."""
    allow, ignore = _covering(wanted, others), _covering(others, wanted)
    return {"allow_patterns": allow} if len(allow) <= len(ignore) else {"ignore_patterns": ignore}


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
