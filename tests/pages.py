"""The Markdown pages of this repository, as far as their tests read them: blocks, sentences, links, headings, names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests import ROOT

FENCE = re.compile(r"\s*```(.*)$")
ITEM = re.compile(r"^\s*([-*]|\d+\.)\s+")
SENTENCE_END = re.compile(r"""(?<=[.!?:;])["')*_]*\s+""")


@dataclass(frozen=True)
class Block:
    """What stands between two fences. `info` is what follows the first: the language, and a mark."""

    where: str  # page and line, for messages
    info: str
    text: str


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def _parts(self) -> tuple[list[Block], list[str]]:
        """The blocks, and the lines outside of them."""
        blocks: list[Block] = []
        lines: list[str] = []
        opened: tuple[int, str, list[str]] | None = None
        for number, line in enumerate(self.path.read_text().splitlines(), 1):
            fence = FENCE.match(line)
            if fence and opened is None:
                opened = (number, fence[1].strip(), [])
            elif fence and opened is not None:
                begin, info, inside = opened
                blocks.append(Block(f"{self.name}:{begin}", info, "\n".join(inside)))
                opened = None
                lines.append("")
            elif opened is not None:
                opened[2].append(line.strip() if line.startswith("   ") else line)
            else:
                lines.append(line)
        assert opened is None, f"{self.name}: a fence without an end"
        return blocks, lines

    @property
    def blocks(self) -> list[Block]:
        return self._parts[0]

    @property
    def text(self) -> str:
        return "\n".join(self._parts[1])

    def sentences(self) -> Iterator[str]:
        """Of paragraphs, list items and table cells; none reaches across two of them."""
        for unit in self._units():
            yield from SENTENCE_END.split(" ".join(unit.split()))

    def _units(self) -> Iterator[str]:
        unit = ""
        for line in self._parts[1]:
            is_table = line.lstrip().startswith("|")
            if is_table or not line.strip() or ITEM.match(line) or line.startswith(("#", "<", "!")):
                yield unit
                unit = ""
            if is_table:
                yield from re.split(r"(?<!\\)\|", line)
            elif not line.startswith(("#", "<", "!")):
                unit += " " + ITEM.sub("", line)
        yield unit

    def anchors(self) -> set[str]:
        """Of its headings, as GitHub makes them."""
        titles = [re.sub(r"^#+\s+", "", line) for line in self._parts[1] if line.startswith("#")]
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    def links(self) -> list[str]:
        """Where links and pictures of this repository lead to."""
        found = re.findall(r"\]\(([^)\s]+)\)", self.text)
        return [target for target in found if not re.match(r"[a-z]+:", target)]

    def names(self) -> list[str]:
        """What stands in backticks within the text."""
        return [name.strip() for _, name in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", self.text)]


def pages() -> list[Page]:
    """Those that a reader meets."""
    top = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
    return [Page(path) for path in (*top, *sorted((ROOT / "docs").rglob("*.md")))]
