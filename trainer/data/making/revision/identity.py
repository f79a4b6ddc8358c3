"""What DATA= is, by its content, before it is opened: prepared data is found by it, and records it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.data.format import Origin
from trainer.data.making.forms.source_formats import DIGITS_SIDE, DIGITS_VAL_EVERY
from trainer.data.making.forms.sources import Source, identify, open_planned, open_source, plan
from trainer.data.making.layout import CARD, LAYOUT_RULES, Choices, SourceLayout, lay_out, refused
from trainer.data.making.layout.plan import OPTIONS
from trainer.data.making.revision.hub import find_revision, read_text_file, whole_snapshot
from trainer.data.making.revision.manifest import Chosen, Known, SourceMemory, Watch, know_folder
from trainer.data.progress import ProgressListener


@dataclass(frozen=True)
class Identity:
    name: str
    content: str  # another one for other files, other contents, another order or other choices
    origin: Origin | None  # None of the digits: they come with a library
    how: str  # by which its content is known, for people
    open: Callable[[], tuple[Source, Watch | None]]


@dataclass(frozen=True)
class _Asked:
    """What the caller of `identity_of` gave."""

    data: str
    choices: Choices
    memory: SourceMemory
    workers: int
    progress: ProgressListener | None


def identity_of(
    data: str,
    choices: Choices,
    memory: SourceMemory,
    *,
    secrets_dir: str = "",
    workers: int = 0,
    progress: ProgressListener | None = None,
) -> Identity:
    """Find out what DATA= is. `progress` is told of bytes that are read or downloaded.

    A folder that is not as this machine remembers it is read. Of the hub only the listing of one commit and the card
    are fetched. Raises UserError and OSError.
    """
    name, form = identify(data)
    asked = _Asked(data, choices, memory, workers, progress)
    if form == "digits":
        if idle := list(choices.given):
            raise refused(data, f"{OPTIONS[idle[0]]} does not apply to the digits: leave it out")
        content = f"digits {DIGITS_SIDE}px val-every-{DIGITS_VAL_EVERY}"
        return Identity(name, content, None, "", lambda: (open_source(data), None))
    return _of_folder(name, asked) if form == "folder" else _of_hub(name, asked, secrets_dir)


def _of_folder(name: str, asked: _Asked) -> Identity:
    data, choices, folder = asked.data, asked.choices, Path(asked.data).expanduser()
    planned: list[SourceLayout] = []

    def choose() -> Chosen:
        planned.append(plan(data, folder, choices))
        return Chosen(_groups(planned[0]), _text(planned[0].decided), [CARD] if (folder / CARD).is_file() else [])

    known = know_folder(
        data, folder, choose, asked.memory,
        rules=f"{LAYOUT_RULES} {_text(choices.given)}", workers=asked.workers, progress=asked.progress,
    )  # fmt: skip

    def opened() -> tuple[Source, Watch]:
        watch = known.watch()
        with _told_if_changed(watch):
            layout = planned[0] if planned else plan(data, folder, choices)
            watch.check_files(_groups(layout))
            source = open_planned(data, folder, layout, choices)
        return source, watch

    return Identity(name, f"{known.origin.digest} {known.decided}", known.origin, _how(known), opened)


def _of_hub(name: str, asked: _Asked, secrets_dir: str) -> Identity:
    data, choices = asked.data, asked.choices
    revision = find_revision(data, secrets_dir)
    listing = {file.path: file.bytes for file in revision.files}
    card = read_text_file(revision, CARD) if CARD in listing else ""
    layout = lay_out(data, listing, choices, card=card)
    groups = _groups(layout)
    origin = revision.origin(groups)

    def opened() -> tuple[Source, Watch]:
        folder, known = whole_snapshot(revision, groups, asked.memory, asked.workers, asked.progress)
        watch = known.watch()
        with _told_if_changed(watch):
            source = open_planned(data, folder, layout, choices)
        return source, watch

    which = "the newest" if not revision.unasked else "the last that was downloaded"
    said = f"commit {revision.commit[:12]} is {'the one that DATA= names' if revision.account.commit else which}"
    return Identity(name, f"{origin.digest} {_text(layout.decided)}", origin, said, opened)


@contextmanager
def _told_if_changed(watch: Watch) -> Iterator[None]:
    """Raise UserError if the files have changed by the end, in place of what is wrong with a mixture of both."""
    try:
        yield
    finally:
        watch.check_all()


def _text(facts: Mapping[str, object]) -> str:
    return json.dumps(facts, sort_keys=True)


def _groups(layout: SourceLayout) -> dict[str, list[str]]:
    """The files that decide the content. Those of a split are called as the split."""
    truth = {f"classes of {role}": list(paths) for role, paths in layout.truth.items()}
    return {role: list(paths) for role, paths in layout.splits.items()} | truth


def _how(known: Known) -> str:
    files = f"{known.origin.files:,} file{'s' if known.origin.files > 1 else ''}"
    if known.remembered:
        return f"its {files} are unchanged, by size and time (--verify-source reads them again)"
    return f"its {files} were read and are the same"
