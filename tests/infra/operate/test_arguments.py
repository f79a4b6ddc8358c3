"""Mistakes in RECIPE= and ARGS= end on the laptop, with the option, the value and the fix."""

from __future__ import annotations

import pytest

from infra.config import Installation
from infra.operate.planning.arguments import given_options, is_on, number_given, value_of
from infra.operate.planning.options import Request
from infra.operate.planning.refusals import check
from trainer.contract import UserError


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ((), {}),
        (("--epochs", "4"), {"epochs": ("4",)}),
        (("--epochs=4", "--seed", "1"), {"epochs": ("4",), "seed": ("1",)}),
        (("--optim.peak_lr", "-1"), {"optim.peak-lr": ("-1",)}),
        (("--data.crop-scale", "0.1", "1"), {"data.crop-scale": ("0.1", "1")}),
        (("--compile", "--epochs", "4", "--epochs", "5"), {"compile": (), "epochs": ("5",)}),
    ],
)
def test_words_are_read_as_the_trainer_reads_them(words: tuple[str, ...], given: dict[str, tuple[str, ...]]) -> None:
    assert given_options(words) == given


def test_the_last_of_several_counts() -> None:
    words = ("--compile", "--no-compile", "--size", "96", "--size=128", "--precision", "bf16", "--precision", "fp16")
    assert not is_on("compile", words, True)
    assert is_on("compile", (*words, "--compile"), False)
    assert is_on("compile", (), True)
    assert (number_given("size", words), value_of("precision", words), number_given("epochs", words)) == (
        128,
        "fp16",
        0,
    )


@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        ("finetun", (), "recipe 'finetun' is unknown: choose one of "),
        ("finetune", ("--epoch", "4"), "recipe 'finetune' has no option --epoch: did you mean --epochs? "),
        ("finetune", ("--help",), "recipe 'finetune' has no option --help"),
        ("finetune", ("--optim.no-peak-lr",), "has no option --optim.no-peak-lr"),
        ("finetune", ("--epochs", "4.5"), "--epochs 4.5: use a whole number"),
        ("finetune", ("--epochs",), "--epochs: it takes one value, not 0: give one behind it"),
        ("finetune", ("--epochs", "4", "5"), "--epochs 4 5: it takes one value, not 2"),
        ("finetune", ("--optim.peak-lr", "fast"), "--optim.peak-lr fast: use a number"),
        ("finetune", ("--precision", "int8"), "--precision int8: use one of 'fp32', 'bf16', 'fp16'"),
        ("finetune", ("--data.crop-scale", "a", "1"), "--data.crop-scale a 1: use numbers with spaces between them"),
        ("finetune", ("--compile", "yes"), "--compile yes: it is a switch and takes no value"),
        ("finetune", ("--model.name", "resnet51"), "--model.name 'resnet51' is not a torchvision classification model"),
        ("rn50-16", ("--model.name", "googlenet"), "--model.name is googlenet: it must be another network"),
        (
            "finetune",
            ("--model.name", "resnet18"),
            "--model.weights is IMAGENET1K_V2, but torchvision has of resnet18: ",
        ),
        ("rn50-16", ("--model.name", "vit_b_16"), "--data.resolution is 192: vit_b_16 takes 224 pixels"),
        ("finetune", ("--data.val-crop", "16"), "--data.val-crop is 16: resnet50 takes 32 to 2048 pixels"),
        ("folder", (), "RECIPE=folder has no images of its own: give yours, DATA="),
        ("finetune", ("epochs", "4"), "ARGS= begins with 'epochs', which is no option"),
    ],
)
def test_a_mistake_is_refused_with_its_fix(recipe: str, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        check(Request(recipe=recipe, arguments=arguments), Installation())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--epochs", "4"), ("--optim.peak-lr=1e-3",), ("--optim.peak_lr", ".5"), ("--no-compile",), ("--compile",),
        ("--data.crop-scale", "0.08", "1"), ("--data.train-sides", "256"), ("--size", "160"), ("--model.weights", ""),
        ("--checkpoint.accept-changes", "--data.no-copy-per-crop", "--model.name", "resnet101"),
        ("--model.name", "vit_b_32", "--model.weights=IMAGENET1K_V1"),
    ],
)  # fmt: skip
def test_what_the_trainer_understands_passes(arguments: tuple[str, ...]) -> None:
    check(Request(recipe="finetune", arguments=arguments), Installation())
