"""Named runs: functions that return a frozen config, one file a family. Each docstring says what is promised by whom.

A promise names its source. A figure that this project has not measured says whose it is. torch is not imported here, so
that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from trainer.contract import UserError
from trainer.recipes.a3 import A3, a3
from trainer.recipes.config import Config
from trainer.recipes.digits import digits
from trainer.recipes.finetune import finetune, finetune_v2, folder
from trainer.recipes.mild import MILD, THRIFT, mild, thrift
from trainer.recipes.promise import Promise
from trainer.recipes.rn50 import RN50_16, RN50_32, RN50_88, rn50_16, rn50_32, rn50_88
from trainer.recipes.v2 import V2, v2, v2_90, v2_300

RECIPES: MappingProxyType[str, Callable[[], Config]] = MappingProxyType(
    {
        "digits": digits, "finetune": finetune, "finetune-v2": finetune_v2, "folder": folder,
        "thrift": thrift, "mild": mild, "rn50-16": rn50_16, "rn50-32": rn50_32, "rn50-88": rn50_88,
        "a3": a3, "v2-90": v2_90, "v2-300": v2_300, "v2": v2,
    }
)  # fmt: skip
PROMISES: MappingProxyType[str, Promise] = MappingProxyType(  # the others promise no accuracy
    {
        "thrift": THRIFT, "mild": MILD, "rn50-16": RN50_16, "rn50-32": RN50_32, "rn50-88": RN50_88, "a3": A3, "v2": V2,
    }
)  # fmt: skip
USUAL_DATA = "ILSVRC/imagenet-1k"
DEFAULT_DATA = MappingProxyType({"digits": "digits", "folder": ""})  # "": the user must name it


def default_data(recipe: str) -> str:
    """The data of a recipe when TRAINER_DATA is not set. Raises UserError for a recipe that has none of its own."""
    if data := DEFAULT_DATA.get(recipe, USUAL_DATA):
        return data
    raise UserError(f"recipe {recipe!r} has no data of its own: name your images (DATA=folder, or TRAINER_DATA)")
