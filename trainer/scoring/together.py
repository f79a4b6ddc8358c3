"""Several members as one that is scored: an ensemble, or a soup; with what each has beside the scores of any member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.scoring.data import ScoredSet
from trainer.scoring.ensembles import agreement_of, average_predictions, ensemble_json, ensemble_rows, gain_of
from trainer.scoring.halves import halves_of, split_halves
from trainer.scoring.measures import measure
from trainer.scoring.passes import Answers
from trainer.scoring.predictions import Predictions
from trainer.scoring.record import Evaluation
from trainer.scoring.selection import Soup, soup_json, soup_rows
from trainer.scoring.soups import soup_card
from trainer.scoring.sweep import sweep_text
from trainer.scoring.table import columns, evaluation_text
from trainer.text import show_name, show_share


@dataclass(frozen=True)
class Together:
    """Of several members."""

    evaluation: Evaluation
    facts: dict[str, Any]  # for JSON
    rows: list[tuple[str, str]]  # for the terminal

    def to_json(self) -> dict[str, Any]:
        return self.evaluation.to_json() | self.facts

    def text(self) -> str:
        return "\n".join([evaluation_text(self.evaluation), "", *columns(self.rows)])


def score_ensemble(
    answers: Sequence[Answers], alone: Sequence[Evaluation], scored: ScoredSet, folder: Path
) -> Together:  # fmt: skip
    """Members as one, by the mean of their probabilities. `alone` are their own scores. Raises UserError."""
    parts, names = [one.predictions for one in answers], [one.name for one in alone]
    mean = Predictions(folder / "ensemble", parts[0].images, parts[0].classes)
    average_predictions(parts, mean)
    agreement = agreement_of(parts, scored.labels)
    halves = split_halves(scored.labels)
    *each, ours = [halves_of(part, scored.truth_of(part), halves) for part in (*parts, mean)]
    gain = gain_of(each, ours)
    card = soup_card([one.card for one in alone])
    latencies = [one.latency for one in alone]
    evaluation = replace(
        alone[0], name=",".join(names), prefix=f"{alone[0].prefix}_ensemble", sweep=None,
        card=replace(card, network=" + ".join(dict.fromkeys(one.card.network for one in alone)), weights="ensemble"),
        measures=measure(mean, scored.truth_of(mean)), members_in_pass=1,
        seconds=sum({one.seconds for one in answers}),  # of each pass
        latency=None if None in latencies else sum(filter(None, latencies)),
    )  # fmt: skip
    return Together(evaluation, ensemble_json(names, agreement, gain), ensemble_rows(names, agreement, gain))


def score_soup(soup: Soup, evaluation: Evaluation) -> Together:
    """`evaluation` is that of the soup's answers to the scoring half."""
    top1 = evaluation.measures.top1
    named = replace(evaluation, prefix=f"{evaluation.prefix}_soup")
    return Together(named, soup_json(soup, top1), soup_rows(soup, top1))


def members_text(found: Sequence[Evaluation]) -> str:
    """A line for each member."""
    prefix = found[0].prefix
    rows = [("member", f"{prefix}/top1", f"{prefix}/top5", f"{prefix}/loss", f"{prefix}/ece", "images/s")]
    for one in found:
        it = one.measures
        rows.append((
            show_name(one.name), show_share(it.top1), show_share(it.top5), f"{it.loss:.4f}", show_share(it.ece),
            f"{one.images_per_second:,.0f}" if one.members_in_pass == 1 else "-",
        ))  # fmt: skip
    lines = columns(rows)
    for one in found:
        if one.sweep:
            lines += ["", f"{show_name(one.name)}:", *sweep_text(one.sweep)]
    return "\n".join(lines)
