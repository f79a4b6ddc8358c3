"""The named runs and their command line: what the brief asks for, help that is complete, mistakes that exit with 78."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from unittest.mock import patch

import pytest

from tests import PATIENCE
from trainer.contract import Exit, UserError
from trainer.recipes.command_line import command_line
from trainer.recipes.config import Config
from trainer.recipes.fields import flatten
from trainer.recipes.named import PROMISES, RECIPES, default_data
from trainer.recipes.rules import checked

WIDE = {"COLUMNS": "100", "NO_COLOR": "1"}


def run(*args: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **WIDE}
    return subprocess.run(
        [sys.executable, *args], env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )  # fmt: skip


@cache
def help_of(*recipe: str) -> str:
    """The help as one line, without the boxes around it."""
    text = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(text), patch.dict(os.environ, WIDE), pytest.raises(SystemExit) as end:
        command_line("python -m trainer.train", [*recipe, "--help"])
    assert not end.value.code
    text.seek(0)
    written = text.read()
    return re.sub(r"[\s│╭╮╰╯─]+", " ", written)


def test_finetune_is_the_run_of_the_brief() -> None:
    config = RECIPES["finetune"]()
    assert config.recipe == "finetune"
    assert (config.model.name, config.model.weights, config.model.num_classes) == ("resnet50", "IMAGENET1K_V2", 0)
    assert (config.device_batch_size, config.micro_batches, config.epochs) == (128, 4, 30)
    optim = config.optim
    assert (optim.peak_lr, optim.div, optim.final_div, optim.pct_start, optim.anneal) == (0.002, 25.0, 1e4, 0.3, "cos")
    assert config.data.workers == 8
    assert default_data("finetune") == "ILSVRC/imagenet-1k"


def test_a_recipe_keeps_its_name_since_its_data_goes_by_it() -> None:
    with pytest.raises(UserError, match=r"--recipe is 'mine': it must be 'digits', .* leave --recipe out"):
        command_line("train", ["digits", "--recipe", "mine"])


def test_finetune_starts_from_v1_by_option() -> None:
    config = command_line("train", ["finetune", "--model.weights", "IMAGENET1K_V1"])
    assert config.model.weights == "IMAGENET1K_V1"
    assert config.model.name == RECIPES["finetune"]().model.name


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid_and_bears_its_name(recipe: str) -> None:
    config = RECIPES[recipe]()
    assert checked(config) is config
    assert config.recipe == recipe
    assert config.micro_batches >= 1
    assert command_line("train", [recipe]) == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_promises_an_accuracy_or_says_that_it_is_not_measured(recipe: str) -> None:
    text = inspect.cleandoc(RECIPES[recipe].__doc__ or "")
    promise = PROMISES.get(recipe)
    if promise:
        assert f"{promise.top1:g} % top-1 at {promise.pixels} px" in text
    assert recipe == "digits" or re.search(r"[Nn]ot\s(yet\s)?measured|[Nn]obody\shas|no % is promised", text)
    assert promise or recipe in ("digits", "finetune", "finetune-v2", "folder", "v2-90", "v2-300")
    assert "ResNet" in text.splitlines()[0]
    assert text.splitlines()[0] in help_of(recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_shows_every_option_with_its_meaning_and_default(recipe: str) -> None:
    text = help_of(recipe)
    starts = {found[1]: found for found in re.finditer(r" --([a-z][a-z0-9.-]*)(?=[ ,])(?:, --[a-z0-9.-]+)?", text)}
    config = RECIPES[recipe]()
    values = {name.replace("_", "-"): value for name, value in flatten(config).items()} | {
        "size": config.data.resolution
    }
    assert set(values) == set(starts) - {"help"} - {name for name in starts if name.split(".")[-1].startswith("no-")}
    for name, value in values.items():
        end = min((found.start() for found in starts.values() if found.start() > starts[name].start()), default=None)
        entry = text[starts[name].end() : end]
        found = re.match(r" (?:[A-Z{][^ ]*[A-Z}] )*(?P<meaning>.+) \(default: (?P<default>[^)]*)\)", entry)
        assert found, f"--{name}: {entry}"
        assert len(re.sub(r"\{[^}]*\}", "", found["meaning"]).strip()) >= 6, name  # choices are no meaning
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert found["default"].strip("'") == shown, name


def test_the_help_without_a_recipe_lists_all_of_them() -> None:
    done = run("-m", "trainer.recipes.command_line", "--help")
    assert done.returncode == 0
    assert all(f"• {recipe}" in done.stdout for recipe in RECIPES)
    assert re.sub(r"[\s│╭╮╰╯─]+", " ", done.stdout) == help_of(), "what the other tests read in this process"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["digit"], ["'digit'", "digits, finetune, finetune-v2, folder"]),
        ([], ["{digits,", "--help"]),
        (["digits", "--warp", "9"], ["--warp", "digits --help"]),
        (["digits", "--optim.peak-lr", "fast"], ["--optim.peak-lr", "fast", "digits --help"]),
        (["digits", "--precision", "fp8"], ["--precision", "fp8", "bf16"]),
        (["digits", "--data.crop-scale", "0.5"], ["--data.crop-scale", "digits --help"]),
        (["digits", "--epochs", "0"], ["--epochs is 0", "at least 1"]),
        (["finetune", "--data.val-crop", "256"], ["--data.val-crop is 256", "val_resize=232"]),
    ],
)
def test_a_mistake_on_the_command_line_exits_with_78_and_one_message_that_names_it(
    args: list[str], named: list[str]
) -> None:
    done = run("-m", "trainer.recipes.command_line", *args)
    assert done.returncode == Exit.USER
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert [line.startswith("error: ") for line in done.stderr.splitlines()].count(True) == 1
    text = re.sub(r"[\s│]+", " ", done.stderr)
    assert [part for part in named if part not in text] == []


def test_a_good_command_line_prints_what_the_supervisor_needs_to_know() -> None:
    done = run("-m", "trainer.recipes.command_line", "digits", "--epochs", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "recipe": "digits", "global_batch_size": 32, "device_batch_size": 32, "device": "auto",
        "cuda_graphs": False, "sync_norm": False,
    }  # fmt: skip


def test_options_change_only_what_they_name() -> None:
    config = command_line(
        "train", ["digits", "--no-channels-last", "--data.crop-scale", "0.5", "1", "--seed", "7", "--precision", "bf16"]
    )
    assert (config.channels_last, config.data.crop_scale, config.seed, config.precision) == (False, (0.5, 1), 7, "bf16")
    before, after = flatten(RECIPES["digits"]()), flatten(config)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"channels_last", "data.crop_scale", "seed", "precision"}


def test_config_and_recipes_are_read_without_torch() -> None:
    done = run("-c", "import sys, trainer.recipes.command_line as r; r.command_line('t', ['digits']); "
                     "print(sorted({'torch', 'numpy', 'torchvision', 'boto3'} & set(sys.modules)))")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_every_recipe_is_a_function_without_arguments_returning_a_config() -> None:
    for recipe in RECIPES.values():
        assert inspect.signature(recipe).parameters == {}
        assert isinstance(recipe(), Config)
