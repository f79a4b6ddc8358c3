"""What recipes say of themselves, for people and for the AWS app: costs in the docstrings, and recipes.json."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from tests import ROOT
from tests.trainer.recipes.test_recipes import help_of
from trainer.contract import UserError
from trainer.recipes.config import Config
from trainer.recipes.facts import FILE, all_facts, stages, to_text
from trainer.recipes.fields import flatten
from trainer.recipes.named import PROMISES, RECIPES, default_data


def eq_epochs(config: Config) -> float:
    """Epochs of 224 px with as many pixels as all epochs of the config."""
    return sum(epochs * (pixels / 224) ** 2 for pixels, epochs in stages(config))


def test_recipes_json_is_what_the_code_says() -> None:
    assert FILE.read_text() == to_text(), "python -m trainer.recipes.facts writes it"
    assert json.loads(to_text()) == all_facts()


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "digits"])
def test_the_docstring_says_what_a_recipe_costs(recipe: str) -> None:
    config, text = RECIPES[recipe](), " ".join(inspect.cleandoc(RECIPES[recipe].__doc__ or "").split())
    assert re.search(rf"\b{config.epochs} epochs\b", text)
    if recipe != "folder":  # whose data everybody brings
        assert re.search(rf"\b{config.epochs} epochs [^.:]*cost {eq_epochs(config):.1f} of 224 px", text), eq_epochs(
            config
        )
        assert "ot yet measured" in text or "not measured it" in text or "nobody has measured" in text
        assert f"Batch {config.global_batch_size}" in text or "Batch 128 x 4" in text


def test_the_table_in_the_docs_has_every_recipe_with_its_promise_and_its_cost() -> None:
    table = (ROOT / "docs/recipes.md").read_text().split("## Which one")[1].split("## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")
    ]
    assert {row[0] for row in rows} == set(RECIPES)
    for name, _, top1, epochs, cost, batch in rows:
        config, promise = RECIPES[name](), PROMISES.get(name)
        assert top1.split(",")[0] == (f"{promise.top1:g} % at {promise.pixels} px" if promise else top1.split(",")[0])
        assert promise or top1 in ("none", "100 %, measured")
        assert (int(epochs), cost) == (config.epochs, f"{eq_epochs(config):.1f}")
        assert batch == f"{config.global_batch_size}, {config.optim.peak_lr:g}"


def test_the_stages_are_the_resolutions_of_all_epochs_in_their_order() -> None:
    assert all_facts()["recipes"]["thrift"]["stages"] == [[96, 15], [128, 5], [160, 5], [176, 7]]
    for name, said in all_facts()["recipes"].items():
        sizes = [pixels for pixels, epochs in said["stages"] for _ in range(epochs)]
        assert sizes == [RECIPES[name]().resolution_at(epoch) for epoch in range(said["epochs"])]


def test_every_option_of_the_command_line_is_there_with_the_kind_of_its_value() -> None:
    said = all_facts()["options"]
    assert set(said) == {"--size"} | {f"--{name.replace('_', '-')}" for name in flatten(Config())}
    assert all(f" {option} " in help_of("mild") or f" {option}, " in help_of("mild") for option in said)
    assert said["--optim.peak-lr"] == {"kind": "float"}
    assert said["--optim.name"] == {"kind": "choice", "choices": ["sgd", "adamw", "lamb"]}
    assert said["--data.train-sides"] == {"kind": "numbers"}
    assert [said[option]["kind"] for option in ("--compile", "--epochs", "--model.weights")] == ["bool", "int", "str"]


def test_a_promise_has_a_source_and_is_the_promise_of_a_recipe() -> None:
    assert PROMISES.keys() <= RECIPES.keys()
    for promise in PROMISES.values():
        assert 70 < promise.top1 < 81
        assert promise.source


def test_promised_recipes_read_copies_as_sharp_as_their_sources() -> None:
    for name in PROMISES:
        data = RECIPES[name]().data
        assert data.copy_per_crop
        assert data.train_sides == (480, 256, 128)


def test_a_recipe_without_data_of_its_own_asks_for_it() -> None:
    with pytest.raises(UserError, match=r"recipe 'folder' has no data of its own: name your images \(DATA=folder"):
        default_data("folder")
