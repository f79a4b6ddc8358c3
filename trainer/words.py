"""Runs the command of its arguments with the words of ARGS= after them: `python -m trainer.words COMMAND…`.

`make` calls it. A shell would run $(…) and backquotes that stand in ARGS=; here quotes group words, and nothing else
has a meaning. Standard library only.
"""

from __future__ import annotations

import os
import shlex
import sys

from trainer.contract import Exit, UserError
from trainer.text import say, show_name


def split_words(text: str) -> list[str]:
    """The words of ARGS=, as a shell would group them. UserError if a quote is open."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"ARGS={show_name(text)} cannot be split into words ({error}): close each quote, or write \\' for one"
        ) from error


def replace_process(command: list[str]) -> None:
    """Become the command. Its signals, its exit code and its terminal are then its own."""
    os.execvp(command[0], command)


def main() -> int:
    try:
        replace_process([*sys.argv[1:], *split_words(os.environ.get("ARGS", ""))])
    except (UserError, OSError) as error:
        say(f"error: {error}")
    return Exit.USER


if __name__ == "__main__":
    raise SystemExit(main())
