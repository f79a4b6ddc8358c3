"""Which members a soup has: all of them, or those that do no harm. They are chosen on one half of the images.

After Wortsman et al., "Model soups" (arXiv:2203.05482). There a part of the training images is held out to choose on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.contract import UserError
from trainer.data.progress import Track
from trainer.learning.norms import IMAGES, norms_of
from trainer.learning.world import World
from trainer.recipes.config import Config
from trainer.scoring.data import ScoredSet, open_training, own_data
from trainer.scoring.ensembles import best_choice
from trainer.scoring.half_split import half_of
from trainer.scoring.halves import CHOOSING, CHOOSING_HALF, SCORING, SCORING_HALF, Halves, halves_of, split_halves
from trainer.scoring.members import Member
from trainer.scoring.passes import Answers, run_passes
from trainer.scoring.plain_folders import is_plain_folder
from trainer.scoring.predictions import LEFT_OUT
from trainer.scoring.soups import renew_statistics, soup_card, soup_of, statistics_config, statistics_pixels
from trainer.scoring.views import Views
from trainer.setup import Data
from trainer.store import ObjectStore
from trainer.text import show_name, show_share

SoupKind = Literal["none", "uniform", "greedy"]


@dataclass(frozen=True, kw_only=True)
class Soup:
    """What was made of members, and how it did."""

    kind: SoupKind
    member: Member
    names: tuple[str, ...]  # of all that might be in it
    chosen: tuple[str, ...]  # of those that are
    tried: tuple[tuple[str, float], ...]  # of a greedy one: each that was added, and the top-1 of the choosing half
    answers: Answers  # to the scoring half
    scored: ScoredSet  # these images
    halves: tuple[Halves, ...]  # of all that might be in it
    images: int  # of training, for the statistics; 0: of one member alone, or of networks that have none
    source: str  # the name of their data


@dataclass(frozen=True)
class Kitchen:
    """What making and tasting soups takes."""

    scored: ScoredSet
    training: Data | None  # None: these networks have no statistics, see `open_statistics`
    trained: Config  # how training images are shown
    base: Config
    world: World
    folder: Path  # for predictions
    views: Views

    def mean_of(self, members: Sequence[Member], name: str) -> tuple[Member, int]:
        """The soup, and how many training images its statistics come from: 0 if it needs none."""
        soup = soup_of(members, name)
        if len(members) < 2 or self.training is None:
            return soup, 0
        config = statistics_config(soup.card, self.trained, self.base, self.training.index, self.world)
        with self._track(self.training.index.splits["train"].images) as alive:
            return soup, renew_statistics(soup, self.training, config, self.world, alive)

    def answers_of(self, soup: Member, half: int, name: str) -> Answers:
        """To one half of the images. `name` is that of a new folder."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)  # another process may be first
        return run_passes([soup], half_of(self.scored, half), self.base, self.world, folder, self.views)[0]

    @contextmanager
    def _track(self, images: int) -> Iterator[Callable[[int], None]]:
        if not self.world.is_main:
            yield lambda count: None
            return
        share = -(-min(IMAGES, images) // self.world.size)
        with Track(share, "images", "statistics of a soup, from training images") as track:
            yield track.add


def open_statistics(
    members: Sequence[Member], data: str, is_set: bool, scratch: Path, store: ObjectStore, world: World, workers: int
) -> Data | None:
    """The training images that statistics of a soup come from: of the very data that the first member was trained on.

    Where that is neither on this machine nor in the store, they are those of DATA=, if it has any: a robustness set and
    a plain folder have none. None for networks without such statistics. All processes call it, before any pass.
    Raises UserError, StoreError.
    """
    first = members[0]
    if not norms_of(first.model):
        return None
    if data and (is_set or is_plain_folder(data)) and not own_data(first.card, scratch, store):
        raise UserError(
            f"--soup takes training images for the statistics of BatchNorm. Those that {first.name} was trained on are "
            f"neither on this machine nor in {store.uri}, and DATA={data} has none: name prepared data, or leave it out"
        )
    pixels = statistics_pixels(soup_card([one.card for one in members]))
    return open_training(data, scratch, store, first.card, pixels, world, workers)


def make_soup(kind: SoupKind, answers: Sequence[Answers], kitchen: Kitchen) -> Soup:
    """A soup of members, whose answers to all images are known. All processes call it. Raises UserError.

    Members are compared, and those of a greedy soup are chosen, on one half of the images; it is scored on the other.
    """
    members, labels = [one.member for one in answers], kitchen.scored.labels
    if (images := int((labels != LEFT_OUT).sum())) < 2 * 2:
        raise UserError(f"{images} images are too few for a soup: half of them choose it, the others score it")
    parts = split_halves(labels)
    halves = [halves_of(one.predictions, kitchen.scored.truth_of(one.predictions), parts) for one in answers]
    tried: list[tuple[str, float]] = []

    def soup_top1(candidate: tuple[Member, ...]) -> float:
        soup, _ = kitchen.mean_of(candidate, "soup")
        found = kitchen.answers_of(soup, CHOOSING, f"soup-{len(tried)}")
        top1 = _share_right(found, half_of(kitchen.scored, CHOOSING))
        tried.append((candidate[-1].name, top1))
        return top1

    chosen = tuple(members)
    if kind == "greedy":
        chosen = choose_greedily(members, [half.choosing for half in halves], soup_top1)
    soup, images = kitchen.mean_of(chosen, f"{kind} soup")
    return Soup(
        kind=kind, member=soup, names=tuple(one.name for one in members), chosen=tuple(one.name for one in chosen),
        tried=tuple(tried), answers=kitchen.answers_of(soup, SCORING, "soup"),
        scored=half_of(kitchen.scored, SCORING),
        halves=tuple(halves), images=images, source=kitchen.training.index.name if kitchen.training and images else "",
    )  # fmt: skip


def _share_right(answers: Answers, scored: ScoredSet) -> float:
    truth = scored.truth_of(answers.predictions)
    hits = sum(
        int((rows.argmax(axis=1) == truth[first : first + len(rows)]).sum())
        for first, rows in answers.predictions.chunks()
    )
    return hits / len(truth)


def choose_greedily(
    members: Sequence[Member], top1: Sequence[float], soup_top1: Callable[[tuple[Member, ...]], float]
) -> tuple[Member, ...]:
    """The greedy soup: from the best member down, each stays whose soup with those before is no worse than theirs.

    `top1` are the members' own, and `soup_top1` is asked for that of a soup: all on the same images, which must not be
    those that the soup is scored on afterwards.
    """
    ranked = sorted(range(len(members)), key=lambda number: -top1[number])
    chosen: tuple[Member, ...] = (members[ranked[0]],)
    best = top1[ranked[0]]
    for number in ranked[1:]:
        candidate = (*chosen, members[number])
        if (found := soup_top1(candidate)) >= best:
            chosen, best = candidate, found
    return chosen


def soup_json(soup: Soup, top1: float) -> dict[str, Any]:
    """What a soup has beside the scores of any member. `top1` is its own, of the scoring half. Shares are fractions."""
    best = best_choice(soup.halves)
    return {
        "kind": soup.kind, "members": list(soup.names), "chosen": list(soup.chosen),
        "chosen_on": CHOOSING_HALF, "scored_on": SCORING_HALF,
        "tried": [{"added": name, "choosing_top1": found} for name, found in soup.tried],
        "best_member": soup.names[best], "best_member_top1": soup.halves[best].scoring,
        "gain": top1 - soup.halves[best].scoring, "statistics_images": soup.images,
        "statistics_data": soup.source,
    }  # fmt: skip


def soup_rows(soup: Soup, top1: float) -> list[tuple[str, str]]:
    """The same for the terminal, as cells. Shares are percent."""
    best, shown = best_choice(soup.halves), [show_name(name) for name in soup.names]
    rows = [
        (
            "soup",
            f"the mean of the weights of {', '.join(map(show_name, soup.chosen))}: {len(soup.chosen)} of "
            f"{len(soup.names)} members; chosen on {CHOOSING_HALF}, and scored on {SCORING_HALF}",
        ),
        (
            "gain",
            f"{100 * (top1 - soup.halves[best].scoring):+.2f} points over {shown[best]}, the best member on "
            f"{CHOOSING_HALF}: {show_share(top1)} and {show_share(soup.halves[best].scoring)} on {SCORING_HALF}",
        ),
    ]
    if soup.images:
        rows.append(("statistics", f"of BatchNorm, from {soup.images:,} training images of {show_name(soup.source)}"))
    for name, found in soup.tried:
        outcome = "kept" if name in soup.chosen else "left out"
        rows.append(("", f"with {show_name(name)}: {show_share(found)} on {CHOOSING_HALF}, {outcome}"))
    if top1 < min(half.scoring for half in soup.halves):
        rows.append(("note", "it is worse than each member: weights have a good mean where runs began with the same"))
    return rows
