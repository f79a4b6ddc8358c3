"""The model card of a release, README.md: what the weights are, how to load them, what they score, what they cost.

Its first lines are YAML that the Hugging Face Hub reads. Pure functions. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from huggingface_hub import EvalResult, ModelCardData

from trainer.export.preprocessing import preprocessing_in_words
from trainer.model_card import CARD_FILE, ModelCard
from trainer.release.history import History, ScoreRow, SeedScore, show_mean, sizes_of
from trainer.scoring.members import TORCHVISIONS
from trainer.text import show_name, show_number

UNKNOWN_LICENSE = "unknown"  # one of the hub's own words
TIMM_SOURCE = "local-dir:."  # where the lines for timm load from
WHERE_TO_RUN = "Run these lines in the folder that has the files of this release."
WHERE_TO_RUN_OF_HUB = (
    "The lines for timm download what they need. Before you run others, download the files, and go to their folder."
)


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a release folder tells of itself."""

    name: str
    card: ModelCard
    classes: int
    parameters: int
    gmacs: float  # of one image, at the size that the network sees
    files: Mapping[str, str]  # form -> name of the file in the folder
    has_timm: bool
    left_out: Mapping[str, str]  # form -> why there is no such file
    license: str = UNKNOWN_LICENSE
    history: History = field(default_factory=History)
    seeds: Sequence[SeedScore] = ()


