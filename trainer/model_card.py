"""The model card: what one must know to use weights, namely network, classes, preprocessing, and where they come from.

It travels with them: a run puts its card beside its config, and every exported file has one in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trainer.contract import RUN_ID_RULE
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.fields import to_json
from trainer.values import as_list, as_number, as_object, as_text, as_whole, parse_object

if TYPE_CHECKING:
    from trainer.data.format import Index  # pyarrow, which whoever only predicts does not need
    from trainer.data.reading.decode import ResizeMode

CARD_FILE = "model.json"  # of a run's folder
METADATA_KEY = "card"  # of the metadata of a safetensors file, an ONNX model or a torch.export program
BLUR_POOLS = "none|convs|all"  # as --model.blur-pool
MOST_SIDE = 1 << 14  # of a side
MOST_SEED = (1 << 63) - 1  # as --seed

Three = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Of weights. `classes` are in the order of the outputs; () where nobody knows them."""

    network: str  # torchvision's name
    classes: tuple[str, ...]
    mean: Three  # of pixels in 0..1, for red, green and blue
    std: Three  # pixels are divided by it
    val_resize: int  # pixels of the short side before the centre crop
    val_crop: int  # pixels of a side of what the network sees
    resize_mode: ResizeMode = "bilinear"  # always antialiased
    train_pixels: int = 0  # at the end of training; 0 = not known
    blur_pool: str = "none"  # as --model.blur-pool: a plain network computes something else with such weights
    recipe: str = ""
    seed: int = 0
    data: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # as in a manifest, with its name
    run_id: str = ""
    step: int = 0
    weights: str = ""  # model, ema, swa; of a soup: soup
    checkpoint_sha256: str = ""  # of the manifest
    commit: str = ""  # of this program

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"data": dict(self.data)}

    def to_text(self) -> str:
        return json.dumps(self.to_json())

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelCard:
        """Raises ValueError if it is none. Fields of newer versions are passed over."""
        given = parse_object(text)
        data = as_object("data", given.get("data", {}))
        return cls(
            network=_words_of(given, "network"), classes=_names_of("classes", given.get("classes")),
            mean=_three("mean", given.get("mean")), std=_three("std", given.get("std")),
            val_resize=_side_of(given, "val_resize"), val_crop=_side_of(given, "val_crop"),
            resize_mode=mode_named(given.get("resize_mode", "bilinear")),
            train_pixels=_count(given, "train_pixels"),
            blur_pool=as_text("blur_pool", given.get("blur_pool", "none"), BLUR_POOLS),
            recipe=_words_of(given, "recipe"), seed=as_whole("seed", given.get("seed", 0), MOST_SEED),
            data={name: as_text(f"data.{name}", value) for name, value in data.items()},
            run_id=as_text("run_id", given.get("run_id", ""), f"({RUN_ID_RULE})?"),  # people name folders after it
            step=_count(given, "step"), weights=_words_of(given, "weights"), commit=_words_of(given, "commit"),
            checkpoint_sha256=_words_of(given, "checkpoint_sha256"),
        )  # fmt: skip


def _words_of(given: Mapping[str, Any], name: str) -> str:
    return as_text(name, given.get(name, ""))


def _names_of(name: str, value: object) -> tuple[str, ...]:
    return tuple(as_text(name, one) for one in as_list(name, value))


def _count(given: Mapping[str, Any], name: str) -> int:
    return as_whole(name, given.get(name, 0))


def _side_of(given: Mapping[str, Any], name: str) -> int:
    side = as_whole(name, given.get(name), MOST_SIDE)
    if side < 1:
        raise ValueError(f"{name} is {side}, and a side has at least 1 pixel")
    return side


def mode_named(name: object) -> ResizeMode:
    """Raises ValueError."""
    return "bicubic" if as_text("resize_mode", name, "bilinear|bicubic") == "bicubic" else "bilinear"


def _three(name: str, value: object) -> Three:
    found = [float(as_number(name, one)) for one in as_list(name, value)]
    if len(found) != 3:
        raise ValueError(f"{name} has {len(found)} numbers, not 3")
    return found[0], found[1], found[2]


def card_of(config: Config, index: Index, run_id: str, commit: str) -> ModelCard:
    """The card of a run, before any step."""
    data = {
        "name": index.name, "version": index.version, "fingerprint": index.fingerprint, "sha256": index.sha256,
        "commit": index.source.commit if index.source else "",
    }  # fmt: skip
    return replace(card_of_config(to_json(config), run_id), classes=index.classes, data=data, commit=commit)


def card_of_config(config: Mapping[str, Any], run_id: str) -> ModelCard:
    """What the config of a run, as JSON, says of its weights: everything but classes and data. Raises ValueError."""
    model, data = config.get("model", {}), {**to_json(DataConfig()), **config.get("data", {})}
    return ModelCard.from_json(
        json.dumps(
            {name: data[name] for name in ("mean", "std", "val_resize", "val_crop")}
            | {"network": model.get("name", "unknown"), "blur_pool": model.get("blur_pool", "none"), "classes": []}
            | {"train_pixels": data["resolution"], "recipe": config.get("recipe", ""), "seed": config.get("seed", 0)}
            | {"run_id": run_id}
        )
    )
