"""An evaluation as text for the terminal. Shares are percent here."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.imagenet import class_names
from trainer.scoring.calibration import CALIBRATION_BINS
from trainer.scoring.record import Evaluation, classes_of
from trainer.scoring.sweep import sweep_text
from trainer.text import show_name, show_share

WORST = 8  # classes that are shown


def evaluation_text(evaluation: Evaluation) -> str:
    """Scores, calibration, speed, and the worst classes."""
    card, found, scored = evaluation.card, evaluation.measures, evaluation.scored
    about = [
        card.network,
        f"step {card.step:,}" if card.run_id else "",
        f"{card.weights} weights" if card.weights else "",
    ]
    shown = f"resize {card.val_resize}, crop {card.val_crop}, {card.resize_mode}"
    if not evaluation.views.is_plain:
        shown += f"; the mean probability of {evaluation.views.count} views ({evaluation.views.name})"
    scores = [
        (f"{evaluation.prefix}/top1", show_share(found.top1)), (f"{evaluation.prefix}/top5", show_share(found.top5)),
        (f"{evaluation.prefix}/loss", f"{found.loss:.4f}"), (f"{evaluation.prefix}/ece", calibration_text(evaluation)),
    ]  # fmt: skip
    lines = [
        f"{show_name(evaluation.name)} ({', '.join(filter(None, about))}) on {show_name(scored.name)}",
        *columns([
            ("images", f"{found.images:,} of {len(scored.classes):,} classes; {shown}"),
            *((name, text) for name, text in scores if name in evaluation.scores),
            ("speed", speed_text(evaluation)),
            *(("note", said) for said in notes_of(evaluation)),
        ]),
    ]  # fmt: skip
    swept = ["", *sweep_text(evaluation.sweep)] if evaluation.sweep else []
    return "\n".join([*lines, *worst_lines(evaluation), *swept])


def notes_of(evaluation: Evaluation) -> list[str]:
    """How the data is scored, and what it lacks."""
    scored = evaluation.scored
    left_out = [f"{len(scored.left_out):,} images cannot be read, and are left out"] if scored.left_out else []
    return [*scored.notes, *left_out]


def calibration_text(evaluation: Evaluation) -> str:
    """The calibration error, and what a temperature makes of it."""
    found, after = evaluation.measures, evaluation.measures.calibration
    text = f"{show_share(found.ece)} expected calibration error, {CALIBRATION_BINS} bins"
    if after is None:
        return text
    before, mended = show_share(after.error_before), show_share(after.error_after)
    return (
        f"{text}; on one half of the images {before}, and {mended} after division of the logits by "
        f"{after.temperature:.3g}, fitted on the other half"
    )


def speed_text(evaluation: Evaluation) -> str:
    """Images per second, and the time of one."""
    base, members = evaluation.base, evaluation.members_in_pass
    latency = "" if evaluation.latency is None else f"{evaluation.latency * 1000:.1f} ms for one, median"
    if members > 1:
        return latency or f"not known of one alone: {members} models shared a pass of {evaluation.seconds:.1f} s"
    text = (
        f"{evaluation.images_per_second:,.0f} images/s with decoding ({evaluation.device}, {base.precision}, "
        f"{base.val_batch_size} at a time)"
    )
    return f"{text}; {latency}" if latency else text


def worst_lines(evaluation: Evaluation) -> list[str]:
    """The classes that are recognised least."""
    worst = [one for one in classes_of(evaluation)[:WORST] if one["top1"] < 1]
    if not worst:
        return ["  every image was recognised"]
    rows = [("worst classes", "images", "top-1", "taken for")]
    for one in worst:
        others = ", ".join(f"{called(other['name'])} ({other['images']})" for other in one["taken_for"])
        rows.append((called(one["name"]), f"{one['images']:,}", show_share(one["top1"]), others))
    return ["", *columns(rows)]


def called(name: str) -> str:
    """A class by its English name, where it has one."""
    return show_name(class_names([name])[0])


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with cells of equal width, two spaces apart."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
