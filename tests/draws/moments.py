"""When a preparation is interrupted, continued, repeated, or its source changed: a function for each moment.

Each calls `prepare` as the command does, and has every call judged.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.draws.changes import change
from tests.draws.judge import Options, Outcome, WrongError, judge
from tests.draws.pictures import SIDE
from tests.draws.source import Source
from tests.draws.store import MomentStore, nothing
from trainer.contract import UserError
from trainer.data.format import Copies
from trainer.data.making.prepare import prepare
from trainer.data.making.revision.manifest import SourceMemory
from trainer.store import StoreError, naming_the_fix

TICK = 0.02  # seconds: longer than the step of a file system's clock
LATER_NS = 10 * 10**9  # after so long a file is settled, and may be known by size and times


@contextmanager
def standard_error() -> Iterator[list[str]]:
    """What is written there, once it is over."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


@dataclass
class Lab:
    """Where a draw happens."""

    dice: random.Random
    folder: Path
    source: Source
    options: Options
    later: bool  # files are settled when they are read, so that what was remembered of them is believed
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "photos"

    def write(self) -> None:
        time.sleep(TICK)
        self.source.write(self.data)

    def call(
        self, store: MomentStore | None = None, *, at_image: int = 0, then: Callable[[], None] = nothing,
        data: Path | None = None, scratch: str = "scratch",
    ) -> Outcome:  # fmt: skip
        """One preparation; `then` is called at its `at_image`-th image. WrongError for what no user may see."""
        (self.folder / "store").mkdir(exist_ok=True)
        store = store or MomentStore(self.folder / "store")
        images, real = 0, time.time_ns

        def now() -> int:
            return real() + LATER_NS * self.later

        def count(images_more: int) -> None:
            nonlocal images
            images += images_more
            if at_image and images - images_more < at_image <= images:
                then()

        prepared, refused, cut = None, "", False
        clock = mock.patch("trainer.data.making.revision.manifest.time.time_ns", now)
        with standard_error() as said, clock:
            try:
                with naming_the_fix("the store"):
                    prepared = prepare(
                        str(data or self.data), store, Copies((SIDE,), (SIDE,), 90), choices=self.source.choices,
                        workers=1, max_broken_share=self.options.max_broken_share, strict=self.options.strict,
                        images_per_shard=self.options.images_per_shard, memory=SourceMemory(self.folder / scratch),
                        progress=count,
                    )  # fmt: skip
            except UserError as error:
                refused = str(error)
            except (KeyboardInterrupt, StoreError):
                cut = True
        self.outcomes.append(Outcome(prepared, refused, said[0], cut))
        return self.outcomes[-1]

    def judge(self, outcome: Outcome, source: Source | None = None) -> None:
        if outcome.cut:
            raise WrongError("it ended as if it were interrupted, and nobody did that")
        judge(source or self.source, outcome, self.folder / "store", self.options)


def once(lab: Lab) -> None:
    lab.judge(lab.call())


def twice(lab: Lab) -> None:
    """The second call finds all done; or refuses with the same words."""
    first = lab.call()
    lab.judge(first)
    second = lab.call()
    lab.judge(second)
    if (second.prepared, second.refused) != (first.prepared, first.refused):
        raise WrongError(f"the second call does otherwise: {second.refused or second.prepared}")
    if first.prepared and not lab.options.strict and "already prepared" not in second.said:
        raise WrongError("the second call does not find what the first has made")


def elsewhere(lab: Lab) -> None:
    """Another machine prepares a copy of the folder into another store: the same index."""
    first = lab.call()
    lab.judge(first)
    (lab.folder / "other").mkdir()
    lab.source.write(lab.folder / "copy" / "photos")
    store = MomentStore(lab.folder / "other")
    second = lab.call(store, data=lab.folder / "copy" / "photos", scratch="scratch of the other")
    if second.prepared != first.prepared:
        raise WrongError(f"a copy gives other data: {second.refused or second.prepared} and not {first.prepared}")
    if second.prepared and first.refused:
        raise WrongError(f"a copy is prepared, and the folder is not: {first.refused}")


def _stop(lab: Lab) -> Outcome:
    """A call that is interrupted somewhere: at an image, or at a request to the store, perhaps with its answer lost."""
    dice = lab.dice

    def interrupt() -> None:
        raise KeyboardInterrupt

    def fail() -> None:
        raise StoreError("the store does not answer")

    if dice.random() < 0.4:
        return lab.call(at_image=dice.randint(1, max(1, len(lab.source.truth))), then=interrupt)
    then, after = dice.choice([interrupt, fail]), dice.random() < 0.5
    return lab.call(MomentStore(lab.folder / "store", dice.randint(1, 30), then, after))


def stopped(lab: Lab) -> None:
    """The same command continues, and ends with what one call would have made."""
    first = _stop(lab)
    if not first.cut:
        lab.judge(first)
    second = lab.call()
    lab.judge(second)
    if first.prepared and second.prepared != first.prepared:
        raise WrongError("what is continued is not what one call makes")


def stopped_and_changed(lab: Lab) -> None:
    """The source is another one when the command is given again."""
    first = _stop(lab)
    if not first.cut:
        lab.judge(first)
    if change(lab.dice, lab.source):
        lab.write()
    lab.judge(lab.call())


def prepared_and_changed(lab: Lab) -> None:
    """What was prepared is not taken for what is there now; nor the other way round, when the change is undone."""
    first, before = lab.call(), deepcopy(lab.source)
    lab.judge(first)
    if not change(lab.dice, lab.source):
        return
    lab.write()
    second = lab.call()
    lab.judge(second)
    if first.prepared and second.prepared and first.prepared.prefix == second.prepared.prefix:
        raise WrongError("SILENT: other contents have the same version")
    lab.source = before
    lab.write()
    third = lab.call()
    lab.judge(third)
    if (third.prepared, third.refused) != (first.prepared, first.refused):
        raise WrongError("what was there before is prepared otherwise now")


def changed_while_read(lab: Lab) -> None:
    """What is prepared is one of both, and never a mixture; or it is refused."""
    dice, before = lab.dice, deepcopy(lab.source)

    def now() -> None:
        if change(dice, lab.source):
            lab.write()

    if dice.random() < 0.5:
        outcome = lab.call(at_image=dice.randint(1, max(1, len(before.truth))), then=now)
    else:
        outcome = lab.call(MomentStore(lab.folder / "store", dice.randint(1, 12), now, dice.random() < 0.5))
    if "changed while the data was read" not in outcome.refused and "put it back" not in outcome.refused:
        try:
            lab.judge(outcome, before)
        except WrongError as error:
            try:
                lab.judge(outcome)
            except WrongError:
                raise error from None
    lab.judge(lab.call())


Moment = Callable[[Lab], None]
MOMENTS: tuple[Moment, ...] = (
    once, once, twice, elsewhere, stopped, stopped, stopped_and_changed, stopped_and_changed, prepared_and_changed,
    prepared_and_changed, changed_while_read, changed_while_read,
)  # fmt: skip
