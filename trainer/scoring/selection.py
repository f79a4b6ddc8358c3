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
from trainer.learning.norms import IMAGES
from trainer.learning.world import World
from trainer.recipes.config import Config
from trainer.scoring.data import ScoredSet
from trainer.scoring.ensembles import best_choice
from trainer.scoring.half_split import half_of
from trainer.scoring.halves import CHOOSING, CHOOSING_HALF, SCORING, SCORING_HALF, Halves, halves_of, split_halves
from trainer.scoring.members import Member
from trainer.scoring.passes import Answers, run_passes
from trainer.scoring.soups import renew_statistics, soup_of, statistics_config
from trainer.scoring.views import Views
from trainer.setup import Data
from trainer.text import show_name

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
    images: int  # of training, for the statistics; 0: of one member alone, which keeps its own


@dataclass(frozen=True)
class Kitchen:
    """What making and tasting soups takes."""

    scored: ScoredSet
    training: Data
    trained: Config  # how training images are shown
    base: Config
    world: World
    folder: Path  # for predictions
    views: Views

    def mean_of(self, members: Sequence[Member], name: str) -> Member:
        """With statistics from training images."""
        soup = soup_of(members, name)
        if len(members) > 1:
            config = statistics_config(soup.card, self.trained, self.base, self.training.index, self.world)
            with self._track() as alive:
                renew_statistics(soup, self.training, config, self.world, alive)
        return soup

    def answers_of(self, soup: Member, half: int, name: str) -> Answers:
        """To one half of the images. `name` is that of a new folder."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)  # another process may be first
        return run_passes([soup], half_of(self.scored, half), self.base, self.world, folder, self.views)[0]

    @property
    def images(self) -> int:
        """That the statistics take."""
        return min(IMAGES, self.training.index.splits["train"].images)

    @contextmanager
    def _track(self) -> Iterator[Callable[[int], None]]:
        if not self.world.is_main:
            yield lambda count: None
            return
        with Track(-(-self.images // self.world.size), "images", "statistics of a soup, from training images") as track:
            yield track.add


def make_soup(kind: SoupKind, answers: Sequence[Answers], kitchen: Kitchen) -> Soup:
    """A soup of members, whose answers to all images are known. All processes call it. Raises UserError.

    Members are compared, and those of a greedy soup are chosen, on one half of the images; it is scored on the other.
    """
    members, labels = [one.member for one in answers], kitchen.scored.labels
    if len(labels) < 2 * 2:
        raise UserError(f"{len(labels)} images are too few for a soup: half of them choose it, the others score it")
    parts = split_halves(labels)
    halves = [halves_of(one.predictions, kitchen.scored.truth_of(one.predictions), parts) for one in answers]
    tried: list[tuple[str, float]] = []

    def soup_top1(candidate: tuple[Member, ...]) -> float:
        soup = kitchen.mean_of(candidate, "soup")
        found = kitchen.answers_of(soup, CHOOSING, f"soup-{len(tried)}")
        top1 = _share_right(found, half_of(kitchen.scored, CHOOSING))
        tried.append((candidate[-1].name, top1))
        return top1

    chosen = tuple(members)
    if kind == "greedy":
        chosen = choose_greedily(members, [half.choosing for half in halves], soup_top1)
    soup = kitchen.mean_of(chosen, f"{kind} soup")
    return Soup(
        kind=kind, member=soup, names=tuple(one.name for one in members), chosen=tuple(one.name for one in chosen),
        tried=tuple(tried), answers=kitchen.answers_of(soup, SCORING, "soup"),
        scored=half_of(kitchen.scored, SCORING),
        halves=tuple(halves), images=kitchen.images if len(chosen) > 1 else 0,
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
            f"{CHOOSING_HALF}: {top1:.2%} and {soup.halves[best].scoring:.2%} on {SCORING_HALF}",
        ),
    ]
    if soup.images:
        rows.append(("statistics", f"of BatchNorm, from {soup.images:,} training images"))
    for name, found in soup.tried:
        outcome = "kept" if name in soup.chosen else "left out"
        rows.append(("", f"with {show_name(name)}: {found:.2%} on {CHOOSING_HALF}, {outcome}"))
    if top1 < min(half.scoring for half in soup.halves):
        rows.append(("note", "it is worse than each member: weights have a good mean where runs began with the same"))
    return rows
