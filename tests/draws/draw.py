"""One draw: everything follows from its seed."""

from __future__ import annotations

import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.draws.damages import DAMAGES
from tests.draws.forms import (
    folder_with_test,
    image_folder,
    metadata_folder,
    parquet,
    several_configs,
    web_dataset,
)
from tests.draws.imagenet import archives, flat_val, kaggle_folder
from tests.draws.judge import Options, WrongError
from tests.draws.moments import MOMENTS, Lab
from tests.draws.source import Source
from tests.draws.table_damages import TABLE_DAMAGES

Form = Callable[[random.Random], Source]
FORMS: tuple[tuple[Form, int], ...] = (  # and how often
    (image_folder, 6), (parquet, 6), (flat_val, 3), (archives, 3), (kaggle_folder, 1), (several_configs, 1),
    (folder_with_test, 1), (metadata_folder, 1), (web_dataset, 1),
)  # fmt: skip
TRIES = 12  # to find a damage that applies
HANGS_SECONDS = 60


@dataclass(frozen=True)
class Draw:
    seed: int
    form: str
    damages: tuple[str, ...]
    moment: str
    notes: tuple[str, ...]
    files: tuple[str, ...]
    said: tuple[str, ...]
    end: str  # right, refused or wrong
    wrong: str = ""


@contextmanager
def no_hang() -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise WrongError(f"it hangs: not done in {HANGS_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def draw(seed: int, folder: Path) -> Draw:
    """Prepare what this seed means, below `folder`, and judge it."""
    dice = random.Random(seed)
    (form,) = dice.choices([form for form, _ in FORMS], [weight for _, weight in FORMS])
    source = form(dice)
    damages = []
    for _ in range(dice.choice([0, 1, 1, 2])):
        for damage in dice.sample([*DAMAGES, *TABLE_DAMAGES], TRIES):
            if source.is_whole and damage(dice, source):
                damages.append(damage.__name__)
                break
    moment = dice.choice(MOMENTS)
    options = Options(dice.choice([3, 5, 1000]), dice.choice([0.001, 0.5, 0.5]), dice.random() < 0.1)
    lab = Lab(dice, folder / str(seed), source, options, later=dice.random() < 0.5)
    wrong = ""
    try:
        with no_hang():
            lab.write()
            moment(lab)
    except WrongError as error:
        wrong = str(error)
    except Exception as error:  # noqa: BLE001  # of what is tested, or of the judge: to be seen and replayed
        wrong = f"{type(error).__name__}: {error} {traceback.format_exc(limit=-4)}"
    files = tuple(sorted(str(path.relative_to(lab.folder)) for path in lab.folder.rglob("*") if not path.is_dir()))
    shutil.rmtree(lab.folder, ignore_errors=True)
    end = "wrong" if wrong else "refused" if lab.outcomes[-1].refused else "right"
    said = tuple(f"{outcome.said}{outcome.refused and f'REFUSED: {outcome.refused}'}" for outcome in lab.outcomes)
    return Draw(seed, source.form, tuple(damages), moment.__name__, tuple(source.notes), files, said, end, wrong)