def readme_text(release: Release) -> str:
    """Markdown, with YAML before it."""
    card = release.card
    about = f"A {card.network} that tells {release.classes:,} classes apart"
    about += f", trained with the recipe `{_plain(card.recipe)}` of resnet-spot." if card.recipe else "."
    about += " Its weights are torchvision's." if _is_torchvisions(card) else ""
    parts = [
        f"---\n{front_matter(release)}\n---", f"# {_plain(release.name)}", about,
        "## Load", loading_text(release), "## Prepare an image", preparing_text(card), transforms_text(card),
        "## Scores", scores_text(release), "## Where it comes from", markdown_table(origin_rows(release)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def front_matter(release: Release) -> str:
    """The YAML, by the hub's own library."""
    data = _tag(release.card.data.get("name", ""))
    loads = {"timm": release.has_timm, "onnx": "onnx" in release.files}
    rows = [(data, row) for row in trained_rows(release)]
    rows += [(_tag(images_of(row, release.card)), row) for row in release.history.evaluations]
    results = [
        EvalResult(
            task_type="image-classification", dataset_type=name, dataset_name=name,
            metric_type="accuracy", metric_name=f"Accuracy ({metric})", metric_value=round(share, 6),
        )
        for name, row in dict(rows).items()
        for metric, share in (("top-1", row.top1), ("top-5", row.top5)) if share is not None
    ]  # fmt: skip
    return ModelCardData(
        license=release.license, library_name="timm" if release.has_timm else None,
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet-spot", *(one for one in ("timm", "onnx") if loads[one])],
        datasets=[data] if data != "unknown" else None, metrics=["accuracy"], model_name=release.name,
        eval_results=results or None,
    ).to_yaml()  # fmt: skip


def loading_text(release: Release) -> str:
    """Three lines for each library that can load what is there. A test runs them as they are."""
    card, parts = release.card, [WHERE_TO_RUN]
    if file := release.files.get("torchvision"):
        parts.append("With torchvision:")
        parts.append(_python(
            "import safetensors.torch, torchvision",
            f'model = torchvision.models.get_model("{card.network}", num_classes={release.classes}).eval()',
            f'model.load_state_dict(safetensors.torch.load_file("{file}"))',
        ))  # fmt: skip
    if release.has_timm:
        parts.append("With timm, and what it makes of an image:")
        parts.append(_python(
            "import timm",
            f'model = timm.create_model("{TIMM_SOURCE}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
        ))  # fmt: skip
    if file := release.files.get("onnx"):
        parts.append(f"With ONNX, where `images` is float32 of the shape (N, 3, {card.val_crop}, {card.val_crop}):")
        parts.append(_python(
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{file}")',
            'logits = session.run(None, {"images": images})[0]',
        ))  # fmt: skip
    if file := release.files.get("program"):
        parts.append("With PyTorch alone:")
        parts.append(_python("import torch", f'model = torch.export.load("{file}").module()'))
    parts += [f"There is no file for {form}: {reason}." for form, reason in release.left_out.items()]
    return "\n\n".join(parts)


def preparing_text(card: ModelCard) -> str:
    words = preprocessing_in_words(replace(card, classes=()))
    return f"{words} The names of the classes are in `{CARD_FILE}`, in this order." if card.classes else words


def transforms_text(card: ModelCard) -> str:
    mode = card.resize_mode.upper()
    return _python(
        "import torch",
        "from torchvision.transforms import v2",
        "transform = v2.Compose([",
        f"    v2.RGB(), v2.Resize({card.val_resize}, v2.InterpolationMode.{mode}, antialias=True),",
        f"    v2.CenterCrop({card.val_crop}), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),",
        f"    v2.Normalize({list(card.mean)}, {list(card.std)}),",
        "])",
    )


def scores_text(release: Release) -> str:
    card, history = release.card, release.history
    found = [*trained_rows(release), *history.evaluations]
    if not found:
        return "Nobody has measured these weights with this program."
    rows = [
        (_plain(images_of(row, card)), _percent(row.top1), _percent(row.top5), _percent(row.ece), _plain(row.more))
        for row in found
    ]
    parts = [markdown_table([("images", "top-1", "top-5", "ECE, 15 bins", "more"), *rows])]
    if history.top1 is not None:
        parts.append(
            "The validation images chose the checkpoint. So its score on them is a little higher than on images that "
            "chose nothing."
        )
    if len(release.seeds) > 1:
        parts.append(seeds_text(release.seeds))
    return "\n\n".join(parts)


def trained_rows(release: Release) -> list[ScoreRow]:
    """What training measured of these weights."""
    history = release.history
    if history.top1 is None:
        return []
    return [ScoreRow("validation, while training", history.top1, history.top5, sizes=history.sizes)]


def images_of(row: ScoreRow, card: ModelCard) -> str:
    """The name of the images, and their sizes where these are not those of the release."""
    if not row.sizes or row.sizes == sizes_of(card):
        return row.images
    return f"{row.images}, {' '.join(f'{name} {pixels}' for name, pixels in row.sizes.items())}"


def seeds_text(seeds: Sequence[SeedScore]) -> str:
    lines = [(f"`{one.run_id}`", str(one.seed), _percent(one.top1)) for one in seeds]
    return (
        f"This is the best of {len(seeds)} runs that differ in the seed alone. Their mean is the figure to expect of "
        f"the recipe: {show_mean([one.top1 for one in seeds])} top-1 (mean and standard deviation of the best "
        f"validation of each).\n\n{markdown_table([('run', 'seed', 'best top-1'), *lines])}"
    )


def origin_rows(release: Release) -> list[tuple[str, ...]]:
    """What is known, each as a row. What is not known has none."""
    card, history = release.card, release.history
    hours = None if history.seconds is None else history.seconds / 3600
    step = f", of step {card.step:,}" if card.run_id else ""
    unfinished = ", not finished" if history.is_finished is False else ""
    rows = {
        "parameters": f"{release.parameters:,}",
        "GMACs": f"{release.gmacs:.3g} for an image of {card.val_crop} x {card.val_crop} pixels",
        "recipe": f"`{_plain(card.recipe)}`" if card.recipe else "",
        "seed": str(card.seed) if card.recipe else "",
        "weights": f"`{_plain(card.weights)}`{step}" if card.weights else "",
        "source": "torchvision, which has its own terms for them" if _is_torchvisions(card) else "",
        "trained at": f"{card.train_pixels} pixels, at the end" if card.train_pixels else "",
        "data": _data_of_card(card),
        "run": f"`{_plain(card.run_id)}`{unfinished}" if card.run_id else "",
        "epochs": "" if history.epochs is None else show_number(history.epochs),
        "speed of training": "" if not history.images_per_second else f"{history.images_per_second:,.0f} images/s",
        "hours of training": "" if hours is None else f"{hours:.3g}",
        "machines": "" if history.usd is None else f"${history.usd:,.2f} on AWS",
        "energy": "" if history.kwh is None else f"{history.kwh:.3g} kWh",
        "commit": f"`{_plain(card.commit)}`" if card.commit else "",
        "checkpoint": f"SHA-256 of its manifest: `{_plain(card.checkpoint_sha256)}`" if card.checkpoint_sha256 else "",
        "license": release.license if release.license != UNKNOWN_LICENSE else "unknown: nobody has stated one",
    }
    return [("", ""), *((name, value) for name, value in rows.items() if value)]


def _is_torchvisions(card: ModelCard) -> bool:
    return not card.run_id and bool(TORCHVISIONS.fullmatch(card.weights))


def _data_of_card(card: ModelCard) -> str:
    known = [f"`{_plain(card.data['name'])}`"] if card.data.get("name") else []
    known += [f"{name} `{_plain(card.data[name])}`" for name in ("version", "fingerprint") if card.data.get(name)]
    return ", ".join(known)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown. The first row is the head."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _tag(text: str) -> str:
    """A name as the hub takes it in its YAML."""
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", text).strip("-") or "unknown"


def _plain(text: str) -> str:
    """A name as markdown shows it, whatever is in it."""
    return re.sub(r"[`|<>\[\]]", "'", show_name(text))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
