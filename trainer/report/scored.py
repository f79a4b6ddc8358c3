"""The part of the page about what `make evaluate` found: scores, the worst classes, the surest mistakes.

What lies in the store may be anybody's. So it is checked value by value, and what is odd is skipped with a message.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.contract import SHEET_COLUMNS, run_key
from trainer.imagenet import class_names
from trainer.report.elements import fact_list, show_moment, wide_table
from trainer.report.summary import percent
from trainer.text import say
from trainer.values import as_list, as_number, as_object, as_text, as_time, as_whole, parse_object

if TYPE_CHECKING:
    from trainer.store import ObjectStore

MOST_SHOWN = 6  # evaluations
WORST_SHOWN = 12  # classes
MOST_SHEET_BYTES = 130_000  # MOST_SHOWN of them are 1.1 MB as text, and charts .6 MB: the page stays below 2 MB
SCORES = {
    "top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "calibration error",
    "ece_half": "calibration error, one half", "ece_half_calibrated": "the same with temperature",
    "temperature": "temperature",
}  # fmt: skip
PLAIN_NUMBERS = frozenset({"loss", "temperature"})  # all others are shares


@dataclass(frozen=True)
class Scored:
    """One evaluation as the store has it, and its sheet of mistakes, a JPEG."""

    name: str
    found: Mapping[str, Any]
    sheet: bytes


def read_scored(store: ObjectStore, run_id: str) -> list[Scored]:
    """The evaluations of a run, the newest first. Raises StoreError."""
    from trainer.store import NotFoundError

    folder, every = run_key(run_id, "evaluations/"), list[Scored]()
    for key in sorted(info.key for info in store.list(folder)):
        if not key.endswith(".json"):
            continue
        name = key.removeprefix(folder).removesuffix(".json")
        try:
            found = _record_of(parse_object(store.get(key)))
        except ValueError as error:
            say(f"{store.describe(key)} is not what `make evaluate` writes ({error}): skipped")
            continue
        try:
            sheet = store.get(f"{folder}{name}.jpg")
        except NotFoundError:
            sheet = b""
        every.append(Scored(name, found, sheet if len(sheet) <= MOST_SHEET_BYTES else b""))
    return sorted(every, key=lambda one: -one.found["time"])[:MOST_SHOWN]


def _record_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record is shown. Raises ValueError."""
    model, data = as_object("model", given.get("model")), as_object("data", given.get("data"))
    scores = as_object("scores", given.get("scores"))
    speed, mistakes = as_object("speed", given.get("speed", {})), as_list("mistakes", given.get("mistakes", []))
    latency = speed.get("latency_seconds")
    return {
        "time": as_time("time", given.get("time")),
        "step": as_whole("model.step", model.get("step", 0)),
        "weights": as_text("model.weights", model.get("weights", "")),
        "images": as_whole("data.images", data.get("images")),
        "scores": {name: float(as_number(name, value)) for name, value in scores.items()},
        "speed": float(as_number("images_per_second", speed.get("images_per_second", 0))),
        "members_in_pass": as_whole("members_in_pass", speed.get("members_in_pass", 1)),
        "latency": None if latency is None else float(as_number("latency_seconds", latency)),
        "classes": [_class_of(as_object("a class", one)) for one in as_list("classes", given.get("classes", []))],
        "mistakes": [_mistake_of(as_object("a mistake", one)) for one in mistakes],
    }  # fmt: skip


def _class_of(given: Mapping[str, Any]) -> tuple[str, int, float, list[tuple[str, int]]]:
    others = [as_object("an answer", one) for one in as_list("taken_for", given.get("taken_for", []))]
    return (
        as_text("name", given.get("name")), as_whole("images", given.get("images")),
        float(as_number("top1", given.get("top1"))),
        [(as_text("name", one.get("name")), as_whole("images", one.get("images"))) for one in others],
    )  # fmt: skip


def _mistake_of(given: Mapping[str, Any]) -> tuple[str, str, float]:
    label, answer = (as_text(name, given.get(name)) for name in ("label", "answer"))
    return label, answer, float(as_number("probability", given.get("probability")))


def scored_section(every: Sequence[Scored]) -> str:
    """HTML, "" where nothing was evaluated."""
    return "".join(_section(one) for one in every)


def _section(one: Scored) -> str:
    found = one.found
    when = show_moment(found["time"])
    about = f"{found['images']:,} images, step {found['step']:,}, {found['weights'] or 'unknown'} weights, {when}"
    told = _told_scores(found["scores"])
    if found["members_in_pass"] == 1:  # else it is the speed of several
        told.append(("images/s", f"{found['speed']:,.0f}"))
    if found["latency"] is not None:
        told.append(("one image", f"{found['latency'] * 1000:.1f} ms"))
    return (
        f"<section><h2>Scored on {html.escape(one.name)}</h2>"
        f'<p class="note above">{html.escape(about)}</p>{fact_list(told)}{_worst(found["classes"])}{_mistakes(one)}'
        "</section>"
    )


def _told_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    told = []
    for name, value in scores.items():
        prefix, _, kind = name.partition("/")
        label = SCORES.get(kind, kind) if prefix == "val" else f"{SCORES.get(kind, kind)}, {prefix}"
        told.append((label, f"{value:.4g}" if kind in PLAIN_NUMBERS else percent(value)))
    return told


def _worst(classes: Sequence[tuple[str, int, float, list[tuple[str, int]]]]) -> str:
    shown = [one for one in classes if one[2] < 1][:WORST_SHOWN]
    if not shown:
        return ""
    body = []
    for name, images, top1, others in shown:
        taken = ", ".join(f"{_called(other)} ({count:,})" for other, count in others)
        cells = f"<td>{_called(name)}</td><td>{images:,}</td><td>{percent(top1)}</td><td>{taken}</td>"
        body.append(f"<tr>{cells}</tr>")
    return wide_table("Worst classes", ("worst classes", "images", "top-1", "taken for"), body, "worst below")


def _mistakes(one: Scored) -> str:
    """The sheet cut into its tiles, each with its words."""
    mistakes = one.found["mistakes"]
    if not one.sheet or not mistakes:
        return ""
    rows, tiles = -(-len(mistakes) // SHEET_COLUMNS), []
    for number, (label, answer, probability) in enumerate(mistakes):
        row, column = divmod(number, SHEET_COLUMNS)
        place = f"{column / (SHEET_COLUMNS - 1):.4%} {row / max(1, rows - 1):.4%}"
        words = f"{_called(label)}, taken for {_called(answer)}, {100 * probability:.0f} %"
        tiles.append(
            f'<figure><i role="img" aria-label="{words}" style="background-position:{place};'
            f'background-size:{SHEET_COLUMNS * 100}% {rows * 100}%"></i><figcaption>{_called(label)}, taken for '
            f"<b>{_called(answer)}</b> <span>{100 * probability:.0f} %</span></figcaption></figure>"
        )
    sheet = base64.b64encode(one.sheet).decode()
    return (
        f'<h3>The surest mistakes</h3><div class="mistakes" style="--sheet:url(data:image/jpeg;base64,{sheet})">'
        f"{''.join(tiles)}</div>"
    )


def _called(name: str) -> str:
    return html.escape(class_names([name])[0])
