"""What the store knows of released weights: their scores, their training, its cost, evaluations, runs of other seeds.

It only reads. What nobody measured is None, or missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trainer.compare import read_outcomes, unlike_runs
from trainer.contract import UserError, run_key
from trainer.report import read_shown
from trainer.report.summary import PREFIXES, check_result, validation_scores
from trainer.telemetry.metrics import read_metrics
from trainer.telemetry.samples import kwh_of, read_samples
from trainer.text import say
from trainer.values import as_number, as_object, as_text, as_whole, check_known

if TYPE_CHECKING:
    from trainer.model_card import ModelCard
    from trainer.store import ObjectStore

IN_COLUMNS = ("top1", "top5", "ece")
NOT_TOLD = ("loss", "ece_half", "ece_half_calibrated", "temperature")  # no shares of images, or of half of them


@dataclass(frozen=True)
class ScoreRow:
    """Of weights on some images, as fractions."""

    images: str  # their name
    top1: float | None = None
    top5: float | None = None
    ece: float | None = None
    more: str = ""  # other scores, as text
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # that these images had


@dataclass(frozen=True, kw_only=True)
class History:
    """Of weights. Shares are fractions."""

    top1: float | None = None  # of the validation after the step of these weights
    top5: float | None = None
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # of that validation
    is_finished: bool | None = None  # None: nobody knows of the run
    steps: int | None = None  # of the whole run, as what follows
    epochs: float | None = None
    seconds: float | None = None  # in training steps
    images_per_second: float | None = None
    usd: float | None = None  # of its machines on AWS
    kwh: float | None = None  # of its GPUs, in all attempts
    evaluations: tuple[ScoreRow, ...] = ()


@dataclass(frozen=True)
class SeedScore:
    """The best validation of a run."""

    run_id: str
    seed: int
    top1: float


def read_history(store: ObjectStore, card: ModelCard) -> History:
    """Of the run that its own card names. Raises StoreError."""
    if card.weights not in PREFIXES:
        return History()
    rows = read_metrics(store, card.run_id)
    result = read_shown(store, run_key(card.run_id, "result.json"), check_result)
    spend = read_shown(store, run_key(card.run_id, "spend.json"), _check_spend)
    scores = [score for score in validation_scores(rows, card.weights) if score.step == card.step]
    return History(
        top1=scores[-1].top1 if scores else None, top5=scores[-1].top5 if scores else None, is_finished=bool(result),
        steps=result.get("steps"), epochs=result.get("epochs"), seconds=result.get("seconds"),
        images_per_second=result.get("images_per_second"), usd=spend.get("usd"),
        kwh=kwh_of(read_samples(store, card.run_id)),
        sizes=sizes_of(card), evaluations=tuple(read_evaluations(store, card)),
    )  # fmt: skip


def _check_spend(spend: dict[str, Any]) -> None:
    if as_number("usd", check_known(spend, "usd")) < 0:
        raise ValueError("usd is below 0")


def read_evaluations(store: ObjectStore, card: ModelCard) -> Iterator[ScoreRow]:
    """What `make evaluate` has found of these weights; of other weights of the run there may be more, which is said."""
    for info in store.list(run_key(card.run_id, "evaluations/")):
        if not info.key.endswith(".json"):  # the sheet of mistakes beside it
            continue
        record = read_shown(store, info.key, _check_record)
        if not record:
            continue
        scored = [record["model"].get(name) for name in ("step", "weights", "checkpoint_sha256")]
        if scored != [card.step, card.weights, card.checkpoint_sha256]:
            say(f"note: {store.describe(info.key)} scores other weights of the run: it is left out")
            continue
        groups: dict[str, dict[str, float]] = {}
        for name, value in record["scores"].items():
            prefix, _, score = name.rpartition("/")
            groups.setdefault(prefix, {})[score] = value
        for prefix, scores in groups.items():
            yield _score_row(prefix, record, scores, sizes_of(card))


def _score_row(prefix: str, record: dict[str, Any], scores: dict[str, float], usual: Mapping[str, int]) -> ScoreRow:
    images = str(record["data"].get("name", "")) if prefix in ("val", "val_tta") else prefix
    if prefix == "val_tta":
        images += f", views {record['views']['name']}"
    sizes = {name: record["model"].get(name, pixels) for name, pixels in usual.items()}
    more = [f"{name} {100 * value:.2f} %" for name, value in scores.items() if name not in {*IN_COLUMNS, *NOT_TOLD}]
    top1, top5, ece = (scores.get(name) for name in IN_COLUMNS)
    return ScoreRow(images, top1, top5, ece, ", ".join(more), sizes)


def sizes_of(card: ModelCard) -> dict[str, int]:
    """Pixels of a side, by their names."""
    return {"val_resize": card.val_resize, "val_crop": card.val_crop}


def _check_record(record: dict[str, Any]) -> None:
    model = as_object("model", check_known(record, "model"))
    for name in model.keys() & {"val_resize", "val_crop"}:
        as_whole(f"model.{name}", model[name])
    as_object("data", check_known(record, "data"))
    as_text("views.name", check_known(as_object("views", check_known(record, "views")), "name"))
    for name, value in as_object("scores", check_known(record, "scores")).items():
        as_number(f"scores.{name}", value)


def read_seeds(store: ObjectStore, names: Sequence[str]) -> tuple[SeedScore, ...]:
    """The runs, the best first. They must be finished, and differ in nothing but the seed. Raises UserError."""
    outcomes = read_outcomes(store, names)
    if odd := unlike_runs(outcomes):
        raise UserError(f"RUNS={','.join(names)} are not one recipe with several seeds: {'; '.join(odd)}")
    found = [SeedScore(one.run_id, one.config.seed, one.top1["best"]) for one in outcomes if one.config is not None]
    return tuple(sorted(found, key=lambda one: -one.top1))


def show_mean(shares: Sequence[float]) -> str:
    """76.54 ± 0.12 %, with the standard deviation of a sample. At least two."""
    return f"{100 * statistics.fmean(shares):.2f} ± {100 * statistics.stdev(shares):.2f} %"
